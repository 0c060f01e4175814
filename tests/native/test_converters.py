"""The compiled converters against those that torch computes, number by number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn import native
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.simulator.product.numbers import NumberStream
from aihwkit_nabn.simulator.product.physics.converters import Converter
from aihwkit_nabn.simulator.product.physics.effect import ReadoutEffect
from aihwkit_nabn.simulator.product.physics.inputs import to_levels
from aihwkit_nabn.simulator.product.physics.ir_drop import IRDrop
from aihwkit_nabn.simulator.product.physics.noise import Noise
from aihwkit_nabn.simulator.product.physics.readout import Readout, read_out

needs_library = pytest.mark.skipif(not native.is_available(), reason=f"no compiled readout: {native.why_not()}")


def adc(bits: int | None, bound: float) -> Converter:
    step = 0.0 if bits is None else 2.0 * bound / (2**bits - 2)
    return Converter(step=step, bound=bound, asymmetry=0.0, stochastic=False)


def read(shape: tuple[int, ...], channel_dim: int, n_rows: int, **options: Any) -> Tensor:
    """Read tile rows out, the same ones each time."""
    generator = torch.Generator().manual_seed(5)
    numbers = NumberStream(lambda: 11)
    total = None
    for _ in range(n_rows):
        y = 40.0 * torch.randn(shape, generator=generator)
        if options.get("channels_last"):
            y = y.to(memory_format=torch.channels_last)
        n = shape[channel_dim]
        along = {name: torch.rand(n, generator=generator) + 0.5 for name in ("noise", "gain", "bias")}
        variance = torch.rand(shape, generator=generator).mul_(4.0).view_as(y) if options.get("variance") else None
        currents = [torch.rand(shape, generator=generator).mul_(3.0).view_as(y) for _ in range(2)]
        whole = options.get("scalars", False)
        noise = options.get("noise", 0.7 if whole else along["noise"])
        effects: list[ReadoutEffect] = [IRDrop(options["ir_drop"], 1.0)] if "ir_drop" in options else []
        flows: list[tuple[Tensor, ...]] = [tuple(currents)] if "ir_drop" in options else []
        if variance is not None or isinstance(noise, Tensor) or noise > 0.0:
            effects.append(Noise(0.0 if variance is None else 1.0, weighted=True))
            flows.append(() if variance is None else (variance,))
        gain = 0.3 if whole else along["gain"]
        readout = Readout(adc=options.get("adc", adc(8, 100.0)), noise=noise, gain=gain, effects=tuple(effects))
        bias = along["bias"] if options.get("bias") else None
        total = read_out(y, readout, flows, channel_dim=channel_dim, numbers=numbers, total=total, bias=bias)
    assert total is not None
    return total


CASES: dict[str, dict[str, Any]] = {
    "vectors": {"shape": (37, 51), "channel_dim": -1, "n_rows": 2},
    "one number each": {"shape": (3, 5, 7, 9), "channel_dim": -3, "n_rows": 3, "scalars": True},
    "convolution": {"shape": (4, 64, 56, 56), "channel_dim": -3, "n_rows": 2, "bias": True},
    "1-d": {"shape": (2, 6, 40_000), "channel_dim": -2, "n_rows": 1, "bias": True},
    "channels last": {"shape": (3, 16, 13, 11), "channel_dim": -3, "n_rows": 2, "channels_last": True, "bias": True},
    "read noise": {"shape": (2, 8, 33, 35), "channel_dim": -3, "n_rows": 2, "variance": True},
    "read noise of vectors": {"shape": (1500, 70), "channel_dim": -1, "n_rows": 2, "variance": True},
    "read noise alone": {"shape": (9, 70), "channel_dim": -1, "n_rows": 2, "variance": True, "noise": 0.0},
    "IR drop": {"shape": (3, 8, 65, 70), "channel_dim": -3, "n_rows": 2, "variance": True, "ir_drop": 1.3},
    "IR drop alone": {"shape": (900, 80), "channel_dim": -1, "n_rows": 2, "noise": 0.0, "ir_drop": 0.7},
    "no noise": {"shape": (5, 6, 7), "channel_dim": -2, "n_rows": 2, "noise": 0.0, "bias": True},
    "no rounding": {"shape": (5, 6, 7), "channel_dim": -2, "n_rows": 2, "adc": adc(None, 50.0)},
    "no bound": {"shape": (5, 6, 7), "channel_dim": -2, "n_rows": 2, "adc": adc(None, math.inf)},
    "nothing there": {"shape": (0, 6, 7), "channel_dim": -2, "n_rows": 2},
    "a multiple of a chunk": {"shape": (4, 128, 128, 2), "channel_dim": -3, "n_rows": 3},
}


@needs_library
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("case", CASES)
def test_the_same_as_with_torch(case: str, both_ways: Callable[..., list[Tensor]]) -> None:
    """Numbers on the edge between two levels may fall to either side: at most one in 10,000."""
    compiled, torchs = both_ways(lambda: read(**CASES[case]))
    assert compiled.shape == torchs.shape and compiled.stride() == torchs.stride()
    differ = ~torch.isclose(compiled, torchs, rtol=1e-5, atol=1e-4)
    assert differ.sum() <= 1e-4 * differ.numel()
    if compiled.numel():
        step = 1.5 * CASES[case].get("adc", adc(8, 100.0)).unit
        assert (compiled - torchs).abs().max() <= step


@needs_library
def test_threads_do_not_matter(set_threads: Callable[[int], None]) -> None:
    found = []
    for n_threads in (1, 2, 4):
        set_threads(n_threads)
        found.append(read(**CASES["convolution"]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@needs_library
def test_nan_and_infinity_stay_or_are_cut_off(both_ways: Callable[..., list[Tensor]]) -> None:
    readout = Readout(adc=adc(8, 127.0), noise=0.0, gain=1.0)

    def cut() -> Tensor:
        y = torch.tensor([[math.nan, math.inf, -math.inf, 1.2]])
        return read_out(y, readout, [], channel_dim=-1, numbers=NumberStream(lambda: 1))

    for out in both_ways(cut):
        assert out[0, 0].isnan() and out[0, 1:].tolist() == [127.0, -127.0, 1.0]


@needs_library
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("input_range", [None, 1.7])
@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("dac", [adc(8, 1.0), adc(5, 0.8), adc(None, 1.0), adc(None, math.inf)])
def test_levels_are_the_same_as_with_torch(
    input_range: float | None, scale: float, dac: Converter, both_ways: Callable[..., list[Tensor]]
) -> None:
    torch.manual_seed(0)
    whole = torch.randn(3, 20, 61, 47)
    maps = [whole, whole[:, 3:13], whole.to(memory_format=torch.channels_last), whole[:0], whole[:, :, ::2]]
    inputs = [(x, -3) for x in maps] + [(torch.randn(2500, 70), -1), (torch.randn(5, 7, 30)[..., :20], -1)]
    for x, channel_dim in inputs:
        compiled, torchs = both_ways(lambda: to_levels(x, dac, input_range, scale, channel_dim))  # noqa: B023
        assert torch.equal(compiled, torchs) and compiled.stride() == torchs.stride()


def test_a_network_is_the_same_with_and_without(both_ways: Callable[..., list[Tensor]]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 8, 3), nn.Flatten(), nn.Linear(8 * 12 * 12, 5))
    x = torch.randn(4, 3, 16, 16)
    chip = nabn.convert_to_noise_aware(model.eval(), parse_preset("crossbar"))
    nabn.calibrate_input_ranges(chip, [x])
    nabn.program_chip(chip, 1)

    def answer() -> Tensor:
        nabn.set_read_noise_seed(chip, 3)
        with torch.no_grad():
            return chip(x)

    compiled, torchs = both_ways(answer)
    assert torch.allclose(compiled, torchs, atol=0.02 * float(torchs.abs().max()))
