"""Configs in sweeps: a job is a chip in mmengine's own runner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.results import RecordLog
from aihwkit_nabn.sweeps import parse_spec, results_of, tasks_of
from aihwkit_nabn.sweeps.run import check_models, described
from aihwkit_nabn.sweeps.worker import Worker


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


@pytest.mark.slow
def test_a_config_with_every_axis_it_can_have(segmentor, tmp_path: Path, capsys) -> None:
    content = _content(segmentor)
    spec = parse_spec(content)
    assert check_models(spec) == {}
    records: dict = {}
    worker = Worker(content, work_dir=str(tmp_path / "logs"))
    for task in reversed(tasks_of(spec, ())):
        worker.measure(task, lambda record: records.update({record.key: record}))
    # The clean reference only where images are compressed.
    assert len(records) == 2 * 2 * (1 + 2 * 2) + 2 * 2 + 2
    printed = capsys.readouterr()
    assert printed.out == "", "what mmengine prints goes into the log folder"
    assert "Logging error" not in printed.err, "of loggers that were made for the run before"
    assert {r.n_calibration_samples for r in records.values()} == {0, 3, 6}
    again: dict = {}
    part = tasks_of(spec, [key for key, record in records.items() if record.method != "paired"])[0]
    Worker(content, work_dir=str(tmp_path / "again")).measure(part, lambda record: again.update({record.key: record}))
    assert len(again) == 2 + 1
    assert all(again[key].comparable() == records[key].comparable() for key in again)
    with RecordLog(tmp_path / "r.jsonl", described(spec)) as store:
        for record in records.values():
            store.add(record)
    result = results_of(spec, store)["segmentor"]
    assert result.metrics[0] == "mIoU" and len(result.scenarios) == 4
    assert result.report(tmp_path / "out").is_dir()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"calibration": ["one_class"]}, "calibration of the config"),
        ({"methods": [{"method": "population", "reference": "clean"}]}, "not for 'population'"),
    ],
)
def test_what_configs_cannot_have(segmentor, changed: dict, message: str) -> None:
    with pytest.raises(NabnError, match=message):
        parse_spec(_content(segmentor, **changed))


def test_a_missing_checkpoint_is_found_before_the_work(segmentor) -> None:
    content = _content(segmentor)
    content["models"][0]["checkpoint"] = "nothing.pth"
    with pytest.raises(NabnError, match=r"checkpoint 'nothing\.pth' of segmentor does not exist"):
        check_models(parse_spec(content))


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
        command += ["--launcher", "pytorch"] if launched else ["--workers", "1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (out / "segmentor" / "results.json").is_file()
        with RecordLog(out / "records.jsonl", described(parse_spec(content))) as store:
            keys.append({key: record.metrics["mIoU"] for key, record in store.records.items()})
    assert keys[0].keys() == keys[1].keys() and len(keys[0]) == 4
    assert all(keys[1][key] == pytest.approx(value, abs=1.0) for key, value in keys[0].items())
