from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import ConversionError, NabnError, UnknownNameError
from aihwkit_nabn.evaluation import EvaluationResult, MethodSpec, Scenario, evaluate, protocol
from aihwkit_nabn.results import Record, RecordLog
from aihwkit_nabn.simulator import parse_preset
from tests.tensors import equal, generator_states, state_of

ALL = [
    "population",
    "ema",
    "prior",
    "batch",
    "online",
    "paired",
    "common_mode",
    MethodSpec("distill", options={"steps": 2}),
]


def _config(sigma: float = 0.1, read_noise: float = 0.0) -> Any:
    config = nabn.presets.GaussianWeightNoisePreset(sigma=sigma)
    if read_noise:
        config.forward.is_perfect = False
        config.forward.out_noise = read_noise
        config.forward.inp_res = config.forward.out_res = -1
        config.forward.bound_management = type(config.forward.bound_management).NONE
    return config


@pytest.fixture
def scenarios() -> list[Scenario]:
    return [
        Scenario(name="quiet", rpu_config=_config(0.02), group="weights", strength=0.02),
        Scenario(name="noisy", rpu_config=_config(0.2, 0.05), group="weights", strength=0.2),
    ]


@pytest.fixture
def eval_fn(net: nn.Module, images: Callable[..., Tensor]) -> Callable[[nn.Module], dict[str, float]]:
    """Return a metric that any change of the model's outputs changes."""
    inputs = images(12, 50)
    with torch.no_grad():
        target = net(inputs)

    def fit(model: nn.Module) -> dict[str, float]:
        return {"fit": -float((model(inputs) - target).square().mean())}

    return fit


def _run(net: nn.Module, scenarios: Any, eval_fn: Any, batches: Any, **options: Any) -> EvaluationResult:
    options = {"methods": ["population", "paired"], "chips": 2, "progress": False, **options}
    return evaluate(net, scenarios=scenarios, eval_fn=eval_fn, calibration_batches=batches, **options)


def _values(result: EvaluationResult, method: str) -> list[float]:
    return [record.metrics["fit"] for record in result.records if record.method == method]


def test_every_method_on_every_chip_of_every_scenario(net, scenarios, eval_fn, batches) -> None:
    seen: list[Record] = []
    result = _run(net, scenarios, eval_fn, batches, methods=ALL, seed=5, on_record=seen.append)
    names = ["none", "population", "ema", "prior", "batch", "online", "paired", "common_mode", "distill"]
    assert [(r.scenario, r.chip_seed, r.method_name) for r in result.records] == [
        (scenario, chip, name) for scenario in ("quiet", "noisy") for chip in (5, 6) for name in names
    ]
    assert seen == result.records
    assert result.digital == {"fit": 0.0}
    assert (result.records[0].group, result.records[0].strength, result.records[0].t_inference) == (
        "weights",
        0.02,
        0.0,
    )
    samples = {r.method_name: r.n_calibration_samples for r in result.records}
    assert samples == {**dict.fromkeys(names, 10), "none": 0, "batch": 0, "online": 0}
    uncalibrated = [r for r in result.records if r.method_name == "none"]
    assert all(r.seconds_calibration == 0.0 and r.seconds_evaluation > 0.0 for r in uncalibrated)
    assert np.mean(_values(result, "paired")) > np.mean(_values(result, "uncalibrated"))


def test_a_method_has_the_same_chips_and_noise_whatever_else_is_tried(net, scenarios, eval_fn, batches) -> None:
    together = _run(net, scenarios, eval_fn, batches, methods=ALL)
    for name in ("population", "online", "paired"):
        alone = _run(net, scenarios, eval_fn, batches, methods=[name])
        assert _values(alone, name) == _values(together, name)
        assert _values(alone, "uncalibrated") == _values(together, "uncalibrated")


def test_records_are_those_of_the_steps_done_by_hand(net, scenarios, eval_fn, batches) -> None:
    result = _run(net, scenarios, eval_fn, batches, seed=3)
    analog = nabn.convert_to_noise_aware(net, scenarios[1].rpu_config)
    nabn.program_chip(analog, seed=4)
    stream = nabn.seeding.derive_seed(4, "evaluate")
    expected = {}
    for name in ("none", "population", "paired"):
        nabn.set_read_noise_seed(analog, stream)
        if name != "none":
            nabn.calibrate(analog, batches, method=name, reference=net)
        nabn.set_read_noise_seed(analog, stream)
        with torch.no_grad():
            expected[name] = eval_fn(analog)["fit"]
        nabn.clear_calibration(analog)
    got = {r.method_name: r.metrics["fit"] for r in result.records if (r.scenario, r.chip_seed) == ("noisy", 4)}
    assert got == expected


def test_each_method_is_undone_bit_for_bit(net, scenarios, eval_fn, batches, monkeypatch) -> None:
    programmed: list[dict[str, Tensor]] = []
    calibrated = 0
    original_program, original_calibrate = protocol.program_chip, protocol.calibrate

    def assert_undone(model: nn.Module) -> None:
        assert equal(state_of(model), programmed[-1])
        assert not any(getattr(module, "live", None) for module in model.modules())

    def program(model: nn.Module, *args: Any) -> None:
        if programmed:
            assert_undone(model)  # the last method on the chip before
        original_program(model, *args)
        programmed.append(state_of(model))

    def calibrate(model: nn.Module, *args: Any, **options: Any) -> Any:
        nonlocal calibrated
        assert_undone(model)
        report = original_calibrate(model, *args, **options)
        calibrated += 1
        return report

    monkeypatch.setattr(protocol, "program_chip", program)
    monkeypatch.setattr(protocol, "calibrate", calibrate)
    _run(net, scenarios[1], eval_fn, batches, methods=ALL)
    assert len(programmed) == 2 and calibrated == 2 * len(ALL)


def test_the_model_and_the_generators_come_out_as_they_were(net, scenarios, eval_fn, batches) -> None:
    net.stem[1].train()
    flags = [module.training for module in net.modules()]
    state = state_of(net)
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    expected = generator_states()

    def restless(model: nn.Module) -> dict[str, float]:
        assert not any(module.training for module in model.modules())
        torch.rand(1), np.random.rand(), random.random()
        return eval_fn(model)

    _run(net, scenarios, restless, batches, methods=ALL)
    assert generator_states() == expected
    assert [module.training for module in net.modules()] == flags
    assert equal(state_of(net), state)


def test_the_model_is_restored_when_something_fails(net, scenarios, eval_fn, batches) -> None:
    net.train()
    with pytest.raises(ZeroDivisionError):
        _run(net, scenarios, lambda model: 1 / 0, batches)
    assert all(module.training for module in net.modules())


def test_an_eval_fn_that_leaves_training_mode_does_not_spoil_what_follows(net, scenarios, eval_fn, batches) -> None:
    def careless(model: nn.Module) -> dict[str, float]:
        metrics = eval_fn(model)
        model.train()
        return metrics

    expected = _run(net, scenarios, eval_fn, batches)
    got = _run(net, scenarios, careless, batches)
    assert [r.metrics for r in got.records] == [r.metrics for r in expected.records]


def test_the_global_seed_does_not_matter_and_the_run_seed_does(net, scenarios, eval_fn, batches) -> None:
    torch.manual_seed(1)
    first = _run(net, scenarios, eval_fn, batches, chips=1)
    torch.manual_seed(2)
    assert [r.metrics for r in _run(net, scenarios, eval_fn, batches, chips=1).records] == [
        r.metrics for r in first.records
    ]
    other = _run(net, scenarios, eval_fn, batches, chips=1, seed=1)
    assert all(a.metrics != b.metrics for a, b in zip(first.records, other.records, strict=True))


@pytest.mark.parametrize("own_generator", [False, True])
def test_a_shuffling_loader_gives_all_the_same_images(net, scenarios, eval_fn, images, own_generator) -> None:
    generator = torch.Generator().manual_seed(4) if own_generator else None
    loader = DataLoader(TensorDataset(images(20)), batch_size=4, shuffle=True, generator=generator)
    batches_seen: list[float] = []

    def forward(model: nn.Module, batch: Any) -> Tensor:
        if model is not net and len(batch[0]) == 4:  # whole batches, not the samples that passes are rehearsed on
            batches_seen.append(float(batch[0].sum()))
        return model(batch[0])

    options = {"methods": ["population", "ema"], "max_samples": 8, "forward_fn": forward}
    _run(net, scenarios[0], eval_fn, loader, **options)
    assert len(batches_seen) >= 8
    assert set(batches_seen) == set(batches_seen[:2])


def test_scenarios_of_one_config_share_a_conversion(net, eval_fn, batches, monkeypatch) -> None:
    converted: list[str] = []
    original = protocol.convert_to_noise_aware

    def convert(model: nn.Module, rpu_config: Any, **options: Any) -> nn.Module:
        converted.append(type(rpu_config).__name__)
        return original(model, rpu_config, **options)

    monkeypatch.setattr(protocol, "convert_to_noise_aware", convert)
    pcm = nabn.presets.build_preset("pcm")
    scenarios = [
        Scenario(name="hour", rpu_config=pcm, t_inference="1h"),
        Scenario(name="gaussian", rpu_config=_config()),
        Scenario(name="year", rpu_config=nabn.presets.build_preset("pcm"), t_inference="1y"),
    ]
    result = _run(net, scenarios, eval_fn, batches, chips=1)
    assert len(converted) == 2
    alone = _run(net, scenarios[2], eval_fn, batches, chips=1)
    assert [r.metrics for r in result.records if r.scenario == "year"] == [r.metrics for r in alone.records]


def test_methods_take_the_calibration_set_that_suits_them(net, scenarios, eval_fn, images) -> None:
    sets = {"plain": [images(3)], "augmented": [images(5)], "third": [images(7)]}
    methods = ["population", "paired", MethodSpec("ema", batches="third"), MethodSpec("ema", batches="plain")]
    result = _run(net, scenarios[0], eval_fn, sets, methods=methods, chips=1)
    assert {r.method: r.n_calibration_samples for r in result.records} == {
        "uncalibrated": 0,
        "population": 5,
        "paired": 3,
        "ema, third": 7,
        "ema, plain": 3,
    }
    assert [entry["batches"] for entry in result.settings["methods"]] == [None, "augmented", "plain", "third", "plain"]


def test_settings_say_how_the_result_came_about(net, scenarios, eval_fn, batches) -> None:
    result = _run(net, scenarios, eval_fn, batches, chips=2, seed=9, max_samples=6, exclude=["head"])
    settings = result.settings
    assert set(settings["versions"]) == {"aihwkit_nabn", "aihwkit", "torch", "numpy", "python"}
    assert (settings["seed"], settings["chips"], settings["max_samples"]) == (9, 2, 6)
    assert settings["exclude"] == ["head"] and settings["model"] == "SmallNet"
    assert "sigma=0.2" in settings["scenarios"][1]["rpu_config"]
    assert "head" in settings["conversion"]["quiet"]


def test_settings_hold_the_first_chips_layer_shifts(net, scenarios, eval_fn, batches, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/me/bin/nabn", "test", "/data/my weights.pth", "--data=/data/set", "a/b"])
    result = _run(net, scenarios, eval_fn, batches, chips=2, methods=["population", "paired"])
    shifts = result.settings["layer_shifts"]
    assert set(shifts) == {scenario.name for scenario in scenarios}
    noisy = shifts[scenarios[1].name]
    assert set(noisy) == {"population", "paired"}
    assert {layer["kind"] for layer in noisy["paired"]} == {"analog layer"}
    assert all(layer["mean_after"] < layer["mean_before"] for layer in noisy["paired"])
    assert result.settings["command"] == "nabn test 'my weights.pth' --data=set a/b"
    assert datetime.fromisoformat(result.settings["date"]).tzinfo is not None
    json.dumps(result.settings, allow_nan=False)


def test_an_aihwkit_model_without_alignments_can_be_evaluated(scenarios, images) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(189, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    inputs = images(6)
    result = _run(model, scenarios[0], lambda m: {"sum": m(inputs).sum()}, [inputs], methods=["paired"])
    assert len(result.records) == 4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"methods": ["pared"]}, UnknownNameError, "unknown calibration method 'pared', did you mean 'paired'"),
        ({"methods": ["ema", "ema"]}, NabnError, "2 methods have the label 'ema'"),
        ({"methods": [MethodSpec("ema", options={"momentun": 1})]}, NabnError, "no option 'momentun'"),
        ({"methods": [MethodSpec("batch", batches="plain")]}, NabnError, "'batch' takes no calibration set"),
        ({"scenarios": []}, NabnError, "at least one Scenario"),
        ({"scenarios": ["pcm"]}, NabnError, "objects, got 'pcm'"),
        ({"chips": 0}, NabnError, "chips must be an integer >= 1, got 0"),
        ({"seed": -1}, NabnError, "seed must be"),
        ({"max_samples": 0}, NabnError, "max_samples must be"),
        ({"eval_fn": None}, NabnError, "eval_fn must be callable, got None"),
        ({"forward_fn": 3}, NabnError, "forward_fn must be callable, got 3"),
        ({"calibration_batches": None}, NabnError, "'population' needs calibration_batches, got None"),
        ({"calibration_batches": []}, NabnError, "calibration_batches must hold at least one batch"),
        ({"calibration_batches": torch.zeros(2, 3)}, NabnError, "must be an iterable of batches .*got Tensor"),
        ({"calibration_batches": {"a": [1], "b": [1]}}, NabnError, "must say which calibration set it takes, one of"),
        (
            {"calibration_batches": {"plain": [1]}, "methods": [MethodSpec("ema", batches="plane")]},
            NabnError,
            "'plane', did you mean 'plain'",
        ),
        ({"methods": [MethodSpec("ema", batches="plain")]}, NabnError, "calibration_batches is a single set"),
    ],
)
def test_everything_is_checked_before_any_work(net, scenarios, changes, error, message) -> None:
    def never(model: nn.Module) -> dict[str, float]:
        raise AssertionError("work was begun")

    options = {
        "scenarios": scenarios,
        "methods": ["population"],
        "eval_fn": never,
        "calibration_batches": [1],
        **changes,
    }
    with pytest.raises(error, match=message):
        evaluate(net, progress=False, **options)


def test_duplicate_scenario_names_and_a_wrong_model(net, scenarios, eval_fn, batches) -> None:
    with pytest.raises(NabnError, match="got 'quiet' twice"):
        _run(net, [scenarios[0], scenarios[0]], eval_fn, batches)
    with pytest.raises(NabnError, match=r"model must be a torch.nn.Module, got str"):
        _run("model", scenarios, eval_fn, batches)


def test_what_cannot_be_converted_costs_no_evaluation(net, scenarios, batches) -> None:
    def never(model: nn.Module) -> dict[str, float]:
        raise AssertionError("work was begun")

    with pytest.raises(ConversionError, match="'haed', which no module has"):
        _run(net, scenarios, never, batches, exclude=["haed"])


def test_a_generator_does_for_one_calibration_and_no_more(net, scenarios, eval_fn, batches) -> None:
    def generate() -> Iterator[Tensor]:
        yield from batches

    result = _run(net, scenarios[0], eval_fn, generate(), methods=["population"], chips=1)
    assert result.records[-1].n_calibration_samples == 10
    with pytest.raises(NabnError, match="generator, which gives its batches only once; .* 2 times"):
        _run(net, scenarios[0], eval_fn, generate(), methods=["population"], chips=2)
    with pytest.raises(NabnError, match="2 times"):
        _run(net, scenarios[0], eval_fn, generate(), methods=["population", "ema"], chips=1)
    ranged = [Scenario(name=f"{bits} bits", rpu_config=parse_preset(f"gaussian:inp_bits={bits}")) for bits in (6, 8)]
    with pytest.raises(NabnError, match="2 times"):  # each sets input ranges
        _run(net, ranged, eval_fn, generate(), methods=["none"], chips=1)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "non-empty dict .* got None for the digital model"),
        ({}, "non-empty dict"),
        ({"fit": "good"}, "finite numbers, got fit = 'good' for the digital model"),
        ({"fit": True}, "fit = True"),
        ({3: 1.0}, "the name 3"),
    ],
)
def test_what_eval_fn_returns_is_checked(net, scenarios, batches, returned, message) -> None:
    with pytest.raises(NabnError, match=message):
        _run(net, scenarios, lambda model: returned, batches)


def test_nan_on_a_chip_is_named(net, scenarios, batches) -> None:
    def breaks(model: nn.Module) -> dict[str, float]:
        return {"fit": 1.0 if model is net else float("nan")}

    with pytest.raises(NabnError, match="fit = nan in scenario 'quiet', chip 0, method 'uncalibrated'"):
        _run(net, scenarios, breaks, batches)


def test_metrics_must_stay_the_same(net, scenarios, batches) -> None:
    with pytest.raises(NabnError, match=r"had \['fit'\], got \['fat'\] in scenario 'quiet'"):
        _run(net, scenarios, lambda model: {"fit" if model is net else "fat": 1.0}, batches)


def test_metrics_may_be_numpy_or_tensor_scalars(net, scenarios, batches) -> None:
    result = _run(net, scenarios[0], lambda m: {"a": np.float32(0.5), "b": torch.tensor([2]), "c": 3}, batches, chips=1)
    assert result.digital == {"a": 0.5, "b": 2.0, "c": 3.0}
    assert all(type(value) is float for value in result.digital.values())


@pytest.mark.parametrize("given", [nabn.presets.GaussianWeightNoisePreset(sigma=0.1), None, "pcm", 3, ["pcm"]])
def test_what_is_no_scenario_is_told_in_a_line(given: object, net: nn.Module) -> None:
    with pytest.raises(
        NabnError, match=r"scenarios must be Scenario\(name=..., rpu_config=...\) objects, got"
    ) as error:
        nabn.evaluate(net, scenarios=given, methods=["none"], chips=1, eval_fn=lambda model: {"a": 1.0})
    assert len(str(error.value)) < 120


def test_wherever_a_run_is_interrupted_it_goes_on_to_the_same_result(
    net, scenarios, eval_fn, batches, tmp_path
) -> None:
    def go(file: RecordLog | None = None, stop: int | None = None) -> EvaluationResult:
        left = itertools.count(1)

        def on_record(record: Record) -> None:
            if next(left) == stop:
                raise KeyboardInterrupt

        return _run(net, scenarios, eval_fn, batches, on_record=on_record, record_file=file)

    def plain(result: EvaluationResult) -> tuple[Any, ...]:
        records = [{**vars(record), "seconds_calibration": 0, "seconds_evaluation": 0} for record in result.records]
        return records, result.digital, {**result.settings, "date": None}

    whole = go()
    assert len(whole.records) == 12
    for stop in (1, 2, 3, 5, 6, 7, 12):
        path = tmp_path / f"{stop}.jsonl"
        with pytest.raises(KeyboardInterrupt), RecordLog(path, {}, resume=False) as log:
            go(log, stop)
        with RecordLog(path, {}) as log:
            assert len(log.records) == stop
            assert plain(go(log)) == plain(whole)
        with RecordLog(path, {}) as log:
            assert plain(go(log, stop=1)) == plain(whole)  # nothing was left to measure


def test_more_can_be_asked_of_a_run_that_ended(net, scenarios, eval_fn, batches, tmp_path) -> None:
    path = tmp_path / "r.jsonl"
    with RecordLog(path, {}) as log:
        _run(net, [replace(scenarios[1], group=None)], eval_fn, batches, record_file=log)
    with RecordLog(path, {}) as log:
        more, whole = (_run(net, scenarios, eval_fn, batches, chips=3, record_file=f) for f in (log, None))
    for one, other in zip(more.records, whole.records, strict=True):
        assert replace(one, seconds_calibration=0.0, seconds_evaluation=0.0) == replace(
            other, seconds_calibration=0.0, seconds_evaluation=0.0
        )
