"""Sweeps in processes: any number of them, killed in the middle, and on a Ray cluster, give the same records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from aihwkit_nabn.errors import MissingDependencyError, NabnError
from aihwkit_nabn.results import Record, RecordLog
from aihwkit_nabn.studies import Note, Progress, Study, run_study
from aihwkit_nabn.studies.grid import GridStudy
from tests.logs import finished_keys

Records = list[dict[str, Any]]


def _run(content: dict[str, Any], out: Path, **options: Any) -> Records:
    study = GridStudy(content)
    with study.open_log(out) as log:
        return [record.comparable() for record in run_study(study, log, **options).sorted_records()]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Records]:
    """A sweep and its records, measured by one process without interruption."""
    content = {
        "version": 1,
        "name": "small",
        "chips": 4,
        "models": ["digits"],
        "noise": [{"preset": "gaussian", "strength": [0.1]}],
        "methods": ["none", "population", "paired"],
        "samples": [2, 8],
        "test_images": 40,
    }
    return content, _run(content, tmp_path_factory.mktemp("one"), workers=1)


@pytest.mark.slow
def test_two_workers_against_one(expected: tuple[dict[str, Any], Records], tmp_path: Path) -> None:
    content, records = expected
    seen: list[Progress] = []
    assert _run(content, tmp_path, workers=2, on_progress=seen.append) == records
    assert seen[0].done == 0 and seen[-1].done == seen[-1].total == 21
    again: list[Progress] = []
    assert _run(content, tmp_path, workers=2, on_progress=again.append) == records
    assert len(again) == 1 and again[0].before == 21, "nothing is measured twice"


@pytest.mark.slow
def test_a_worker_that_is_killed(expected: tuple[dict[str, Any], Records], tmp_path: Path) -> None:
    content, records = expected
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.done == 7 and not killed:
            killed.append(_children(os.getpid())[-1])
            os.kill(killed[0], signal.SIGKILL)

    assert _run(content, tmp_path, workers=2, on_progress=kill) == records
    assert killed


@pytest.mark.slow
def test_the_main_process_is_killed_and_the_sweep_goes_on(
    expected: tuple[dict[str, Any], Records], tmp_path: Path
) -> None:
    content, records = expected
    file = tmp_path / "sweep.json"  # JSON is YAML
    file.write_text(json.dumps(content))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "aihwkit_nabn.cli", "sweep", str(file), "--out", str(out), "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(finished_keys(out / "records.jsonl")) < 5 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    children = _children(process.pid)
    process.kill()
    process.wait()
    kept = finished_keys(out / "records.jsonl")
    assert 5 <= len(kept) < len(records) and children
    while any(_is_alive(child) for child in children):  # workers end when nobody listens
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with (out / "records.jsonl").open("ab") as half:
        half.write(b'{"record": {"model": "dig')  # what a kill in the middle of a write leaves
    seen: list[Progress] = []
    assert _run(content, out, workers=1, on_progress=seen.append) == records
    assert seen[0].before >= len(kept) - 1


@pytest.mark.slow
def test_ctrl_c_keeps_whole_records_and_says_how_to_go_on(
    expected: tuple[dict[str, Any], Records], tmp_path: Path
) -> None:
    content, records = expected
    file, out = tmp_path / "sweep.json", tmp_path / "out"
    file.write_text(json.dumps(content))
    command = [sys.executable, "-m", "aihwkit_nabn.cli", "sweep", str(file), "--out", str(out), "--jobs", "1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would what is started from here.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 300
    while len(finished_keys(out / "records.jsonl")) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=120)
    last = errors.splitlines()[-1:]  # before it may stand how far it was, every half a minute
    assert process.returncode == 130 and "Traceback" not in errors and last == ["nabn: interrupted"]
    assert f"to go on: nabn sweep {file} --out {out}" in shown and "measurements are kept" in shown
    assert 3 <= len(finished_keys(out / "records.jsonl")) < len(records)


class Counting(Study):
    """Three jobs of two records each; the process of a deadly one ends in its middle, as often as it is tried."""

    def __init__(self, deadly: int | None = None) -> None:
        self.deadly = deadly

    def jobs(self, known: Mapping[str, Record]) -> list[int]:
        return [job for job in range(3) if any(record.key not in known for record in self._records(job))]

    def measure(self, job: int, loaded: None) -> Iterator[Record | Note]:
        first, second = self._records(job)
        yield first
        if job == self.deadly:
            os._exit(3)
        yield Note(name=f"note {job}", value=job)
        yield second

    def _records(self, job: int) -> list[Record]:
        place = {"scenario": "x", "t_inference": 0.0, "chip_seed": job, "method_name": "none"}
        return [Record(**place, method=str(index), metrics={"job": float(job)}) for index in (0, 1)]


@pytest.mark.parametrize("workers", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_a_study_is_a_class_of_ones_own(workers: int | None, tmp_path: Path) -> None:
    with RecordLog(tmp_path / "log.jsonl", {}) as log:
        run_study(Counting(), log, workers=workers)
    assert len(log.records) == 6 and log.notes == {f"note {job}": job for job in range(3)}
    with RecordLog(tmp_path / "log.jsonl", {}) as again:
        seen: list[Progress] = []
        run_study(Counting(), again, workers=workers, on_progress=seen.append)
    assert [each.before for each in seen] == [6]


def test_a_process_that_is_not_the_first_takes_part_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with RecordLog(path, {}) as log:
        log.add(Counting()._records(0)[0])
        before = path.read_bytes()
        other = RecordLog(path, {}, rank=1)
        assert len(other.records) == 1 and len(run_study(Counting(), other).records) == 6
    assert path.read_bytes() == before


def test_which_of_a_launchers_processes_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"version": 1, "name": "x", "models": [{"model": "a.py", "checkpoint": "b.pth"}], "noise": "pcm"}
    study = GridStudy(content, launcher="slurm")
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NabnError, match="--launcher slurm is for processes that it has started"):
        study.rank()
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert study.rank() == 3 and GridStudy(content).rank() == 0
    with pytest.raises(NabnError, match="--launcher is for configs .* which 'digits' is not"):
        GridStudy({**content, "models": ["digits"]}, launcher="slurm").rank()


@pytest.mark.slow
def test_a_job_that_kills_its_worker_ends_with_one_error(tmp_path: Path) -> None:
    with RecordLog(tmp_path / "log.jsonl", {}) as log:
        with pytest.raises(NabnError, match="a worker process ended 2 times before it had measured anything"):
            run_study(Counting(deadly=2), log, workers=1)
    assert len(log.records) == 5, "everything else is there, the deadly job's first record too"


def test_a_study_that_never_ends_is_a_defect(tmp_path: Path) -> None:
    class Endless(Counting):
        def jobs(self, known: Mapping[str, Record]) -> list[int]:
            return [0]

    with RecordLog(tmp_path / "log.jsonl", {}) as log, pytest.raises(RuntimeError, match="1 jobs of Endless"):
        run_study(Endless(), log)


@pytest.mark.slow
def test_ray_against_local(expected: tuple[dict[str, Any], Records], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    content, records = expected
    assert _run(content, tmp_path, workers=2, executor="ray") == records
    assert not ray.is_initialized()


def test_without_ray_the_install_line_is_given(
    expected: tuple[dict[str, Any], Records], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'aihwkit-nabn\[ray\]'"):
        _run(expected[0], tmp_path, executor="ray", workers=1)


def _children(pid: int) -> list[int]:
    """Return the worker processes of a process, without multiprocessing's resource tracker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                line = (entry / "cmdline").read_text()
            except OSError:
                continue
            if parent == pid and "spawn_main" in line:
                found.append(int(entry.name))
    return sorted(found)


def _is_alive(pid: int) -> bool:
    try:
        return "Z" not in (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.slow
def test_noise_of_the_users_own_is_known_to_every_worker(tmp_path: Path) -> None:
    file = tmp_path / "sweep_noise.py"
    file.write_text(
        "from aihwkit_nabn.noise import WeightNoiseModel, register_noise_model\n"
        "@register_noise_model('sweep_test_loss')\n"
        "class SweptLoss(WeightNoiseModel):\n"
        "    strength = 'loss'\n"
        "    def __init__(self, loss: float = 0.1) -> None:\n"
        "        super().__init__()\n"
        "        self.loss = loss\n"
        "    def program(self, weights, w_max, generator):\n"
        "        return weights * (1 - self.loss)\n"
    )
    content = {
        "version": 1,
        "name": "own",
        "chips": 2,
        "models": ["digits"],
        "import": str(file),
        "noise": [{"preset": "sweep_test_loss", "strength": [0.9, 0.5]}],
        "methods": ["none"],
        "test_images": 20,
    }
    records = _run(content, tmp_path / "two", workers=2)
    assert records == _run(content, tmp_path / "one", workers=1)
    assert len(records) == 1 + 2 * 2


class Failing(Counting):
    """Raises what cannot be sent from process to process, or not made anew there."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def measure(self, job: int, loaded: None) -> Iterator[Record | Note]:
        yield self._records(job)[0]
        raise Odd(1, 2) if self.kind == "odd" else ValueError(lambda: None)


class Odd(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class Unloadable(Counting):
    """Cannot be made in another process."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise NabnError("no such data here")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "kind", "message"),
    [
        (Failing("odd"), RuntimeError, "a worker process failed:.*1 and 2"),
        (Failing("value"), RuntimeError, "a worker process failed:.*ValueError"),
        (Unloadable(), NabnError, "no such data here"),
    ],
)
def test_errors_of_workers_come_back_as_they_are(
    study: Study, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with RecordLog(tmp_path / "log.jsonl", {}) as log, pytest.raises(kind, match=f"(?s){message}"):
        run_study(study, log, workers=1)


def test_a_log_of_another_network_is_refused(tmp_path: Path) -> None:
    with RecordLog(tmp_path / "log.jsonl", {}) as log:
        log.agree("network", "Net 12")
    with RecordLog(tmp_path / "log.jsonl", {}) as log:
        log.agree("network", "Net 12")
        with pytest.raises(NabnError, match="was made with network = 'Net 12', not 'Net 34'"):
            log.agree("network", "Net 34")
