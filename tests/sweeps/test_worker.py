from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from aihwkit_nabn.data.jpeg import compress_images
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import MethodSpec, Scenario, evaluate
from aihwkit_nabn.results import Record
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.sweeps import Task, parse_spec, tasks_of
from aihwkit_nabn.sweeps.classifier import Classifier
from aihwkit_nabn.sweeps.run import check_models
from aihwkit_nabn.sweeps.sets import chosen_images
from aihwkit_nabn.sweeps.stream import times_of
from aihwkit_nabn.sweeps.worker import Worker

Small = Callable[..., dict[str, Any]]


def _measure(content: dict[str, Any], tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    worker, records = Worker(content), []
    for task in tasks:
        worker.measure(task, records.append)
    return {record.key: record.comparable() for record in records}


def test_records_are_the_same_in_any_order_and_in_parts(small: Small) -> None:
    content = small(methods=["none", "online", "population", "paired"], jpeg=["none", 20])
    tasks = tasks_of(parse_spec(content), ())
    forwards = _measure(content, tasks)
    parts = [replace(task, jobs=(job,)) for task in reversed(tasks) for job in reversed(task.jobs)]
    assert _measure(content, parts) == forwards
    assert sum(record["method"] == "digital" for record in forwards.values()) == 2


def test_a_record_is_what_evaluate_measures(small: Small) -> None:
    content = small(samples=[8], chips=1)
    spec = parse_spec(content)
    records = _measure(content, tasks_of(spec, ()))
    bench = Classifier(spec, spec.models[0])
    source, indices = chosen_images(bench.bench, "representative", 8, 0, 0)
    noise = spec.noise[0]
    result = evaluate(
        bench.bench.model,
        scenarios=[Scenario(name="x", rpu_config=parse_preset(noise))],
        methods=["none", MethodSpec("paired")],
        chips=1,
        calibration_batches=[source.plain(indices, None)],
        eval_fn=lambda model: {
            "accuracy": float((model(bench.test_set(None).images).argmax(1) == bench.test_set(None).labels).sum() / 0.4)
        },
        progress=False,
    )
    for expected in result.records:
        found = next(r for r in records.values() if r["method"] == expected.method)
        assert found["metrics"]["accuracy"] == pytest.approx(expected.metrics["accuracy"])
        assert found["n_calibration_samples"] == expected.n_calibration_samples


def test_calibration_images(small: Small) -> None:
    spec = parse_spec(small())
    classifier = Classifier(spec, spec.models[0])
    bench = classifier.bench
    source, many = chosen_images(bench, "representative", 64, 0, 0)
    assert source is bench.train and len(set(many)) == 64
    assert chosen_images(bench, "representative", 10, 5, 0)[1] == many[:10], "a smaller set is part of a larger one"
    assert chosen_images(bench, "representative", 10, 0, 1)[1] != many[:10]
    for chip in (0, 3, 13):
        source, indices = chosen_images(bench, "one_class", 20, chip, 0)
        assert set(source.labels[torch.tensor(indices)].tolist()) == {chip % 10}
    assert chosen_images(bench, "other_data", 8, 0, 0)[0] is bench.other
    with pytest.raises(NabnError, match="samples must be at most .* one_class"):
        chosen_images(bench, "one_class", 500, 0, 0)


def test_augmented_images_do_not_depend_on_their_neighbours(small: Small) -> None:
    spec = parse_spec(small())
    train = Classifier(spec, spec.models[0]).bench.train
    many = train.augmented([5, 9, 2], None, 1)
    assert torch.equal(train.augmented([9], None, 1)[0], many[1])
    assert not torch.equal(many, train.plain([5, 9, 2], None)) and not torch.equal(
        many, train.augmented([5, 9, 2], None, 2)
    )


def test_with_the_clean_reference_a_batch_is_a_pair_of_twins(small: Small) -> None:
    spec = parse_spec(small(jpeg=[10], methods=[{"method": "paired", "reference": "clean"}]))
    classifier = Classifier(spec, spec.models[0])
    pairs = list(
        classifier.calibration_set(
            samples=70, calibration="representative", images="plain", jpeg=10, clean_reference=True
        )
    )
    assert [len(clean) for clean, _ in pairs] == [64, 6]
    for clean, seen in pairs:
        assert torch.equal(seen, compress_images(clean, 10)) and not torch.equal(seen, clean)
    seen_by: dict[str, torch.Tensor] = {}
    for name, run in (("chip", classifier.forward), ("reference", classifier.reference_forward)):
        run(lambda images, name=name: seen_by.update({name: images}), pairs[0])  # type: ignore[misc,arg-type]
    assert torch.equal(seen_by["reference"], pairs[0][0]) and torch.equal(seen_by["chip"], pairs[0][1])


def test_other_images_are_of_the_network_s_size(small: Small) -> None:
    bench = Classifier(parse_spec(small()), parse_spec(small()).models[0]).bench
    other = bench.other.plain([0, 1], 10)
    assert other.shape == bench.train.plain([0, 1], None).shape and 0 <= other.min() < other.max() <= 1


def test_too_few_images_are_found_before_any_work(small: Small) -> None:
    with pytest.raises(NabnError, match="samples must be at most"):
        check_models(parse_spec(small(samples=[5000])))
    with pytest.raises(NabnError, match="test_images must be at most"):
        check_models(parse_spec(small(test_images=5000)))
    assert "conversion digits gaussian:sigma=0.1" in check_models(parse_spec(small()))


def test_a_stream_meets_the_same_noise_however_it_is_tracked(small_stream: Small) -> None:
    tracking = ["none", {"method": "paired", "at": [40]}, {"method": "paired", "at": [0], "label": "first"}]
    content = small_stream()
    content["stream"]["tracking"] = tracking
    spec = parse_spec(content)
    tasks = tasks_of(spec, ())
    records = _measure(content, tasks)
    of = {
        label: [r["metrics"] for r in records.values() if r["method"] == label]
        for label in ("uncalibrated", "paired", "first", "digital")
    }
    assert all(len(windows) == 3 for windows in of.values())
    assert of["paired"][:2] == of["uncalibrated"][:2], "nothing differs before the first calibration"
    backwards = [replace(task, jobs=task.jobs[::-1]) for task in tasks]
    assert _measure(content, backwards) == records
    assert [r["n_calibration_samples"] for r in records.values() if r["method"] == "paired"] == [0, 0, 16]


def test_a_stream_that_drifts(small_stream: Small) -> None:
    content = small_stream(noise=["pcm"])
    content["stream"]["drift"] = {"from": "1h", "to": "100h"}
    spec = parse_spec(content)
    assert spec.stream is not None
    assert times_of(spec.stream, 0.0) == pytest.approx([3600.0, 36_000.0, 360_000.0])
    assert len(_measure(content, tasks_of(spec, ()))) == 3 * 3 + 3


def test_what_a_user_can_mend_names_the_measurement(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    content = small()

    def fail(self: Classifier, task: Task, emit: Callable[[Record], None]) -> None:
        raise NabnError("no images")

    monkeypatch.setattr(Classifier, "measure", fail)
    with pytest.raises(NabnError, match=r"scenario gaussian:sigma=0.1 .* chip 0 .*model digits: no images"):
        Worker(content).measure(tasks_of(parse_spec(content), ())[0], lambda record: None)
