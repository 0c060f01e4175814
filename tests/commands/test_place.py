from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aihwkit_nabn.cli import app
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.results.placement import Placement
from aihwkit_nabn.results.placing import FIRST_LAST

QUICK = ["--search-chips", "1", "--chips", "2", "--test-images", "60", "--calibration-images", "32"]
NOISE = ["--noise", "gaussian:sigma=0.15"]


def _run(command: str, *arguments: str):
    return CliRunner().invoke(app, [command, *arguments])


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("place")
    done = _run("place", "digits", *QUICK, *NOISE, "--search-images", "60", "--loss", "4", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "everything on tiles" in done.output and FIRST_LAST in done.output
    assert "The bound of 4 " in done.output and "images of the train set" in done.output
    return out


def test_files_and_going_on(placed: Path) -> None:
    names = ["placement.json", "placement.jsonl", "placement.md", "placement.png"]
    assert sorted(path.name for path in placed.iterdir() if path.is_file()) == names
    found = Placement.from_json(placed / "placement.json")
    assert found.exclude and found.method == "low_rank" and found.bound == 4 and found.noise == NOISE[1]
    assert found.network.startswith("DigitsNet ")
    table = (placed / "placement.md").read_text()
    assert "| placement | " in table and f"| {found.exclude[0]} | " in table
    assert (placed / "placement.png").stat().st_size > 5000
    log = (placed / "placement.jsonl").read_text()
    options = ["digits", *QUICK, *NOISE, "--search-images", "60", "--out", str(placed), "--resume"]
    again = _run("place", *options, "--loss", "4")
    assert again.exit_code == 0 and (placed / "placement.jsonl").read_text() == log, "nothing is measured twice"
    with pytest.raises(NabnError, match="was made with --noise = 'gaussian:sigma=0.15', not 'pcm'"):
        raise _run("place", *options, "--noise", "pcm").exception


def test_another_bound_takes_up_what_was_measured(placed: Path, tmp_path: Path) -> None:
    (tmp_path / "placement.jsonl").write_text((placed / "placement.jsonl").read_text())
    before = len((placed / "placement.jsonl").read_text().splitlines())
    options = ["digits", *QUICK, *NOISE, "--search-images", "60", "--out", str(tmp_path), "--resume"]
    done = _run("place", *options, "--loss", "90")
    assert done.exit_code == 0 and "The bound of 90 holds" in done.output
    assert Placement.from_json(tmp_path / "placement.json").exclude == ()
    assert len((tmp_path / "placement.jsonl").read_text().splitlines()) == before, "every row was there"


def test_the_placement_is_what_is_tested(placed: Path, tmp_path: Path) -> None:
    file = str(placed / "placement.json")
    options = ["digits", *NOISE, "--chips", "2", "--test-images", "60", "--calibration-images", "32"]
    found = Placement.from_json(file)
    same = f"low_rank:budget={found.options['budget']}"
    names = [part for name in found.exclude for part in ("--exclude", name)]
    metrics = []
    for number, how in enumerate((["--placement", file], ["--exclude", file], names)):
        out = tmp_path / str(number)
        done = _run("test", *options, "--methods", same, *how, "--out", str(out))
        assert done.exit_code == 0, done.output
        assert "was found with" not in done.output
        result = EvaluationResult.from_json(next(out.glob("*.json")))
        assert result.settings["exclude"] == list(found.exclude)
        metrics.append([record.metrics["accuracy"] for record in result.records if record.method_name == "low_rank"])
    assert metrics[0] == metrics[1] == metrics[2]
    losses = [json.loads(line) for line in (placed / "placement.jsonl").read_text().splitlines()[1:]]
    kept, label = " ".join(sorted(found.exclude)), f"low_rank (budget={found.options['budget']})"
    place = {"phase": "verify", "kept": kept}
    verified = [
        r["metrics"]["accuracy"]
        for line in losses
        if (r := line.get("record", {})).get("axes") == place and r["method"] == label
    ]
    assert metrics[0] == verified and len(verified) == 2


def test_another_method_is_said(placed: Path, tmp_path: Path) -> None:
    options = ["digits", "--chips", "1", "--test-images", "20", "--calibration-images", "16", "--out", str(tmp_path)]
    done = _run("test", *options, *NOISE, "--methods", "paired", "--placement", str(placed / "placement.json"))
    assert done.exit_code == 0 and "was found with low_rank:budget=" in done.output and NOISE[1] in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "0"], "loss must be .* > 0, got 0.0"),
        (["--loss", "nan"], "loss must be"),
        (["--method", "none"], "method must be one that calibrates"),
        (["--method", "paired,low_rank"], "--method must be one method, got 'paired,low_rank'"),
        (["--method", "paired", "--budgets", "0.1"], "budgets are for methods that correct layers"),
        (["--budgets", "a"], "--budgets must be numbers"),
        (["--exclude", "conv9"], "exclude names 'conv9'"),
        (["--exclude", "gone.json"], "no placement file gone.json"),
    ],
)
def test_bad_options_are_named(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(NabnError, match=message):
        raise _run("place", "digits", *options, "--out", str(tmp_path)).exception
