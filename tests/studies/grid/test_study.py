from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from aihwkit_nabn.calibration import calibrate
from aihwkit_nabn.chip.variation import variation_of
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import Scenario, evaluate
from aihwkit_nabn.evaluation.methods import method_specs
from aihwkit_nabn.results import Record
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.studies import run_study
from aihwkit_nabn.studies._base import Worker
from aihwkit_nabn.studies.grid import ChipJob, GridStudy, parse_spec, results_of
from aihwkit_nabn.studies.grid.stream import times_of
from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings, load_workload

Small = Callable[..., dict[str, Any]]


def _measure(content: dict[str, Any], jobs: Sequence[ChipJob] | None = None) -> dict[str, dict[str, Any]]:
    study = GridStudy(content)
    worker = Worker(study)
    events = [event for job in (study.jobs({}) if jobs is None else jobs) for event in worker.events(job)]
    return {record.key: record.comparable() for record in events if isinstance(record, Record)}


def test_records_are_the_same_in_any_order_and_in_parts(small: Small) -> None:
    content = small(methods=["none", "online", "population", "paired"], jpeg=["none", 20])
    jobs = GridStudy(content).jobs({})
    forwards = _measure(content, jobs)
    parts = [(each,) for job in reversed(jobs) for each in reversed(job)]
    assert _measure(content, parts) == forwards
    assert sum(record["method"] == "digital" for record in forwards.values()) == 2


@pytest.mark.parametrize("noise", ["gaussian:sigma=0.1", "crossbar"])
def test_records_are_those_of_evaluate(small: Small, noise: str) -> None:
    """The same request gives the same numbers: methods that draw, converters with ranges, and all."""
    names = ["none", "population", "paired", "low_rank", "distill:steps=2", "auto"]
    methods = [*names[:4], {"method": "distill", "options": {"steps": 2}}, "auto"]
    content = small(samples=[16], noise=[noise], time=["1h"], methods=methods, seed=3, test_batch=20)
    content["calibration_batch"] = 8
    records = _measure(content)
    workload = load_workload("digits", LoadSettings(seed=3, test_images=40, batch_size=20))
    specs = method_specs(names)
    result = evaluate(
        workload.model,
        scenarios=[Scenario(name="x", rpu_config=parse_preset(noise), t_inference="1h")],
        methods=specs,
        chips=2,
        seed=3,
        calibration_batches=workload.calibration_sets(
            specs, CalibrationRequest(n=16, seed=3, batch_size=8), ranges=True
        ),
        eval_fn=workload.eval_fn,
        forward_fn=workload.forward_fn,
        reference_forward_fn=workload.reference_forward_fn,
        progress=False,
    )
    found = {(r["method_name"], r["chip_seed"]): (r["metrics"], r["note"]) for r in records.values()}
    for expected in result.records:
        assert found[expected.method_name, expected.chip_seed] == (expected.metrics, expected.note)


def test_too_few_images_are_found_before_any_work(small: Small) -> None:
    with pytest.raises(NabnError, match="samples must be at most"):
        GridStudy(small(samples=[5000])).check()
    with pytest.raises(NabnError, match="test_images must be at most"):
        GridStudy(small(test_images=5000)).check()
    assert GridStudy(small()).check()["model digits"]["test_images"] == 40


def test_conversions_are_told_with_what_they_were_verified_on(small: Small, tmp_path: Path) -> None:
    study = GridStudy(small(chips=1, methods=["none"], samples=[2]))
    with study.open_log(tmp_path) as log:
        run_study(study, log)
    assert "verified on" in log.notes["conversion digits gaussian:sigma=0.1"]
    (text,) = results_of(study.spec, log)["digits"].settings["conversion"].values()
    assert "verified on" in text


def test_the_conversion_of_a_stream_is_verified(small_stream: Small, tmp_path: Path) -> None:
    content = small_stream()
    content["stream"]["tracking"] = ["none"]
    study = GridStudy(content)
    with study.open_log(tmp_path) as log:
        run_study(study, log)
    (text,) = set(results_of(study.spec, log)["digits"].settings["conversion"].values())  # one for all windows
    assert "verified on" in text


def test_a_stream_meets_the_same_noise_however_it_is_tracked(small_stream: Small) -> None:
    tracking = ["none", {"method": "paired", "at": [40]}, {"method": "paired", "at": [0], "label": "first"}]
    content = small_stream()
    content["stream"]["tracking"] = tracking
    jobs = GridStudy(content).jobs({})
    records = _measure(content, jobs)
    of = {
        label: [r["metrics"] for r in records.values() if r["method"] == label]
        for label in ("uncalibrated", "paired", "first", "digital")
    }
    assert all(len(windows) == 3 for windows in of.values())
    assert of["paired"][:2] == of["uncalibrated"][:2], "nothing differs before the first calibration"
    backwards = [job[::-1] for job in jobs]
    assert _measure(content, backwards) == records
    assert [r["n_calibration_samples"] for r in records.values() if r["method"] == "paired"] == [0, 0, 16]


def test_calibrations_along_a_stream_meet_the_noise_of_their_place(
    small_stream: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []

    def watched(analog: nn.Module, *args: Any, **options: Any) -> Any:
        variation = variation_of(analog)
        assert variation is not None
        places.append(variation.n_samples)
        return calibrate(analog, *args, **options)

    monkeypatch.setattr("aihwkit_nabn.evaluation.protocol.calibrate", watched)
    content = small_stream()
    content["stream"]["tracking"] = [{"method": "paired", "every": 20}]
    _measure(content)
    assert places == [0, 20, 40]


def test_a_stream_that_drifts(small_stream: Small) -> None:
    content = small_stream(noise=["pcm"])
    content["stream"]["drift"] = {"from": "1h", "to": "100h"}
    spec = parse_spec(content)
    assert spec.stream is not None
    assert times_of(spec.stream, 0.0) == pytest.approx([3600.0, 36_000.0, 360_000.0])
    assert len(_measure(content)) == 3 * 3 + 3


def test_what_a_user_can_mend_names_the_measurement(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    study = GridStudy(small())
    worker = Worker(study)
    job = study.jobs({})[0]
    list(worker.events(job))

    def fail(*given: object) -> None:
        raise NabnError("no images")

    monkeypatch.setattr("aihwkit_nabn.evaluation.protocol.EvaluationProtocol.record", fail)
    with pytest.raises(NabnError, match=r"scenario gaussian:sigma=0.1 .* chip 0 .*model digits: no images"):
        list(worker.events(job))
