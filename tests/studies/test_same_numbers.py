"""The same request gives the same numbers, whichever command asks: `nabn test`, `sweep`, `sensitivity`, `compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aihwkit_nabn import cli
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.results.layers import WHOLE
from aihwkit_nabn.studies import run_study
from aihwkit_nabn.studies.grid import GridStudy

SEED, IMAGES, TEST_IMAGES, BATCH = 2, 12, 30, 6
NOISE = "pcm:inp_bits=8,out_bits=8,out_noise=0.1"
METHODS = ("none", "population", "paired")
Found = dict[tuple[str, int], dict[str, float]]


def _command(name: str, target: list[str], out: Path, *more: str) -> dict[str, Any]:
    arguments = [name, *target, "--noise", NOISE, "--time", "10y", "--chips", "2", "--seed", str(SEED)]
    arguments += ["--calibration-images", str(IMAGES), "--batch-size", str(BATCH), "--methods", ",".join(METHODS)]
    assert run(cli.app, [*arguments, "--out", str(out), *more]) == 0
    file = "sensitivity.json" if name == "sensitivity" else "results.json"
    content: dict[str, Any] = json.loads((out / file).read_text())
    return content


def _found(records: list[dict[str, Any]]) -> Found:
    return {(r["method_name"], r["chip_seed"]): r["metrics"] for r in records}


def _sweep(model: dict[str, Any], out: Path, **more: Any) -> Found:
    content = {"version": 1, "name": "same", "seed": SEED, "chips": 2, "noise": [NOISE], "time": ["10y"], **more}
    content |= {"samples": [IMAGES], "calibration_batch": BATCH, "test_batch": BATCH, "methods": list(METHODS)}
    study = GridStudy({**content, "models": [model]}, work_dir=out)
    with study.open_log(out) as log:
        run_study(study, log)
    return _found([record.to_dict() for record in log.records.values() if record.chip_seed is not None])


def _whole(content: dict[str, Any]) -> Found:
    return _found([record for record in content["records"] if record["axes"]["layer"] == WHOLE])


def test_of_the_digits(tmp_path: Path) -> None:
    limited = ("--test-images", str(TEST_IMAGES))
    expected = _found(_command("test", ["digits"], tmp_path / "test", *limited)["records"])
    assert len(expected) == 6 and len({metrics["accuracy"] for metrics in expected.values()}) > 2
    assert _sweep({"model": "digits"}, tmp_path / "sweep", test_images=TEST_IMAGES) == expected
    assert _whole(_command("sensitivity", ["digits"], tmp_path / "layers", *limited)) == expected
    compared = _command("compare", ["digits"], tmp_path / "compare", *limited, "--epochs", "1", "--wrong", "2")
    names = {"drift_compensation": "none", "population": "population", "paired": "paired"}
    ours = {
        (names[r["method_name"]], r["chip_seed"]): r["metrics"]
        for r in compared["records"]
        if r["method_name"] in names
    }
    assert ours == expected


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [(), ("--jobs", "2")])
def test_of_the_layers_in_processes(tmp_path: Path, jobs: tuple[str, ...]) -> None:
    more = ("--test-images", str(TEST_IMAGES), *jobs)
    whole = _whole(_command("sensitivity", ["digits"], tmp_path / "layers", *more))
    assert whole == _found(_command("test", ["digits"], tmp_path / "test", *more[:2])["records"])


@pytest.mark.slow
def test_of_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mmseg")
    from aihwkit_nabn.data.demo_configs import demo_checkpoint_path, demo_config_path
    from aihwkit_nabn.data.shapes import write_shapes

    write_shapes(tmp_path / "shapes", n_train=16, n_val=3, seed=0)
    monkeypatch.setenv("NABN_DATA", str(tmp_path))
    config, checkpoint = str(demo_config_path("shapes_segmenter")), str(demo_checkpoint_path("shapes_segmenter"))
    expected = _found(_command("test", [config, checkpoint], tmp_path / "test")["records"])
    assert len(expected) == 6
    assert _sweep({"model": config, "checkpoint": checkpoint}, tmp_path / "sweep") == expected
    # A layer's losses are of the first metric.
    whole = _whole(_command("sensitivity", [config, checkpoint], tmp_path / "layers"))
    first = {key: {"mIoU": metrics["mIoU"]} for key, metrics in expected.items()}
    assert whole == first
