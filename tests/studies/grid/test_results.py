from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.results import Record, RecordLog
from aihwkit_nabn.studies.grid import SweepSpec, all_measurements, parse_spec, results_of
from aihwkit_nabn.studies.grid.jobs import digital_record
from aihwkit_nabn.studies.grid.plots import write_axis_plots
from aihwkit_nabn.studies.grid.study import described

Small = Callable[..., dict[str, Any]]


def _value(job: Any, position: int | None) -> float:
    return 50.0 + 5 * job.chip_seed + (job.samples or 0) + (20 if job.method == "paired" else 0) - (position or 0) / 10


def _filled(spec: SweepSpec, path: Path) -> RecordLog:
    with RecordLog(path, described(spec)) as store:
        windows = [None] if spec.stream is None else [20, 40, 60]
        names = {entry.label: entry.method for entry in (spec.methods if spec.stream is None else spec.stream.tracking)}
        for jpeg in spec.jpeg:
            for end in windows:
                metrics = {"accuracy": 99.0 if jpeg is None else 90.0}
                store.add(digital_record("digits", jpeg, metrics, end))
        for job in reversed(all_measurements(spec)):
            for end in windows:
                metrics = {"accuracy": _value(job, end)}
                place = {"scenario": job.noise, "t_inference": job.t_inference, "chip_seed": job.chip_seed}
                methods = {"method": job.method, "method_name": names[job.method]}
                store.add(Record(**place, **methods, metrics=metrics, axes=job.axes(end)))
    return store


def test_a_plain_sweep_is_a_plain_evaluation(small: Small, tmp_path: Path) -> None:
    spec = parse_spec(small(samples=[8], noise=[{"preset": "gaussian", "strength": [0.1, 0.2]}]))
    result = results_of(spec, _filled(spec, tmp_path / "r.jsonl"))["digits"]
    assert result.scenarios == ["gaussian:sigma=0.1", "gaussian:sigma=0.2"]
    assert [record.strength for record in result.records][::6] == [0.1, 0.2]
    assert result.methods == ["uncalibrated", "population", "paired"] and result.digital == {"accuracy": 99.0}
    cell = next(cell for cell in result.cells() if cell.record.method == "paired")
    assert cell.estimate.mean == pytest.approx(50 + 2.5 + 8 + 20) and cell.estimate.n == 2
    folder = result.report(tmp_path / "out")
    assert EvaluationResult.from_json(folder / "results.json").records == result.records


def test_swept_axes_are_scenarios_with_what_does_not_change_repeated(small: Small, tmp_path: Path) -> None:
    methods = ["none", "online", "paired", {"method": "paired", "reference": "clean"}]
    spec = parse_spec(small(methods=methods, jpeg=["none", 30], calibration=["representative", "one_class"]))
    result = results_of(spec, _filled(spec, tmp_path / "r.jsonl"))["digits"]
    assert len(result.scenarios) == 8
    assert "gaussian:sigma=0.1, JPEG 30, one class, 2 images" in result.scenarios
    for scenario in result.scenarios:
        labels = {record.method for record in result.records if record.scenario == scenario}
        more = {"paired, clean reference", "digital, same images"} if "JPEG 30" in scenario else set()
        assert labels == {"uncalibrated", "online", "paired"} | more
    rows = {r.metrics["accuracy"] for r in result.records if r.method == "digital, same images"}
    assert rows == {90.0} and result.digital == {"accuracy": 99.0}
    assert result.report(tmp_path / "out").is_dir()


def test_windows_of_a_stream(small_stream: Small, tmp_path: Path) -> None:
    spec = parse_spec(small_stream())
    result = results_of(spec, _filled(spec, tmp_path / "r.jsonl"))["digits"]
    assert [name.rpartition(", ")[2] for name in result.scenarios] == ["up to 20", "up to 40", "up to 60"]
    assert result.methods[:3] == ["uncalibrated", "online", "paired, every 20"]
    settings = result.settings
    assert settings["sweep"]["stream"]["images"] == 60 and settings["versions"]["torch"]
    assert set(settings["conversion"]) == set(result.scenarios)


@pytest.mark.parametrize(
    ("changed", "files"),
    [
        ({}, ["samples.png"]),
        ({"samples": [4], "jpeg": ["none", 30, 10]}, ["jpeg.png"]),
        ({"samples": [4], "calibration": ["representative", "other_data"]}, ["calibration.png"]),
        ({"samples": [4]}, []),
        (
            {"noise": [{"preset": "gaussian", "strength": [i / 100 for i in range(10)]}]},
            ["samples.png", "samples_2.png"],
        ),
    ],
)
def test_a_plot_per_axis(small: Small, tmp_path: Path, changed: dict[str, Any], files: list[str]) -> None:
    spec = parse_spec(small(**changed))
    store = _filled(spec, tmp_path / "r.jsonl")
    written = write_axis_plots(spec, "digits", store.sorted_records(), tmp_path / "plots")
    assert [path.name for path in written] == files
    for path in written:
        pixels = matplotlib.image.imread(path)
        assert min(pixels.shape[:2]) > 300 and pixels[..., :3].std() > 0.05
        panel = pixels[:, : int(0.7 * pixels.shape[1]), :3]  # without the legend
        for color in ((0x77, 0x77, 0x77), (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
            assert (abs(panel - [part / 255 for part in color]).max(-1) < 0.02).sum() > 50, "a line is out of sight"


def test_a_plot_of_a_stream(small_stream: Small, tmp_path: Path) -> None:
    spec = parse_spec(small_stream())
    store = _filled(spec, tmp_path / "r.jsonl")
    (path,) = write_axis_plots(spec, "digits", store.sorted_records(), tmp_path)
    assert path.name == "position.png" and path.stat().st_size > 5000


def test_each_number_stands_under_the_noise_and_time_that_it_was_measured_at(small: Small, tmp_path: Path) -> None:
    noise = ["gaussian:sigma=0.03", "pcm", "gaussian:sigma=0.1"]  # of these only one changes with time
    spec = parse_spec(small(noise=noise, time=["1d", "1y"], samples=[2], methods=["none"], chips=1))
    measured = {(job.noise, job.t_inference) for job in all_measurements(spec)}
    day, year = 86_400.0, 31_557_600.0
    assert measured == {(noise[0], day), (noise[1], day), (noise[1], year), (noise[2], day)}
    with RecordLog(tmp_path / "r.jsonl", described(spec)) as log:
        log.add(digital_record("digits", None, {"accuracy": 99.0}))
        for number, job in enumerate(all_measurements(spec)):
            place = {"scenario": job.noise, "t_inference": job.t_inference, "chip_seed": job.chip_seed}
            metrics = {"accuracy": float(number)}
            log.add(Record(**place, method=job.method, method_name="none", metrics=metrics, axes=job.axes()))
    result = results_of(spec, log)["digits"]
    found = {record.scenario: record.metrics["accuracy"] for record in result.records}
    expected = {}
    for number, job in enumerate(all_measurements(spec)):
        name = job.noise if job.noise != "pcm" else f"pcm, {'1d' if job.t_inference == day else '1y'}"
        expected[name] = float(number)
    assert found == expected and len(found) == 4
