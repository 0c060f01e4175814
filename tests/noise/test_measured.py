"""The noise model of a measured device: its formulas, where the fit may come from, what a run remembers of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import aihwkit_nabn as nabn
from aihwkit_nabn.devices import Curve, DeviceFit, read_fit, write_fit
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import Scenario
from aihwkit_nabn.noise import ComposedNoise
from aihwkit_nabn.noise.measured import EXAMPLE, MeasuredNoise
from aihwkit_nabn.simulator import build_preset, parse_preset
from aihwkit_nabn.studies.grid.spec import parse_spec
from aihwkit_nabn.studies.grid.study import described
from tests.chips import aged
from tests.tensors import assert_moments

COUNT = 20_000


def flat(value: float) -> Curve:
    return Curve("polynomial", (0.0, 1.0), (value,))


def fit_of(**curves: Any) -> DeviceFit:
    """Return a device without noise but for the curves given."""
    return DeviceFit(**{"g_max_us": 50.0, "offset_us": flat(0.0), "spread_us": flat(0.0), **curves})


def written(path: Path, **curves: Any) -> Path:
    write_fit(path, fit_of(**curves), {}, {})
    return path


def level(x: float) -> torch.Tensor:
    """Return `COUNT` weights of value x behind one of value 1, which fixes the scale."""
    return torch.cat([torch.ones(1), torch.full((COUNT,), x)])[None].double()


def test_programming_is_normal_about_target_and_offset() -> None:
    curves = {
        "offset_us": Curve("table", (0.0, 0.5, 1.0), (0.0, -2.0, 0.0)),
        "spread_us": Curve("polynomial", (0.0, 1.0), (0.0, 4.0)),
    }
    for x, mean, spread in ((0.5, 23.0, 2.0), (0.25, 11.5, 1.0), (-0.5, -23.0, 2.0)):
        chip, _ = aged(MeasuredNoise(fit_of(**curves).to_json()), level(x))
        assert_moments(50.0 * chip[0, 1:], mean, spread)


def test_the_idle_device_of_a_pair_is_programmed_to_0() -> None:
    chip, _ = aged(MeasuredNoise(fit_of(spread_us=flat(1.0)).to_json()), level(0.5))
    # Half of a standard normal variable is cut off.
    assert_moments(50.0 * chip[0, 1:], 25.0 - 1 / math.sqrt(2 * math.pi), math.sqrt(1.5 - 0.5 / math.pi))


@pytest.mark.parametrize("seconds", [0.0, 10.0, 20.0, 2000.0])
def test_drift_counts_from_the_first_reading(seconds: float) -> None:
    fit = fit_of(first_reading_s=20.0, exponent=flat(0.05), exponent_spread=flat(0.01))
    chip, _ = aged(MeasuredNoise(fit.to_json()), level(0.5), seconds)
    decades = math.log(max(seconds, 20.0) / 20.0)
    if decades == 0:
        assert torch.equal(chip[0, 1:], level(0.5)[0, 1:])
    else:
        assert_moments(-torch.log(2 * chip[0, 1:]) / decades, 0.05, 0.01)


def test_read_noise_is_drawn_with_every_drift() -> None:
    model = MeasuredNoise(fit_of(read_spread=flat(0.1)).to_json())
    first, state = aged(model, level(0.5), 0.0)
    assert_moments(first[0, 1:], 0.5, 0.05)
    second = model.apply_drift_noise(level(0.5), state, 0.0)
    assert abs(float(np.corrcoef(first[0, 1:], second[0, 1:])[0, 1])) < 4 / math.sqrt(COUNT)


def test_factors() -> None:
    fit = fit_of(
        spread_us=flat(1.0), first_reading_s=1.0, exponent=flat(0.05), exponent_spread=flat(0.0), read_spread=flat(0.1)
    ).to_json()
    none = {"prog_noise_scale": 0.0, "read_noise_scale": 0.0, "drift_scale": 0.0}
    assert torch.equal(aged(MeasuredNoise(fit, **none), level(0.5), 1e4)[0], level(0.5))
    drifted = aged(MeasuredNoise(fit, **(none | {"drift_scale": 2.0})), level(0.5), 1e4)[0]
    assert torch.allclose(drifted[0, 1:], torch.tensor(0.5 * 1e4**-0.1).double())
    read = aged(MeasuredNoise(fit, **(none | {"read_noise_scale": 0.5, "noise_scale": 2.0})), level(0.5), 1e4)[0]
    assert_moments(read[0, 1:], 0.5, 0.05)


def test_what_was_not_fitted_does_not_happen() -> None:
    plain, drifting = MeasuredNoise(fit_of(spread_us=flat(1.0)).to_json()), MeasuredNoise()
    assert not (plain.drifts or plain.changes_with_time) and drifting.drifts and drifting.changes_with_time
    programmed, state = aged(plain, level(0.5))
    assert torch.equal(plain.apply_drift_noise(programmed, state, 1e6), programmed)
    assert build_preset("measured", fit=plain.fit).drift_compensation is None
    assert build_preset("measured").drift_compensation is not None
    reading = MeasuredNoise(fit_of(read_spread=flat(0.1)).to_json())
    assert reading.changes_with_time and not reading.drifts


def test_the_example_is_the_device_of_the_tutorial() -> None:
    assert MeasuredNoise() == MeasuredNoise(EXAMPLE) == MeasuredNoise(read_fit(EXAMPLE).to_json())
    fit, x = read_fit(EXAMPLE), np.linspace(0.0, 1.0, 9)
    np.testing.assert_allclose(fit.spread_us(x), 0.4 + 1.6 * x - 0.8 * x**2, rtol=0.2)
    assert fit.exponent is not None
    np.testing.assert_allclose(fit.exponent(x), 0.06 - 0.03 * x, rtol=0.1)


def test_file_text_preset_and_config_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "device.json", spread_us=flat(1.0))
    expected = MeasuredNoise(str(path), noise_scale=0.5, devices_per_weight=2)
    for text in ("measured:device.json", "measured:fit=device.json"):
        assert parse_preset(f"{text},noise_scale=0.5,devices_per_weight=2").noise_model == expected
    both = parse_preset("measured:device.json+stuck:p_off=0.1").noise_model
    assert isinstance(both, ComposedNoise) and both.effects[0] == MeasuredNoise(path) and both.reads_file
    preset = build_preset("MeasuredNoisePreset", fit="device.json")
    assert preset.noise_model == MeasuredNoise(path) and isinstance(preset, nabn.presets.MeasuredNoisePreset)


def test_the_fit_is_part_of_what_a_run_remembers(tmp_path: Path) -> None:
    path = written(tmp_path / "device.json", spread_us=flat(1.0))
    text = f"measured:{path}"

    def remembered() -> tuple[str, Any]:
        sweep = {"version": 1, "name": "s", "models": ["digits"], "noise": [text, "pcm"], "chips": 1}
        return str(Scenario("x", parse_preset(text)).rpu_config), described(parse_spec(sweep))

    before = remembered()
    (tmp_path / "elsewhere").mkdir()
    assert remembered() == before and "device.json" not in before[0] and list(before[1]["noise_files"]) == [text]
    written(path, spread_us=flat(1.1))
    assert all(one != other for one, other in zip(before, remembered(), strict=True))


def test_sweeps_without_files_are_remembered_as_ever() -> None:
    sweep = {"version": 1, "name": "s", "models": ["digits"], "noise": ["pcm"], "chips": 1}
    assert "noise_files" not in described(parse_spec(sweep))


def test_a_chip_file_needs_no_fit_file(tmp_path: Path) -> None:
    path = written(tmp_path / "device.json", spread_us=flat(1.0), read_spread=flat(0.1))
    net = torch.nn.Sequential(torch.nn.Linear(12, 5)).eval()
    chip = nabn.program_chip(nabn.convert_to_noise_aware(net, parse_preset(f"measured:{path}")), 3, "1h")
    file = nabn.save_chip(chip, tmp_path / "chip.safetensors")
    path.unlink()
    twin = nabn.load_chip(net, file)
    for one in (chip, twin):
        nabn.drift_chip(one, "1d")
    assert torch.equal(twin[0].weight, chip[0].weight)  # type: ignore[index]


BAD = [
    (
        "measured:no.json",
        "fit must be a file with a fitted device .nabn fit MEASUREMENTS.csv writes one.: no.json: No such",
    ),
    ("measured:none", "fit must be a file that nabn fit wrote, or its content, got None"),
    ("measured:rows.csv", "rows.csv is no fitted device"),
    ("measured:results.json", "results.json is no fitted device .*its format must be 'nabn device fit', got None"),
    ("measured:a.json,fit=b.json", "option 'fit' is given twice"),
    ("measured:noise_scale=1,a.json", "malformed option 'a.json'"),
    ("measured:", "malformed option ''"),
    ("pcm:a.json", "malformed option 'a.json' in preset 'pcm:a.json': pcm has only OPTION=VALUE"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_what_is_no_fit_is_refused(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("target,conductance\n1,2\n")
    (tmp_path / "results.json").write_text(json.dumps({"records": []}))
    with pytest.raises(NabnError, match=message):
        parse_preset(text)
