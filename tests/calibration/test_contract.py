"""What every registered calibration method must do: registering is enrolling."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration import CALIBRATION_METHODS, CalibrationMethod, CalibrationReport
from aihwkit_nabn.calibration.rehearsal import Rehearsal
from aihwkit_nabn.calibration.session import REHEARSED
from aihwkit_nabn.errors import CalibrationError, NabnError, NotProgrammedError
from aihwkit_nabn.nn import NoiseAwareBatchNorm, named_analog_layers
from tests.chips import chip_of
from tests.tensors import bits, equal, tensors_of

READS_BATCHES: dict[str, bool] = {}
QUICK = {"distill": {"steps": 3}}

pytestmark = pytest.mark.parametrize("name", CALIBRATION_METHODS.names())


@pytest.fixture
def run(net):
    """Calibrate with the method's quick options, and with the reference where one is needed."""

    def calibrate(name, model, batches, **options):
        if CALIBRATION_METHODS.get(name).needs_reference:
            options.setdefault("reference", net)
        return nabn.calibrate(model, batches, name, **{**QUICK.get(name, {}), **options})

    return calibrate


@pytest.fixture
def reads_batches(name, chip, run):
    """Whether the method looks at the batches it is given; found out once."""
    if name not in READS_BATCHES:
        READS_BATCHES[name] = run(name, copy.deepcopy(chip), [torch.zeros(4, 3, 9, 7)]).n_batches > 0
    return READS_BATCHES[name]


@pytest.fixture
def reading(reads_batches):
    """For tests of methods that look at their batches."""
    if not reads_batches:
        pytest.skip("reads no batches")


def test_describes_itself(name):
    method = CALIBRATION_METHODS.get(name)
    assert issubclass(method, CalibrationMethod) and method.name == name
    words, others = method.summary, [CALIBRATION_METHODS.get(other).summary for other in CALIBRATION_METHODS.names()]
    assert len(words.split()) > 4 and others.count(words) == 1 and method.__doc__
    assert len(words) <= 110 and words.isprintable() and not words.endswith("."), "one line, for tables and help"
    assert all(isinstance(flag, bool) for flag in (method.needs_reference, method.needs_batches))


def test_errors_of_its_options_say_what_they_are(name):
    method = CALIBRATION_METHODS.get(name)
    for option, parameter in inspect.signature(method).parameters.items():
        if isinstance(parameter.default, float):
            with pytest.raises(NabnError, match=f"^{option} must be (the|how) .*, got -1.0$"):
                method(**{option: -1.0})


def test_calibrates_and_undoes_bit_for_bit(name, chip, run, batches, images):
    x = images(6, 50)
    before, uncalibrated = bits(chip), chip(x)
    report = run(name, chip, batches)
    assert isinstance(report, CalibrationReport) and report.method == name and report.seconds > 0
    assert report.taken == name or (name == "auto" and report.taken in ("none", "population", "low_rank"))
    assert not torch.equal(chip(x), uncalibrated) and torch.isfinite(chip(x)).all()
    assert not equal(bits(chip), before)
    report.undo()
    assert equal(bits(chip), before) and torch.equal(chip(x), uncalibrated)


def test_undo_takes_out_a_fold(name, chip, run, batches, images):
    before, uncalibrated = tensors_of(chip), chip(images(6, 50))
    report = run(name, chip, batches)
    report.freeze()
    nabn.fold_calibration(chip)
    report.undo()
    after = tensors_of(chip)
    assert equal(after, before)
    assert torch.equal(chip(images(6, 50)), uncalibrated)
    run(name, chip, batches)  # refused where a fold is left


@pytest.mark.parametrize("first", ["paired", "population", "online"])
def test_replaces_an_earlier_calibration_and_brings_it_back(name, first, chip, run, batches, images):
    fresh = copy.deepcopy(chip)
    run(name, fresh, batches)
    run(first, chip, [images(4, 77)])
    before = bits(chip)
    report = run(name, chip, batches)
    assert torch.equal(chip(images(3, 60)), fresh(images(3, 60)))
    report.undo()
    assert equal(bits(chip), before)


def test_is_reproducible(name, chip, run, batches, images):
    twin = copy.deepcopy(chip)
    run(name, chip, batches)
    torch.manual_seed(12345)
    with torch.no_grad():
        run(name, twin, list(batches))
    assert torch.equal(twin(images(3, 60)), chip(images(3, 60)))


def test_leaves_the_weights_and_the_reference_alone(name, chip, net, run, batches):
    weights = {key: layer.weight.clone() for key, layer in named_analog_layers(chip).items()}
    trained = [m.trained_statistics()[0].clone() for m in chip.modules() if isinstance(m, NoiseAwareBatchNorm)]
    reference = bits(net)
    run(name, chip, batches)
    assert equal(bits(net), reference)
    assert all(torch.equal(layer.weight, weights[key]) for key, layer in named_analog_layers(chip).items())
    now = [m.trained_statistics()[0] for m in chip.modules() if isinstance(m, NoiseAwareBatchNorm)]
    assert equal(trained, now)


def test_training_flags_come_back_and_tiles_stay_in_eval_mode(name, chip, net, run, batches):
    chip.train()
    chip.norm.eval()
    net.head.train()
    flags = [module.training for module in (*chip.modules(), *net.modules())]

    def forward(model, batch):
        assert not any(module.training for module in model.modules())
        return model(batch)

    run(name, chip, batches, forward_fn=forward)
    assert [module.training for module in (*chip.modules(), *net.modules())] == flags


def bad_batches(images):
    nan = images(4, 8)
    nan[2, 1, 3, 3] = torch.nan

    def failing(error):
        yield images(4, 7)
        raise error

    return {
        "NaN": (lambda: [images(4, 7), nan], CalibrationError, "calibration batch 1 holds NaN"),
        "loader": (lambda: failing(OSError("disk")), CalibrationError, "loader failed after 1 batches: disk"),
        "shape": (lambda: [images(4, 7), images(4, 8, (5, 9, 7))], CalibrationError, "failed on calibration batch 1"),
        "type": (lambda: [images(4, 7), "text"], CalibrationError, "needs forward_fn"),
        "interrupt": (lambda: failing(KeyboardInterrupt()), KeyboardInterrupt, None),
    }


@pytest.mark.parametrize("problem", ["NaN", "loader", "shape", "type", "interrupt"])
@pytest.mark.parametrize("earlier", [None, "population", "paired"])
def test_an_error_leaves_the_model_as_it_was(name, problem, earlier, chip, run, images, reading):
    if earlier is not None:
        run(earlier, chip, [images(5, 90)])
    chip.norm2.train()
    before = bits(chip)
    make, error, message = bad_batches(images)[problem]
    with pytest.raises(error, match=message):
        run(name, chip, make())
    assert equal(bits(chip), before)
    chip.norm2.eval()
    run(name, chip, [images(5, 91)])


def test_errors_inside_the_chip_leave_the_model_as_it_was(name, chip, run, images, reading):
    """An interruption halfway through a forward pass, and values that overflow on the way."""
    before = bits(chip)
    calls = []

    def interrupted(model, batch):
        calls.append(model)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return model(batch)

    with pytest.raises(KeyboardInterrupt):
        run(name, chip, [images(4, n) for n in range(4)], forward_fn=interrupted)
    assert equal(bits(chip), before)
    with pytest.raises(CalibrationError, match="holds NaN or infinite values on the calibration set"):
        run(name, chip, [images(4).sign() * 3e38])
    assert equal(bits(chip), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_layer_that_produces_nan_is_named(name, value, chip, run, batches, reading):
    before = bits(chip)
    bias = chip.pointwise.analog_module.bias.data
    bias[1], kept = value, float(bias[1])
    with pytest.raises(CalibrationError, match="(layer 'pointwise'|BatchNorm 'norm2') holds NaN or infinite"):
        run(name, chip, batches)
    bias[1] = kept
    assert equal(bits(chip), before)


@pytest.mark.parametrize("max_samples", [1, 5, 7, 10, 100])
def test_max_samples_counts_exactly(name, max_samples, chip, run, batches, reads_batches):
    seen = []

    def forward(model, batch):
        if model is chip:
            seen.append(len(batch))
        return model(batch)

    REHEARSED[chip] = forward, Rehearsal()  # which would run on samples, too
    report = run(name, chip, iter(batches), max_samples=max_samples, forward_fn=forward)
    if reads_batches:
        expected = min(max_samples, 10)
        assert report.n_samples == expected
        assert report.n_batches == {1: 1, 5: 1, 7: 3}.get(max_samples, 3)
        assert sum(seen[: report.n_batches]) == expected or name == "auto"  # whose first pass is on those held back
        assert str(report).startswith(f"{name}: {expected} samples in {report.n_batches} batches, ")


def test_batches_of_any_kind(name, chip, run, batches, images):
    chips = [copy.deepcopy(chip) for _ in range(4)]
    run(name, chips[0], batches)
    run(name, chips[1], ((batch, torch.zeros(len(batch))) for batch in batches))
    # Dictionaries are drawn whole by methods that regroup samples, so these two are compared with each other.
    run(name, chips[2], [{"image": b} for b in batches], forward_fn=lambda model, batch: model(batch["image"]))
    run(name, chips[3], [{"x": {"y": b}} for b in batches], forward_fn=lambda model, batch: model(batch["x"]["y"]))
    x = images(3, 60)
    assert torch.equal(chips[1](x), chips[0](x))
    assert torch.equal(chips[3](x), chips[2](x))


@pytest.mark.parametrize(
    "empty", [[], [torch.empty(0, 3, 9, 7)], iter(()), {}], ids=["list", "batch", "iterator", "dict"]
)
def test_an_empty_loader_is_an_error(name, empty, chip, run, reading):
    before = bits(chip)
    with pytest.raises(CalibrationError, match="the calibration set is empty"):
        run(name, chip, empty)
    assert equal(bits(chip), before)


def test_missing_arguments(name, chip, net, run, batches):
    method = CALIBRATION_METHODS.get(name)
    before = bits(chip)
    if method.needs_batches:
        with pytest.raises(CalibrationError, match=f"method '{name}' needs calibration batches"):
            run(name, chip, None)
        with pytest.raises(CalibrationError, match="needs calibration batches .an iterable., got 5"):
            run(name, chip, 5)
        for one in (batches[0], batches[0].numpy(), {"images": batches[0]}):
            with pytest.raises(
                CalibrationError, match="needs an iterable of batches, got one .*; pass a list: .batch."
            ):
                run(name, chip, one)
    else:
        run(name, chip, None).undo()
    if method.needs_reference:
        with pytest.raises(CalibrationError, match="compares with the digital model; pass reference=model"):
            run(name, chip, batches, reference=None)
    assert equal(bits(chip), before)
    for count in (0, -1, 1.5, True, "many"):
        with pytest.raises(NabnError, match="max_samples must be an integer >= 1"):
            run(name, chip, batches, max_samples=count)


def test_before_programming(name, net, run, batches):
    analog = nabn.convert_to_noise_aware(net, nabn.presets.GaussianWeightNoisePreset())
    with pytest.raises(NotProgrammedError, match="layer 'stem.0' is not programmed; call program_chip"):
        run(name, analog, batches)
    with pytest.raises(NabnError, match="has no layer on inference tiles"):
        run(name, copy.deepcopy(net), batches)


def test_unknown_options_suggest_the_nearest(name, chip, run, batches):
    with pytest.raises(NabnError, match=f"method '{name}' has no option 'stepz'"):
        run(name, chip, batches, stepz=3)


def test_disabled_calibration_gives_the_uncalibrated_outputs(name, chip, run, batches, images):
    x = images(4, 50)
    uncalibrated = chip(x)
    run(name, chip, batches)
    nabn.freeze_calibration(chip) if name == "online" else None
    calibrated, before = chip(x), bits(chip)
    with pytest.raises(KeyError), nabn.calibration_disabled(chip) as same_chip:
        assert same_chip is chip and torch.equal(chip(x), uncalibrated)
        with nabn.calibration_disabled(chip):
            assert torch.equal(chip(x), uncalibrated)
        assert torch.equal(chip(x), uncalibrated)
        raise KeyError
    assert equal(bits(chip), before) and torch.equal(chip(x), calibrated)


def test_an_eval_forward_changes_nothing(name, chip, run, batches, images):
    run(name, chip, batches)
    if name == "online":
        nabn.freeze_calibration(chip)
    before, first = bits(chip), chip(images(4, 50))
    chip(images(7, 51))
    assert torch.equal(chip(images(4, 50)), first) and equal(bits(chip), before)


def test_a_deep_copy_is_calibrated_too_and_independent(name, chip, run, batches, images):
    run(name, chip, batches)
    twin = copy.deepcopy(chip)
    x = images(4, 50)
    assert torch.equal(twin(x), chip(x))
    nabn.clear_calibration(twin)
    with nabn.calibration_disabled(chip):
        assert torch.equal(twin(x), chip(x))
    assert not torch.equal(twin(x), chip(x))


def test_modules_called_several_times_and_not_at_all(name, run, images, settle):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.unused, self.unused_norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            x = self.norm(self.conv(x)).relu()
            x = x + self.norm(self.conv(x[..., ::2, ::2])).mean((2, 3), keepdim=True)
            if self.training:
                x = self.unused_norm(self.unused(x))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    net = settle(Twice())
    chip = chip_of(net, "gaussian:sigma=0.1", 1)
    report = (
        run(name, chip, [images(5, 1), images(3, 2)], reference=net)
        if CALIBRATION_METHODS.get(name).needs_reference
        else run(name, chip, [images(5, 1), images(3, 2)])
    )
    assert not chip.unused.alignment.is_set and chip.unused_norm.calibrated_mean is None
    assert not any("unused" in layer.name for layer in report.layers)
    assert torch.isfinite(chip(images(2))).all()
