from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aihwkit_nabn import cli
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.studies import EXECUTORS
from aihwkit_nabn.studies._base import Worker

CONTENT = {
    "version": 1,
    "name": "tiny",
    "chips": 2,
    "models": ["digits"],
    "noise": ["gaussian:sigma=0.1"],
    "methods": ["none", "paired"],
    "samples": [2, 8],
    "test_images": 20,
}


@pytest.fixture
def spec_file(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a tiny sweep with some keys changed."""

    def write(**changed: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(json.dumps({**CONTENT, **changed}))
        return path

    return write


@pytest.fixture
def in_process() -> Any:
    """Register an executor that measures in this process: spawning one takes seconds."""

    def work(study: Any, jobs: Any, workers: int) -> Any:
        worker = Worker(study)
        for job in jobs:
            yield from worker.events(job)

    EXECUTORS.register("in_process")(work)
    yield "in_process"
    EXECUTORS.unregister("in_process")


def test_a_sweep_end_to_end(
    spec_file: Callable[..., Path], in_process: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["sweep", str(spec_file()), "--out", str(out), "--executor", in_process]
    assert run(cli.app, arguments) == 0
    shown = capsys.readouterr().out
    assert "tiny: 6 measurements" in shown and "uncalibrated" in shown and "samples.png" in shown
    folder = out / "digits"
    assert {"results.json", "table.md", "table.csv", "accuracy.png", "samples.png"} <= {
        p.name for p in folder.iterdir()
    }
    result = EvaluationResult.from_json(folder / "results.json")
    assert len(result.records) == 2 * 2 * 2
    before = (out / "records.jsonl").read_bytes(), (folder / "results.json").read_bytes()
    assert run(cli.app, arguments) == 0
    assert ((out / "records.jsonl").read_bytes(), (folder / "results.json").read_bytes()) == before
    capsys.readouterr()
    other = ["sweep", str(spec_file(chips=3)), *arguments[2:]]
    assert run(cli.app, other) == 2
    assert "was made with chips = 2, not 3; use the same, or another --out" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(
    spec_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(cli.app, ["sweep", str(spec_file()), "--out", str(out), "--dry-run"]) == 0
    assert "6 measurements on 2 chips. Nothing was run." in capsys.readouterr().out and not out.exists()


def test_a_dry_run_compares_the_set_up_with_the_folders(
    spec_file: Callable[..., Path], in_process: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    small = {"chips": 1, "samples": [2], "methods": ["none"]}
    assert run(cli.app, ["sweep", str(spec_file(**small)), "--out", str(out), "--executor", in_process]) == 0
    before = (out / "records.jsonl").read_bytes()
    assert "time after programming: 0s" in capsys.readouterr().out
    assert run(cli.app, ["sweep", str(spec_file(**small)), "--out", str(out), "--dry-run"]) == 0
    assert "0 measurements on 0 chips. Nothing was run." in capsys.readouterr().out
    other = spec_file(**small | {"seed": 3})
    assert run(cli.app, ["sweep", str(other), "--out", str(out), "--dry-run"]) == 2
    assert "was made with seed = 0, not 3" in capsys.readouterr().err
    assert (out / "records.jsonl").read_bytes() == before


def test_the_line_to_go_on_has_the_options_that_were_given(
    spec_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(study: Any, jobs: Any, workers: int) -> Any:
        assert workers == 1
        yield from ()
        raise KeyboardInterrupt

    EXECUTORS.register("stopping")(stop)
    (tmp_path / "my own.py").write_text("")
    file, out = spec_file(), tmp_path / "out"
    options = ["--out", str(out), "--jobs", "1", "--executor", "stopping", "--import", str(tmp_path / "my own.py")]
    try:
        assert run(cli.app, ["sweep", str(file), *options]) == 130
    finally:
        EXECUTORS.unregister("stopping")
    assert f"to go on: {shlex.join(['nabn', 'sweep', str(file), *options])}\n" in capsys.readouterr().out


def test_another_version_of_the_users_own_file_is_refused(
    spec_file: Callable[..., Path], in_process: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own_file.py"
    own.write_text("FACTOR = 1\n")
    small = {"chips": 1, "samples": [2], "methods": ["none"]}
    arguments = ["sweep", str(spec_file(**small)), "--out", str(tmp_path / "out"), "--executor", in_process]
    assert run(cli.app, [*arguments, "--import", str(own)]) == 0
    own.write_text("FACTOR = 2\n")
    for more in ([], ["--dry-run"]):
        assert run(cli.app, [*arguments, "--import", str(own), *more]) == 2
        error = capsys.readouterr().err
        assert f"was made with contents of {own} = " in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({"sample": 3}, [], "did you mean 'samples'"),
        ({"models": ["cifar10"]}, [], "does not exist"),
        ({}, ["--executor", "rey"], "unknown executor 'rey', did you mean 'ray'"),
        ({}, ["--launcher", "torch"], "launcher must be one of"),
        ({}, ["--launcher", "pytorch"], "--launcher is for configs"),
        ({}, ["--jobs", "0"], "--jobs"),
        (
            {"models": [{"model": "no.py", "checkpoint": "no.pth"}], "test_images": None},
            [],
            "config 'no.py' does not exist",
        ),
    ],
)
def test_bad_input_is_one_line(
    spec_file: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, Any],
    options: list[str],
    message: str,
) -> None:
    if "no.py" in message:
        pytest.importorskip("mmengine")  # without it, that is the message
    out = tmp_path / "out"
    assert run(cli.app, ["sweep", str(spec_file(**changed)), "--out", str(out), *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1
    assert not (out / "records.jsonl").exists()


def test_a_file_in_the_place_of_the_folder(spec_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = spec_file()
    assert run(cli.app, ["sweep", str(path), "--out", str(path)]) == 2
    assert "out must be a folder" in capsys.readouterr().err


def test_the_live_table() -> None:
    from rich.console import Console

    from aihwkit_nabn.commands._sweep_view import SweepView
    from aihwkit_nabn.results import Record
    from aihwkit_nabn.studies import Progress
    from aihwkit_nabn.studies.grid import all_measurements, parse_spec

    spec = parse_spec({**CONTENT, "noise": [{"preset": "gaussian", "strength": [i / 100 for i in range(30)]}]})
    console = Console(force_terminal=True, width=100, record=True, file=open("/dev/null", "w"))
    view = SweepView(console, spec)
    jobs = all_measurements(spec)
    with view:
        for done, job in enumerate(jobs[:100], start=1):
            place = {"scenario": job.noise, "t_inference": job.t_inference, "chip_seed": job.chip_seed}
            metrics = {"accuracy": 40.0 + done % 2}
            record = Record(**place, method=job.method, method_name="x", metrics=metrics, axes=job.axes())
            view.update(Progress(done=done, total=len(jobs), before=0, latest=record))
        console.print(view._render())
    shown = console.export_text()
    assert "100/180" in shown and "40.5" in shown and "16 of 30 noise settings" in shown
    assert view.done == 100 and view.total == 180


def test_what_cannot_be_imported_is_named_before_anything_runs(spec_file, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    file = spec_file(**{"import": ["no_such_module_anywhere"]})
    assert run(cli.app, ["sweep", str(file), "--out", str(out)]) == 2
    assert "cannot import no_such_module_anywhere: no module 'no_such_module_anywhere'" in capsys.readouterr().err
    assert run(cli.app, ["sweep", str(spec_file()), "--import", str(tmp_path / "none.py"), "--out", str(out)]) == 2
    assert "none.py: no such file" in capsys.readouterr().err and not out.exists()
    assert run(cli.app, ["sweep", str(spec_file(**{"import": [3]})), "--out", str(out)]) == 2
    assert "import must" in capsys.readouterr().err
