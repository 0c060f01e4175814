from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import Scenario, evaluate
from aihwkit_nabn.results import RecordLog, Results
from aihwkit_nabn.results.layers import BUT, SHARES, WHOLE, loss, ranking, strongest
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.studies import Progress, run_study
from aihwkit_nabn.studies._base import WorkloadSource
from aihwkit_nabn.studies.layers import LayersStudy
from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings, Workload
from tests.tensors import equal, state_of


class Net(nn.Module):
    """`shared` runs twice; `attention` has projections of its own; `fragile` is followed by a factor of fifty."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.shared = nn.Linear(8, 8)
        self.again = self.shared
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fragile = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.shared(self.first(x).relu()))
        x = x + 0.1 * self.attention(x, x, x, need_weights=False)[0]
        return x + 50 * self.fragile(x)


@pytest.fixture
def net() -> nn.Module:
    return Net().eval()


INPUTS = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(1))


def _eval_fn(net: nn.Module):
    with torch.no_grad():
        target = net(INPUTS)
    return lambda model: {"closeness": -float((model(INPUTS) - target).square().mean().sqrt())}


def _scenario(read_noise: float = 0.0) -> Scenario:
    config = nabn.presets.GaussianWeightNoisePreset(sigma=0.1)
    if read_noise:
        config = nabn.presets.GaussianWeightNoisePreset(sigma=0.1, out_noise=read_noise)
    return Scenario(name="noise", rpu_config=config)


def _study(net: nn.Module, *, eval_fn=None, calibration_batches=None, forward_fn=None, **changes) -> LayersStudy:
    def calibration(request):
        return calibration_batches

    workload = Workload(model=net, eval_fn=eval_fn or _eval_fn(net), calibration=calibration, forward_fn=forward_fn)
    return LayersStudy(workload, **{"scenarios": _scenario(), "methods": ["none"], "chips": 3, **changes})


def _measure(net: nn.Module, folder: Path | None = None, **changes) -> Results:
    study = _study(net, **changes)
    with tempfile.TemporaryDirectory() as place, RecordLog((folder or Path(place)) / "log.jsonl", {}) as log:
        return study.result(run_study(study, log).records)


def test_a_workload_may_give_its_batches_by_a_generator(net) -> None:
    """They are kept: each layer, chip and method meets all of them."""

    def generate(request: CalibrationRequest):
        yield from (INPUTS, -INPUTS)

    workload = Workload(model=net, eval_fn=_eval_fn(net), calibration=generate)
    batches = workload.calibration(CalibrationRequest())
    assert [len(list(batches)) for _ in range(2)] == [2, 2]
    scenario = Scenario(name="ranges", rpu_config=parse_preset("crossbar"))  # more passes, to set input ranges
    found = []
    for each in (workload, replace(workload, calibration=lambda request: [INPUTS, -INPUTS])):
        study = LayersStudy(each, scenarios=scenario, methods=["paired"], chips=1)
        found.append([r.comparable() for job in study.jobs({}) for r in study.measure(job, None)])
    assert found[0] == found[1] and {record["n_calibration_samples"] for record in found[0]} == {0, 12}
    used = iter([INPUTS])
    empty = replace(workload, calibration=lambda request: used)
    assert len(empty.calibration(CalibrationRequest())) == 1
    with pytest.raises(NabnError, match="calibration of the workload gave an iterator that is used up"):
        empty.calibration(CalibrationRequest())


def test_a_layer_alone_costs_what_converting_it_alone_costs(net) -> None:
    result = _measure(net)
    assert {"first", "shared", "fragile", "attention.out_proj"} <= set(result.settings[SHARES])
    names = ["first", "shared", "attention"]
    alone = evaluate(
        net, scenarios=_scenario(), methods=["none"], eval_fn=_eval_fn(net), chips=3, exclude=names, progress=False
    )
    ours = [loss(result, record) for record in result.records if record.axis("layer") == "fragile"]
    theirs = [-record.metrics["closeness"] for record in alone.records]
    assert ours == pytest.approx(theirs, rel=1e-4) and min(ours) > 0.1


class Held(Net):
    """Reaches its layers past the module tree."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, first = [self.fragile], self.first
        self.op = lambda x: first(x).relu()
        self.pair = (self.shared, functools.partial(self.shared))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pair[1](self.pair[0](self.op(x)))
        x = x + 0.1 * self.attention(x, x, x, need_weights=False)[0]
        return x + 50 * self.layers[0](x)


def test_layers_that_are_held_past_the_tree_cost_the_same(net) -> None:
    held = Held().eval()
    assert torch.equal(held(INPUTS), net(INPUTS))
    ours, theirs = (_measure(model, chips=1, reverse=True) for model in (held, net))
    assert [record.comparable() for record in ours.records] == [record.comparable() for record in theirs.records]


def test_all_layers_cost_what_the_whole_chip_costs(net) -> None:
    result = _measure(net)
    whole = evaluate(net, scenarios=_scenario(), methods=["none"], eval_fn=_eval_fn(net), chips=3, progress=False)
    ours = [loss(result, record) for record in result.records if record.axis("layer") == WHOLE]
    assert ours == pytest.approx([-record.metrics["closeness"] for record in whole.records], rel=1e-6)


def test_the_fragile_layer_comes_first_and_saves_most(net) -> None:
    result = _measure(net, reverse=True)
    only, but = ranking(result, "noise"), ranking(result, "noise", BUT)
    assert only[0].layer == but[0].layer == WHOLE
    assert only[1].layer == but[1].layer == "fragile"
    assert only[1].share == pytest.approx(result.settings[SHARES]["fragile"])
    assert strongest(only, "uncalibrated", 1)[0].layer == "fragile"
    assert but[1].losses["uncalibrated"].mean < but[0].losses["uncalibrated"].mean


def test_calibration_lowers_the_loss_and_is_undone(net) -> None:
    result = _measure(net, methods=["none", "paired"], calibration_batches=[INPUTS.clone()])
    first = ranking(result, "noise")[1]
    assert first.losses["paired"].mean < first.losses["uncalibrated"].mean
    plain = _measure(net)
    uncalibrated = [record.comparable() for record in result.records if record.method == "uncalibrated"]
    assert uncalibrated == [record.comparable() for record in plain.records]


def test_a_shuffling_loader_gives_every_layer_the_same_images(net) -> None:
    loader = DataLoader(INPUTS, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(3))
    seen: list[Tensor] = []

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        if model is not net:
            seen.append(batch)
        return model(batch)

    _measure(net, methods=["paired"], chips=1, calibration_batches=loader, forward_fn=forward)
    # Layer by layer, each batch is met as often as the network has layers to be corrected.
    batches = {tuple(batch.flatten().tolist()) for batch in seen}
    assert len(seen) > 6 and len(batches) == 3, "another order would have made other batches"


def test_the_model_is_as_before(net) -> None:
    state = state_of(net)
    modules = [id(module) for module in net.modules()]
    generator = torch.random.get_rng_state()
    _measure(net, scenarios=_scenario(read_noise=0.02), chips=1, reverse=True)
    assert [id(module) for module in net.modules()] == modules
    assert equal(net.state_dict(), state)
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_known_losses_are_not_measured_again(net, tmp_path: Path) -> None:
    result = _measure(net, tmp_path)
    lines = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "log.jsonl").write_text("".join(lines[:-2]))
    calls: list[int] = []
    eval_fn = _eval_fn(net)

    def counting(model: nn.Module) -> dict[str, float]:
        calls.append(1)
        return eval_fn(model)

    seen: list[Progress] = []
    study = _study(net, eval_fn=counting)
    with RecordLog(tmp_path / "log.jsonl", {}) as log:
        again = study.result(run_study(study, log, on_progress=seen.append).records)
    assert [record.comparable() for record in again.records] == [record.comparable() for record in result.records]
    assert len(calls) == 3, "the digital model and the two that were missing"
    assert seen[0].before == len(result.records) - 2 and seen[-1].done == seen[-1].total == len(result.records)


@pytest.mark.slow
def test_processes_give_the_same(tmp_path: Path) -> None:
    records = []
    for workers in (1, 2):
        study = LayersStudy(
            WorkloadSource(text="digits", settings=LoadSettings(test_images=30)),
            scenarios=_scenario(),
            methods=["none", "paired"],
            chips=2,
            request=CalibrationRequest(n=8),
        )
        with RecordLog(tmp_path / f"{workers}.jsonl", {}) as log:
            run_study(study, log, workers=workers)
        records.append([record.comparable() for record in log.sorted_records()])
    assert records[0] == records[1] and len(records[0]) == 2 * 2 * 8


def test_processes_need_a_workload_by_name(net, tmp_path: Path) -> None:
    with RecordLog(tmp_path / "log.jsonl", {}) as log, pytest.raises(NabnError, match="need a workload by name"):
        run_study(_study(net), log, workers=1)


def test_the_file_gives_back_what_was_written(net, tmp_path: Path) -> None:
    result = _measure(net, chips=1)
    assert Results.from_json(result.to_json(tmp_path / "sensitivity.json")) == result


def test_bad_arguments_are_refused_before_anything_runs(net) -> None:
    with pytest.raises(NabnError, match="chips"):
        _measure(net, chips=0)
    with pytest.raises(NabnError, match="calibration_batches"):
        _measure(net, methods=["paired"])
