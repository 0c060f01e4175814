"""Configs in sweeps: a job is a chip in mmengine's own runner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.results import Record
from aihwkit_nabn.studies._base import Worker
from aihwkit_nabn.studies.grid import GridStudy, results_of


def _content(case, **changed) -> dict:
    return {
        "version": 1,
        "name": "config",
        "chips": 2,
        "models": [{"model": str(case.path), "checkpoint": str(case.checkpoint), "name": case.name}],
        "noise": ["gaussian:sigma=0.1"],
        "methods": [
            "none",
            "population",
            {"method": "paired", "options": {"shrink": 0.0}},
            {"method": "paired", "reference": "clean"},
        ],
        "samples": [3, 6],
        "jpeg": ["none", 20],
        **changed,
    }


def _measured(study: GridStudy, jobs: list) -> dict[str, Record]:
    worker = Worker(study)
    events = [event for job in jobs for event in worker.events(job)]
    return {event.key: event for event in events if isinstance(event, Record)}


@pytest.mark.slow
def test_a_config_with_every_axis_it_can_have(segmentor, tmp_path: Path, capsys) -> None:
    study = GridStudy(_content(segmentor), work_dir=tmp_path / "logs")
    assert study.check()["model segmentor"]["test_images"] > 0
    records = _measured(study, study.jobs({})[::-1])
    # The clean reference only where images are compressed.
    assert len(records) == 2 * 2 * (1 + 2 * 2) + 2 * 2 + 2
    printed = capsys.readouterr()
    assert printed.out == "", "what mmengine prints goes into the log folder"
    assert "Logging error" not in printed.err, "of loggers that were made for the run before"
    assert {r.n_calibration_samples for r in records.values()} == {0, 3, 6}
    part = study.jobs({key: record for key, record in records.items() if record.method != "paired"})[:1]
    again = _measured(GridStudy(_content(segmentor), work_dir=tmp_path / "again"), part)
    assert len(again) == 2 + 1
    assert all(again[key].comparable() == records[key].comparable() for key in again)
    with study.open_log(tmp_path) as log:
        for record in records.values():
            log.add(record)
    result = results_of(study.spec, log)["segmentor"]
    assert result.metrics[0] == "mIoU" and len(result.scenarios) == 4
    assert result.report(tmp_path / "out").is_dir()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"calibration": ["one_class"]}, "calibration of 'segmentor' must be one of representative"),
        ({"methods": [{"method": "population", "reference": "clean"}]}, "not for 'population'"),
    ],
)
def test_what_configs_cannot_have(segmentor, changed: dict, message: str) -> None:
    with pytest.raises(NabnError, match=message):
        GridStudy(_content(segmentor, **changed)).check()


def test_a_missing_checkpoint_is_found_before_the_work(segmentor) -> None:
    content = _content(segmentor)
    content["models"][0]["checkpoint"] = "nothing.pth"
    with pytest.raises(NabnError, match=r"checkpoint 'nothing\.pth' does not exist"):
        GridStudy(content).check()


@pytest.mark.slow
def test_two_processes_on_one_model_give_what_one_gives(segmentor, tmp_path: Path) -> None:
    content = _content(segmentor, jpeg=["none"], methods=["none", "population", "paired"], samples=[4], chips=1)
    # torch's own SyncBatchNorm needs GPUs under several processes.
    options = [f"model.{part}.norm_cfg.type=BN" for part in ("backbone", "decode_head")]
    content["models"][0]["cfg_options"] = options
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps(content))
    keys = []
    for number, launched in (
        ("1", []),
        ("2", ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]),
    ):
        out = tmp_path / number
        command = [sys.executable, *launched, "-m", "aihwkit_nabn.cli", "sweep", str(file), "--out", str(out)]
        command += ["--launcher", "pytorch"] if launched else ["--jobs", "1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (out / "segmentor" / "results.json").is_file()
        with GridStudy(content).open_log(out) as store:
            keys.append({key: record.metrics["mIoU"] for key, record in store.records.items()})
    assert keys[0].keys() == keys[1].keys() and len(keys[0]) == 4
    assert all(keys[1][key] == pytest.approx(value, abs=1.0) for key, value in keys[0].items())
