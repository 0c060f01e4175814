from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from rich.console import Console

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.reporting import (
    markdown_overview,
    markdown_table,
    plot_accuracy,
    print_metrics,
    print_table,
    write_report,
)
from aihwkit_nabn.reporting.folder import plot_names
from aihwkit_nabn.reporting.html import write_html
from aihwkit_nabn.reporting.plot import _axis
from aihwkit_nabn.reporting.style import line_styles
from aihwkit_nabn.results import Record

NAMES = ["none", "population", "ema", "prior", "batch", "online", "paired", "common_mode", "distill"]


def _result(
    scenarios: Sequence[str] = ("quiet", "noisy"),
    methods: Sequence[str] = ("none", "population", "paired"),
    *,
    chips: int = 4,
    scale: float = 1.0,
    strengths: Sequence[float | None] | None = (0.0, 0.06),
    groups: Sequence[str | None] | None = None,
    times: Sequence[float] | None = None,
    metrics: Sequence[str] = ("accuracy",),
) -> EvaluationResult:
    """Accuracy 90 digital; population always hurts by 3, the others bring back three quarters of the loss."""
    random = np.random.default_rng(0)
    records = []
    for index, scenario in enumerate(scenarios):
        for chip in range(chips):
            loss = 10.0 * index + random.uniform(0.5, 1.5)
            for number, method in enumerate(methods):
                gain = {"none": 0.0, "population": -3.0}.get(method, 0.75 * loss - 0.01 * number)
                value = (90.0 - loss + gain + random.normal(0, 0.05)) * scale
                records.append(
                    Record(
                        scenario=scenario,
                        group=groups[index] if groups else None,
                        strength=strengths[index] if strengths else None,
                        t_inference=times[index] if times else 0.0,
                        method="uncalibrated" if method == "none" else method,
                        method_name=method,
                        chip_seed=chip,
                        metrics=dict.fromkeys(metrics, value),
                        seconds_calibration=0.1,
                        seconds_evaluation=0.1,
                        n_calibration_samples=8,
                    )
                )
    return EvaluationResult(records=records, digital=dict.fromkeys(metrics, 90.0 * scale), settings={})


def _printed(result: EvaluationResult, width: int, **options: bool) -> str:
    stream = io.StringIO()
    print_table(result, Console(file=stream, width=width, **options))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("methods", [NAMES[:2], NAMES])
def test_table_shows_every_number_whole(width: int, methods: list[str]) -> None:
    result = _result(("quiet", "Gaussian noise [bold] of 0.06 of the layer's maximum, one day"), methods)
    text = _printed(result, width)
    assert "…" not in text and all(len(line) <= width for line in text.splitlines())
    for cell in result.cells():
        assert f"{cell.estimate.mean:.1f} ± {cell.estimate.half_width:.1f}" in text
    assert text.count("90.0") >= 2 and "[bold]" in text
    assert "Mean over 4 chips ± half of the 95% interval (Student t over the chips)." in text


@pytest.mark.parametrize("width", [50, 60, 66, 70, 80, 90])
def test_no_number_of_a_block_is_cut(width: int) -> None:
    """Columns that may wrap give way to those that may not, whatever there is to wrap."""
    names = ["none", "drift compensation only", "population", "HWA, noise / 4", "paired"]
    result = _result(("gaussian:sigma=0.03", "pcm, 10y"), names, scale=0.01, metrics=["coco/bbox_mAP"])
    text = _printed(result, width)
    assert "…" not in text
    for cell in result.cells():
        assert f"{cell.estimate.mean:.3f} ± {cell.estimate.half_width:.3f}" in text
        if cell.calibrated and width >= 60:
            assert f"{cell.difference.mean:+.3f} ± {cell.difference.half_width:.3f}" in text
        if cell.calibrated and width >= 70:
            assert f" {100 * cell.recovered:.0f}%" in text
    assert (width >= 60) == ("difference\n" in text or "difference " in text)


def test_wide_and_turned_layout() -> None:
    result = _result(methods=NAMES)
    assert "recovered" not in _printed(result, 200) and "recovered" in _printed(result, 80)


def test_best_is_bold_and_worse_is_red_with_a_footnote() -> None:
    result = _result()
    stream = io.StringIO()
    print_table(result, Console(file=stream, width=120, force_terminal=True, color_system="standard"))
    text = stream.getvalue()
    best = next(c.estimate for c in result.cells() if c.record.method == "paired")
    worse = next(c.estimate for c in result.cells() if c.record.method == "population")
    assert f"\x1b[1m{best.mean:.1f} ± {best.half_width:.1f}" in text
    assert f"\x1b[31m{worse.mean:.1f} ± {worse.half_width:.1f}†" in text
    assert "† worse than uncalibrated" in _printed(result, 120)
    assert "worse than uncalibrated" not in _printed(_result(methods=["none", "paired"]), 120)


def test_fractions_have_more_digits() -> None:
    result = _result(scale=0.01)
    estimate = result.cells()[0].estimate
    assert f"{estimate.mean:.3f} ± {estimate.half_width:.3f}" in _printed(result, 120)


def test_a_console_without_unicode() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_table(_result(), Console(file=stream, width=120))
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "+/-" in text and "* worse than uncalibrated" in text


def test_one_chip_has_no_interval() -> None:
    result = _result(chips=1)
    for text in (_printed(result, 120), markdown_table(result)):
        assert "±" not in text and "1 chip: no interval" in text and "nan" not in text.lower()
        assert f"{result.cells()[0].estimate.mean:.1f}" in text


def test_equal_methods_have_no_best() -> None:
    result = _result(scenarios=["quiet"])
    same = [Record(**{**vars(r), "metrics": {"accuracy": 90.0}}) for r in result.records]
    text = markdown_table(EvaluationResult(records=same, digital=result.digital, settings={}))
    assert "**" not in text


def test_markdown_table() -> None:
    lines = markdown_table(_result(("quiet", "a|b"))).splitlines()
    assert lines[0] == "| accuracy | digital | uncalibrated | population | paired |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert lines[2].startswith("| quiet | 90.0 | ") and lines[3].startswith("| a\\|b |")
    assert lines[2].count("**") == 2 and lines[2].count("†") == 1
    assert lines[-1].startswith("† worse than uncalibrated")


def test_markdown_table_with_many_methods_is_turned() -> None:
    lines = markdown_table(_result(methods=NAMES)).splitlines()
    assert lines[0] == "| scenario | method | accuracy | difference | recovered |"
    assert len({line.count(" | ") for line in lines[2:20]}) == 1
    assert any(line.startswith("|  | paired |") and line.endswith("% |") for line in lines)


def test_a_method_missing_in_a_scenario_leaves_its_column_empty() -> None:
    result = _result()
    kept = [r for r in result.records if (r.scenario, r.method) != ("quiet", "population")]
    partial = EvaluationResult(records=kept, digital=result.digital, settings={})
    lines = markdown_table(partial).splitlines()
    columns = [text.strip() for text in lines[2].strip("|").split("|")]
    assert lines[0] == "| accuracy | digital | uncalibrated | paired | population |"
    assert columns[0] == "quiet" and columns[3].startswith("**") and columns[4] == ""
    assert "uncalibrated" in _printed(partial, 120)


LAYOUTS = {
    "strength": {},
    "one chip": {"chips": 1},
    "one scenario": {"scenarios": ["a"], "strengths": [0.1]},
    "times": {"strengths": None, "times": [0.0, 3600.0]},
    "names": {"strengths": None},
    "mixed": {"strengths": [None, 0.1]},
    "groups": {"scenarios": list("abcde"), "strengths": [0.1] * 5, "groups": list("vwxyz")},
    "many names": {"scenarios": [f"a long name {i}" for i in range(9)], "strengths": None, "methods": NAMES},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plot_is_a_png_with_content(tmp_path: Path, layout: str) -> None:
    path = plot_accuracy(_result(**LAYOUTS[layout]), tmp_path / "new" / "plot.png")  # type: ignore[arg-type]
    pixels = image.imread(path)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 600
    assert (pixels[..., :3] < 0.9).any(axis=-1).mean() > 0.005
    edge = np.concatenate([pixels[0, :, :3], pixels[-1, :, :3], pixels[:, 0, :3], pixels[:, -1, :3]])
    assert (edge == 1.0).all()  # nothing is cut off


def test_a_line_per_method_in_its_colour(tmp_path: Path) -> None:
    path = plot_accuracy(_result(methods=NAMES), tmp_path / "plot.png")
    pixels = (image.imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3)
    for style in line_styles(_result(methods=NAMES).records).values():
        wanted = [int(style.color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(pixels - wanted).max(axis=1) <= 1).sum() > 30


def test_plots_are_the_same_every_time_and_leave_matplotlib_alone(tmp_path: Path) -> None:
    settings = dict(matplotlib.rcParams)
    first = plot_accuracy(_result(), tmp_path / "a.png").read_bytes()
    assert plot_accuracy(_result(), tmp_path / "b.png").read_bytes() == first
    assert dict(matplotlib.rcParams) == settings


def test_axes() -> None:
    assert _axis(_result().cells()).position == {"quiet": 0.0, "noisy": 0.06}
    assert _axis(_result().cells()).ticks == {0.0: "0", 0.06: "0.06"}
    crowded = _axis(_result(("a", "b", "c"), strengths=[0.0, 0.01, 1.0]).cells())
    assert crowded.ticks is None and crowded.joined
    times = _axis(_result(("a", "b", "c"), strengths=None, times=[0.0, 3600.0, 86_400.0]).cells())
    assert times.log and times.position == {"a": 360.0, "b": 3600.0, "c": 86_400.0}
    assert times.ticks == {360.0: "0s", 3600.0: "1h", 86_400.0: "1d"}
    for options in (LAYOUTS["names"], LAYOUTS["mixed"], {"strengths": [0.1, 0.1]}):
        assert _axis(_result(**options).cells()).ticks == {0.0: "quiet", 1.0: "noisy"}  # type: ignore[arg-type]


def test_a_method_has_the_same_look_in_every_plot() -> None:
    few, all_of_them = (line_styles(_result(methods=names).records) for names in (NAMES[::-3], NAMES))
    assert all(all_of_them[label] == style for label, style in few.items())
    assert len({style.color for style in all_of_them.values()}) == len(NAMES)
    own = line_styles(_result(methods=["none", "my_method"]).records)
    assert own == line_styles(_result(methods=["none", "my_method"]).records)


def test_variants_of_a_method_share_the_colour_and_differ_in_marks() -> None:
    records = [Record(**{**vars(r), "method": label}) for r in _result().records[1:2] for label in ("a", "b")]
    first, second = line_styles(records).values()
    assert first.color == second.color and first.face != second.face and first.linestyle != second.linestyle


def test_plot_must_be_a_png(tmp_path: Path) -> None:
    with pytest.raises(NabnError, match=r"must end in .png, got .*plot.pdf"):
        plot_accuracy(_result(), tmp_path / "plot.pdf")


def test_report_folder(tmp_path: Path) -> None:
    result = _result(metrics=["coco/bbox_mAP", "accuracy"])
    path = result.report(tmp_path / "out" / "run")
    names = ["accuracy.png", "coco_bbox_mAP.png", "results.json", "table.csv", "table.md"]
    assert sorted(entry.name for entry in path.iterdir()) == names
    assert EvaluationResult.from_json(path / "results.json") == result
    table = pd.read_csv(path / "table.csv")
    assert set(table["metric"]) == set(result.metrics) and len(table) == 12
    text = (path / "table.md").read_text(encoding="utf-8")
    assert "![coco/bbox_mAP](coco_bbox_mAP.png)" in text
    assert "| scenario | method | coco/bbox_mAP | difference | recovered |" in text
    assert json.loads((path / "results.json").read_text())["version"] == 1
    assert write_report(result, path) == path


def _with_metrics(result: EvaluationResult, **metrics: Callable[[float], float]) -> EvaluationResult:
    """Further metrics, each made from the accuracy."""

    def more(values: dict[str, float]) -> dict[str, float]:
        return values | {name.replace("__", "/"): make(values["accuracy"]) for name, make in metrics.items()}

    records = [replace(record, metrics=more(record.metrics)) for record in result.records]
    return EvaluationResult(records=records, digital=more(result.digital), settings={})


def test_the_document_says_everything_once(tmp_path: Path) -> None:
    """The first metric whole, of others the overview, of one with the same values a line, classes as means."""
    result = _with_metrics(_result(), top1=lambda v: v, other=lambda v: v / 2, accuracy__car=lambda v: v - 1)
    text = (result.report(tmp_path) / "table.md").read_text()
    assert text.count("| scenario | method |") == 1 and "![other](other.png)" in text
    assert "## top1\n\nThe same values as accuracy." in text and "| 45.0 | 45.0 |" in text
    classes = text.partition("## accuracy, class by class: quiet\n\n")[2].splitlines()
    assert classes[0] == "| class | digital | uncalibrated | population | paired |" and "| car | 89.0 |" in classes[2]


def test_sizes_that_no_object_has_are_missing_and_said(tmp_path: Path) -> None:
    result = _with_metrics(_result(), coco__bbox_mAP_l=lambda v: -1.0, own=lambda v: -1.0)
    path = result.report(tmp_path)
    assert sorted(entry.name for entry in path.glob("*.png")) == ["accuracy.png", "own.png"]
    note = "Not shown: coco/bbox_mAP_l. The test images have no such objects (COCO reports -1)."
    assert note in (path / "table.md").read_text() and "coco" not in (path / "table.csv").read_text()
    stream = io.StringIO()
    print_metrics(result, Console(file=stream, width=150))
    assert note in stream.getvalue() and stream.getvalue().count("mAP") == 1
    page = write_html(result, tmp_path / "page.html").read_text()
    assert note in page and page.count("mAP_l") == 1


def test_a_comparison_says_which_rows_have_drift_compensation() -> None:
    result = _result()
    assert "drift compensation" not in markdown_table(result)
    names = {"population": "drift_compensation"}
    records = [replace(r, method_name=names.get(r.method, r.method_name)) for r in result.records]
    text = markdown_table(EvaluationResult(records=records, digital=result.digital, settings={}))
    assert "uncalibrated: without drift compensation, which has a row of its own" in text


def test_report_onto_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(NabnError, match="path must be a folder, got the file"):
        _result().report(tmp_path / "taken")


def test_plot_names_are_safe_and_different() -> None:
    names = plot_names(["a/b", "a_b", "../x", "%", "A_B"])
    assert list(names.values()) == ["a_b.png", "a_b_2.png", "x.png", "metric.png", "A_B_3.png"]


def test_overview_has_a_row_per_method_and_a_column_per_scenario() -> None:
    result = _result(("quiet", "a|b"), methods=NAMES)
    lines = markdown_overview(result).splitlines()
    assert lines[0].split(" | ")[1:] == ["quiet", "a\\|b |"]
    assert [line.split(" | ")[0][2:] for line in lines[2 : 3 + len(result.methods)]] == ["digital", *result.methods]
    assert sum("**" in line for line in lines) >= 1
