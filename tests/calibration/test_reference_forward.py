"""The reference may see something else than the chip: the clean twin of a corrupted image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration.rehearsal import Rehearsal
from aihwkit_nabn.calibration.session import REHEARSED
from aihwkit_nabn.errors import NabnError

Images = Callable[..., Tensor]


@pytest.mark.parametrize("method", ["paired", "distill"])
def test_each_is_given_its_own_part(chip: nn.Module, net: nn.Module, images: Images, method: str) -> None:
    pairs = [(images(6, seed), images(6, seed) * 0.5 - 1.0) for seed in (1, 2)]
    seen: dict[str, list[Tensor]] = {"chip": [], "reference": []}

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen["chip"].append(batch[1])
        return model(batch[1])

    def reference_forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen["reference"].append(batch[0])
        return model(batch[0])

    options = {"steps": 2} if method == "distill" else {}
    report = nabn.calibrate(
        chip,
        pairs,
        method,
        reference=net,
        forward_fn=forward,
        reference_forward_fn=reference_forward,
        **options,  # type: ignore[arg-type]
    )
    assert report.n_samples == 12
    for name, part in (("reference", 0), ("chip", 1)):
        whole = torch.cat([pair[part] for pair in pairs])
        assert all(any(torch.equal(row, image) for image in whole) for rows in seen[name] for row in rows)


def test_a_shift_of_the_input_is_taken_back(net: nn.Module, images: Images) -> None:
    rpu = nabn.presets.GaussianWeightNoisePreset(sigma=0.0)
    analog = nabn.program_chip(nabn.convert_to_noise_aware(net, rpu), seed=0)
    clean = images(64, 5)
    pairs = [(clean, clean * 0.6 + 0.8)]
    expected = net(clean).detach()

    def error() -> float:
        with torch.no_grad():
            return float((analog(pairs[0][1]) - expected).square().mean())

    before = error()
    nabn.calibrate(analog, [pairs[0][1]], "paired", reference=net)
    assert error() == pytest.approx(before, rel=0.05), "seeing the same, reference and chip agree on the shifted image"
    nabn.calibrate(
        analog,
        pairs,
        "paired",
        reference=net,
        forward_fn=lambda model, batch: model(batch[1]),
        reference_forward_fn=lambda model, batch: model(batch[0]),
    )
    assert error() < 0.2 * before


def test_without_it_the_reference_is_run_as_the_chip(chip: nn.Module, net: nn.Module, batches: list[Tensor]) -> None:
    runs: list[nn.Module] = []

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        runs.append(model)
        return model(batch)

    REHEARSED[chip] = forward, Rehearsal()  # which would run, too
    nabn.calibrate(chip, batches, "paired", reference=net, forward_fn=forward)
    assert len(runs) == 6 and len({id(model) for model in runs}) == 2


@pytest.mark.parametrize("name", ["forward_fn", "reference_forward_fn"])
def test_no_function(chip: nn.Module, net: nn.Module, batches: list[Tensor], name: str) -> None:
    with pytest.raises(NabnError, match=f"{name} must be callable"):
        nabn.calibrate(chip, batches, "paired", reference=net, **{name: "x"})  # type: ignore[arg-type]
    with pytest.raises(NabnError, match=f"{name} must be callable"):
        nabn.evaluate(
            net,
            scenarios=[nabn.Scenario(name="x", rpu_config=nabn.presets.GaussianWeightNoisePreset(sigma=0.1))],
            methods=["paired"],
            calibration_batches=batches,
            eval_fn=lambda model: {"x": 1.0},
            **{name: "x"},  # type: ignore[arg-type]
        )


def test_what_fails_in_the_reference_names_it(chip: nn.Module, net: nn.Module, batches: list[Tensor]) -> None:
    def fail(model: nn.Module, batch: Tensor) -> Tensor:
        raise RuntimeError("no twin")

    with pytest.raises(NabnError, match="the reference failed on calibration batch 0 .*: no twin"):
        nabn.calibrate(chip, batches, "paired", reference=net, reference_forward_fn=fail)
