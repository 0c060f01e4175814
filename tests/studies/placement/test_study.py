"""The study end to end on a network whose first and last layers are the harmless ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import MethodSpec, Scenario
from aihwkit_nabn.reporting.placement import verdict
from aihwkit_nabn.results import Record, RecordLog
from aihwkit_nabn.results.placing import ALL_ON_TILES, FIRST_LAST, FOUND, PlacementResult
from aihwkit_nabn.studies import Progress, run_study
from aihwkit_nabn.studies.placement import PlacementStudy
from aihwkit_nabn.workloads import CalibrationRequest, Workload, load_workload


class Net(nn.Module):
    """Errors of `loud` are multiplied; it is small beside `wide`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.loud = nn.Linear(8, 8)
        self.wide = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.1 * self.first(x)
        return x + 20 * self.loud(x) + self.wide(x) + 0.1 * self.last(x)


IMAGES = torch.randn(160, 8, generator=torch.Generator().manual_seed(1))
TEST = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
SCENARIO = Scenario(name="g", rpu_config=nabn.presets.GaussianWeightNoisePreset(sigma=0.1))


def _workload(net: nn.Module | None = None, *, held_back: bool = True) -> Workload:
    model = (net or Net()).eval()

    def eval_fn_on(images: Tensor) -> Any:
        with torch.no_grad():
            target = model(images)
        spread = target.std()
        return lambda candidate: {
            "closeness": 100 - 100 * float((candidate(images) - target).square().mean().sqrt() / spread),
            "second": 1.0,
        }

    return Workload(
        model=model,
        eval_fn=eval_fn_on(TEST),
        calibration=lambda request: list(IMAGES[: request.n].split(16)),
        held_back=(lambda count, request: eval_fn_on(IMAGES[request.n or 160 :][:count])) if held_back else None,
    )


def _study(workload: Workload | None = None, **changes: Any) -> PlacementStudy:
    given = {
        "scenario": SCENARIO,
        "method": "paired",
        "loss": 5.0,
        "search_chips": 2,
        "chips": 2,
        "request": CalibrationRequest(n=16),
        "search_images": 16,
        **changes,
    }
    return PlacementStudy(workload or _workload(), **given)


def _run(study: PlacementStudy, folder: Path) -> tuple[PlacementResult, dict[str, Record]]:
    with RecordLog(folder / "log.jsonl", {}) as log:
        run_study(study, log)
        return study.result(log.records), dict(log.records)


Done = tuple[PlacementResult, dict[str, Record]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return _run(_study(), tmp_path_factory.mktemp("whole"))


def test_the_loud_layer_is_found_and_is_cheaper_than_first_and_last(
    done: Done,
) -> None:
    result, records = done
    assert result.steps[0].name == "loud" and result.met and result.digital_layers == ("loud",)
    rows = {row.label: row for row in result.rows}
    assert set(rows) == {ALL_ON_TILES, FIRST_LAST, FOUND} and rows[FIRST_LAST].kept == 2
    assert rows[FOUND].loss.mean < 5 < rows[FIRST_LAST].loss.mean
    assert rows[FOUND].share < rows[FIRST_LAST].share, "of two layers as large"
    assert sum(step.share for step in result.steps) == pytest.approx(1.0)
    assert result.steps[0].share == pytest.approx(64 / (3 * 64 + 2 * 512))
    assert "holds" in verdict(result) and "does NOT" not in verdict(result)
    seeds = {row: {r.chip_seed for r in records.values() if r.axes["phase"] == row} for row in ("search", "verify")}
    assert seeds["verify"] == {0, 1} and not seeds["verify"] & seeds["search"]


def test_its_file_gives_the_verified_numbers_elsewhere(tmp_path: Path) -> None:
    workload = _workload()
    study = _study(workload, exclude=("wide.*",))
    result, records = _run(study, tmp_path)
    file = study.placement(records).to_json(tmp_path / "placement.json")
    found = study.placement(records)
    assert found.exclude == ("wide.0", "wide.2", "loud"), "names in place of patterns"
    assert found.layers == ("first", "loud", "wide.0", "wide.2", "last")
    assert result.notes[0] == "Digital throughout, and in no share: wide.0, wide.2."
    methods = [MethodSpec("paired")]
    again = workload.evaluate([SCENARIO], methods, CalibrationRequest(n=16), chips=2, exclude=file, progress=False)
    values = [again.digital["closeness"] - r.metrics["closeness"] for r in again.records if r.method == "paired"]
    assert values == list(result.placement.losses)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [4, 13, 21])  # among layers, in the search, in the verification
def test_killed_anywhere_it_goes_on_to_the_same_records(after: int, done: Done, tmp_path: Path) -> None:
    whole, expected = done

    def kill(progress: Progress) -> None:
        if progress.done == after:
            raise Killed

    with RecordLog(tmp_path / "log.jsonl", {}) as log, pytest.raises(Killed):
        run_study(_study(), log, on_progress=kill)
    result, records = _run(_study(), tmp_path)
    assert {key: r.comparable() for key, r in records.items()} == {k: r.comparable() for k, r in expected.items()}
    assert result == whole


def test_corrections_compete_with_layers(tmp_path: Path) -> None:
    result, _ = _run(_study(method="low_rank", budgets=[0.3, 0.0]), tmp_path)
    labels = {point.label for point in result.searched}
    assert labels == {"low_rank (budget=0.0)", "low_rank (budget=0.3)"}
    free = [point for point in result.searched if point.label == "low_rank (budget=0.0)"]
    assert all(point.corrections == 0 for point in free)
    dear = [point for point in result.searched if point.label == "low_rank (budget=0.3)"]
    assert all(0 < point.corrections <= 0.3 for point in dear)
    within = [p.share for p in result.searched if p.loss.n == 2 and p.loss.mean + p.loss.std / 2**0.5 <= 5]
    best = next(p for p in result.searched if p.label == result.method and p.kept == len(result.digital_layers))
    assert best.share == min(within)


class Sided(nn.Module):
    """Has outputs beside the one that is measured, of layers that are cheap to keep digital."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.sides = nn.ModuleList(nn.Linear(8, 2) for _ in range(3))
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.first(x)
        return (*(side(x) for side in self.sides), self.last(y))


def test_where_the_order_misleads_the_usual_rule_is_taken(tmp_path: Path) -> None:
    model = Sided().eval()

    def eval_fn(candidate: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            got, target = candidate(TEST)[-1], model(TEST)[-1]
        return {"closeness": 100 - 100 * float((got - target).square().mean().sqrt() / target.std())}

    workload = Workload(model=model, eval_fn=eval_fn, calibration=lambda request: list(IMAGES[: request.n].split(16)))
    result, _ = _run(_study(workload, loss=1.0), tmp_path)
    assert {step.name for step in result.steps[:3]} == {"sides.0", "sides.1", "sides.2"}
    assert result.met and set(result.digital_layers) == {"first", "last"}
    assert result.placement.losses == next(row for row in result.rows if row.label == FIRST_LAST).losses


def test_a_bound_that_cannot_be_met_gives_the_best_and_says_so(tmp_path: Path) -> None:
    study = _study(loss=1e-6)
    result, records = _run(study, tmp_path)
    assert not result.met and "No placement with a layer on tiles was within 1e-06" in verdict(result)
    means = {point.kept: point.loss.mean for point in result.searched}
    kept = len(result.digital_layers)
    assert means[kept] == min(means.values()) and kept == len(result.steps) - 1
    assert not study.placement(records).met


def test_methods_that_replace_statistics_calibrate_each_layer_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8)).train()
    for _ in range(20):
        net(IMAGES)
    net.eval()
    study = _study(_workload(net), method="population", search_chips=1, request=CalibrationRequest(n=64))
    found = _single(study)
    for name, other in (("0", "3"), ("3", "0")):
        analog = nabn.convert_to_noise_aware(net, SCENARIO.rpu_config, exclude=other)
        nabn.program_chip(analog, study.search_seeds[0])
        nabn.calibrate(analog, [IMAGES[:64]], method="population")
        with torch.no_grad():
            pairs = [(analog(images), net(images)) for images in IMAGES[64:128].split(16)]
        errors = [float((y - target).square().mean() / target.var(correction=0)) for y, target in pairs]
        assert found[name].metrics["disagreement"] == pytest.approx(sum(errors) / len(errors), rel=1e-4)
        assert max(errors) < 1, "below where it is cut off"


def _single(study: PlacementStudy) -> dict[str, Record]:
    jobs = study.jobs({})
    digital = {record.key: record for job in jobs for record in study.measure(job, None)}
    return {record.axes["layer"]: record for job in study.jobs(digital) for record in study.measure(job, None)}


def test_detections_are_compared_by_blocks(tmp_path: Path) -> None:
    class Found:
        def __init__(self, boxes: Tensor) -> None:
            self.boxes = boxes

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: Tensor) -> Any:
            y = self.net(x)
            return Found(y[y[:, 0] > 0])

    inner = _workload()
    workload = Workload(
        model=Detector().eval(),
        eval_fn=lambda candidate: inner.eval_fn(candidate.net),
        calibration=inner.calibration,
    )
    result, _ = _run(_study(workload), tmp_path)
    assert all(0 < step.disagreement < 1 for step in result.steps)
    assert "Searched on the test images" in result.notes[0]


def test_sent_to_another_process_it_is_the_same_study(tmp_path: Path) -> None:
    import pickle

    from aihwkit_nabn.studies._base import WorkloadSource

    study = PlacementStudy(WorkloadSource(text="digits"), scenario=SCENARIO, loss=1.0, request=CalibrationRequest(n=64))
    assert len(study.groups) == 7 and study.held_back is not None
    again = pickle.loads(pickle.dumps(study))
    assert again.groups == study.groups and again.jobs({}) == study.jobs({})


def test_images_of_the_search_are_neither_calibrated_with_nor_tested_on() -> None:
    workload = load_workload("digits")
    request = CalibrationRequest(n=900)
    calibrated = torch.cat(list(workload.calibration(request)))
    seen: list[Tensor] = []

    class Look(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros(len(x), 10)

    assert workload.held_back is not None
    eval_fn = workload.held_back(100, request)
    assert eval_fn is not None
    eval_fn(Look())
    searched = torch.cat(seen)
    assert searched.shape[0] == 100

    def rows(images: Tensor) -> Iterator[tuple[float, ...]]:
        return (tuple(row.tolist()) for row in images.flatten(1))

    assert not set(rows(searched)) & set(rows(calibrated))
    assert workload.held_back(10**6, CalibrationRequest(n=1000)) is not None
    assert workload.held_back(10, CalibrationRequest(n=10**6)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": 0.0}, "loss must be .* > 0, got 0.0"),
        ({"loss": -1.0}, "loss must be"),
        ({"loss": float("nan")}, "loss must be .*, got nan"),
        ({"loss": "1"}, "loss must be"),
        ({"method": "none"}, "method must be one that calibrates, got 'none'"),
        ({"method": "pared"}, "did you mean 'paired'"),
        ({"budgets": [0.1]}, "budgets are for methods that correct layers, such as low_rank and auto, not 'paired'"),
        ({"method": "low_rank", "budgets": [2.0]}, "budget must be"),
        ({"search_chips": 0}, "search_chips must be an integer >= 1"),
        ({"chips": 0}, "chips must be an integer >= 1"),
        ({"search_images": 0}, "search_images must be an integer >= 1"),
        ({"exclude": "missing.json"}, "no placement file missing.json"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NabnError, match=message):
        _study(**changes)


def test_a_bound_in_another_unit(tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="loss must be below what there is to lose, .* closeness 100, got 100"):
        _run(_study(loss=100.0), tmp_path)


def test_a_network_without_a_layer_to_choose() -> None:
    with pytest.raises(NabnError, match="Linear has no layer inside that could be kept digital"):
        _study(_workload(nn.Linear(8, 8))).jobs({})
