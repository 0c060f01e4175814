from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aihwkit_nabn import cli
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.devices import read_fit

HEADER = "device,target [nS],seconds,conductance [nS],chip\n"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Three levels, 20 devices each, two times, three readings."""
    rng = np.random.default_rng(0)
    lines = []
    for device, target in enumerate(np.repeat([1000.0, 5000.0, 10000.0], 20)):
        programmed = target + 300 * rng.standard_normal()
        for seconds in (10, 1000):
            for _ in range(3):
                read = programmed * (seconds / 10) ** -0.05 * (1 + 0.01 * rng.standard_normal())
                lines.append(f"{device},{target},{seconds},{read:.2f},A\n")
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + "".join(lines))
    return path


def test_a_fit_is_written_drawn_and_told(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli.app, ["fit", str(rows)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    path = rows.with_name("rows.fit.json")
    assert f"use it as --noise measured:{path}" in out
    for text in (
        "standard error",
        "chi2 / dof",
        "g_max = 10 uS",
        "360 readings of 60 devices at 3 levels and 2 times, in nS",
    ):
        assert text in out
    assert "Columns not used: chip." in out and "Drift counts from the first reading, 10 s after programming." in out
    fit, x = read_fit(path), np.array([0.5])
    assert fit.exponent is not None and fit.read_spread is not None and fit.exponent(x) == pytest.approx(0.05, rel=0.1)
    assert fit.spread_us(x) == pytest.approx(0.3, rel=0.3) and fit.read_spread(x) == pytest.approx(0.01, rel=0.3)
    about = json.loads(path.read_text())["measurements"]
    assert about["columns_not_used"] == ["chip"] and len(about["levels"]) == 3 and about["last_reading_s"] == 1000
    picture = np.asarray(Image.open(rows.with_name("rows.fit.png")))
    assert min(picture.shape[:2]) > 400 and picture.std() > 10


def test_options(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows.write_text(rows.read_text().replace(" [nS]", ""))
    out = tmp_path / "folder/mine.json"
    assert run(cli.app, ["fit", str(rows), "--unit", "nS", "--g-max", "8000", "--bins", "2", "--out", str(out)]) == 0
    assert read_fit(out).g_max_us == 8.0 and out.with_suffix(".png").is_file()
    assert len(json.loads(out.read_text())["measurements"]["levels"]) == 2


def test_programming_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "target,conductance\n" + "".join(f"{t},{t + d}\n" for t in (1, 2, 3) for d in (-0.2, 0, 0.1, 0.3, 0.1))
    )
    assert run(cli.app, ["fit", str(path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "No drift: that needs the columns seconds and device" in out and "No read noise" in out
    assert read_fit(path.with_suffix(".fit.json")).first_reading_s is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unit", "mS"], "unit must be one of uS, nS, S, got 'mS'"),
        (["--g-max", "20000"], "g_max must be in uS, and measured"),
        (["--out", "fit.yaml"], "--out must end in .json, got 'fit.yaml'"),
        (["--bins", "1"], "--bins"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(
    rows: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cli.app, ["fit", str(rows), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in rows.parent.iterdir()] == ["rows.csv"]


@pytest.mark.slow
def test_a_command_takes_the_fit_and_does_not_go_on_with_another(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cli.app, ["fit", str(rows)]) == 0
    path, out = rows.with_name("rows.fit.json"), tmp_path / "out"
    test = ["test", "digits", "--noise", f"measured:{path}", "--time", "1h", "--chips", "1", "--test-images", "50"]
    test += ["--calibration-images", "50", "--methods", "none", "--out", str(out)]
    assert run(cli.app, test) == 0
    assert run(cli.app, [*test, "--resume"]) == 0
    assert run(cli.app, ["fit", str(rows), "--g-max", "9000"]) == 0
    capsys.readouterr()
    assert run(cli.app, [*test, "--resume"]) == 2
    assert "fit=<" in capsys.readouterr().err
