"""Registering a method, the report and the progress bar."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration import CALIBRATION_METHODS, CalibrationMethod, LayerShift, Moments
from aihwkit_nabn.calibration.method import build_method
from aihwkit_nabn.calibration.report import distance
from aihwkit_nabn.errors import CalibrationError, NabnError, UnknownNameError
from aihwkit_nabn.evaluation.methods import label_methods, method_spec

README = Path(nabn.__file__).parent / "calibration" / "README.md"


@pytest.fixture
def register():
    names = []

    def enter(name, method):
        names.append(name)
        return nabn.register_calibration_method(name)(method)

    yield enter
    for name in names:
        if name in CALIBRATION_METHODS:
            CALIBRATION_METHODS.unregister(name)


class Half(CalibrationMethod):
    """Moves every BatchNorm's mean halfway to the chip's."""

    summary = "halfway"

    def __init__(self, share: float = 0.5):
        self.share = share

    def calibrate(self, session):
        session.measure_batchnorms(
            lambda bn, moments: (torch.lerp(bn.running_mean.double(), moments.mean, self.share), bn.running_var)
        )


def test_a_new_method_is_there_by_name_with_its_options(chip, batches, register):
    register("half", Half)
    assert "half" in CALIBRATION_METHODS and Half.name == "half"
    report = nabn.calibrate(chip, batches, "half", share=0.25)
    inputs = chip.stem[0](torch.cat(batches))
    expected = 0.75 * chip.stem[1].running_mean + 0.25 * inputs.mean((0, 2, 3))
    torch.testing.assert_close(chip.stem[1].calibrated_mean, expected, rtol=1e-4, atol=1e-5)
    assert [layer.kind for layer in report.layers] == ["BatchNorm"] * 4
    report.undo()
    nabn.calibrate(chip, batches, Half(share=0.5))
    assert chip.stem[1].is_calibrated


def test_the_example_of_the_readme_is_short_and_works(chip, net, batches, images, register, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(example.splitlines()) < 20
    before = set(CALIBRATION_METHODS.names())
    exec(compile(example, str(README), "exec"), {"__name__": "aihwkit_nabn.calibration.methods.example"})
    (name,) = set(CALIBRATION_METHODS.names()) - before
    try:
        x = images(4)
        uncalibrated = chip(x)
        report = nabn.calibrate(chip, batches, name, reference=net)
        assert report.n_samples == 10 and not torch.equal(chip(x), uncalibrated)
        report.undo()
        assert torch.equal(chip(x), uncalibrated)
    finally:
        CALIBRATION_METHODS.unregister(name)


def test_a_method_that_fails_leaves_the_model_as_it_was(chip, batches, register, images):
    class Failing(Half):
        def calibrate(self, session):
            super().calibrate(session)
            for alignment in session.alignments.values():
                alignment.set(*torch.ones(2, alignment.n_channels))
                alignment.enabled = False
            session.batchnorms["norm"].live = lambda x, bn: bn.trained_statistics()
            raise ZeroDivisionError

    register("failing", Failing)
    before = chip(images(3))
    with pytest.raises(ZeroDivisionError):
        nabn.calibrate(chip, batches, "failing")
    assert torch.equal(chip(images(3)), before)
    assert not chip.head.alignment.is_set and chip.head.alignment.enabled and chip.norm.live is None


def test_what_cannot_be_a_method_is_refused_when_registered(register):
    class Empty(CalibrationMethod):
        pass

    class Demanding(Half):
        def __init__(self, share):
            self.share = share

    class DemandingKeyword(Half):
        def __init__(self, *, share):
            self.share = share

    for method, message in (
        (dict, "must be a class derived from CalibrationMethod"),
        (Half(), "must be a class derived from CalibrationMethod"),
        (Empty, r"Empty does not define calibrate\(self, session\)"),
        (Demanding, "option 'share' needs a default"),
        (DemandingKeyword, "option 'share' needs a default"),
    ):
        with pytest.raises(NabnError, match=f"calibration method 'mine'.*{message}"):
            register("mine", method)
        assert "mine" not in CALIBRATION_METHODS
    with pytest.raises(NabnError, match="'paired' is already registered by "):
        nabn.register_calibration_method("paired")(Half)
    with pytest.raises(NabnError, match="must be lower_snake_case"):
        nabn.register_calibration_method("My Method")


def test_none_is_no_method_but_a_row_of_an_evaluation(chip, batches):
    with pytest.raises(UnknownNameError) as caught:
        nabn.calibrate(chip, batches, method="none")
    assert str(caught.value) == (
        "unknown calibration method 'none': to leave a chip as programmed, do not calibrate it; "
        "evaluate(methods=['none', ...]) measures it that way"
    )


@pytest.mark.parametrize("text", ["low_rank:budget=0.1", " low_rank : budget = 0.1", "low_rank(budget=0.1)"])
def test_options_inside_of_a_name_are_told_apart(text, chip, batches, net):
    ways = (
        "pass options separately from the name, calibrate(..., method='low_rank', budget=0.1), "
        "MethodSpec('low_rank', options={'budget': 0.1}), or in a config dict(method='low_rank', budget=0.1)"
    )
    for call in (
        lambda: nabn.calibrate(chip, batches, method=text, reference=net),
        lambda: nabn.MethodSpec(text),
        lambda: method_spec(text),
        lambda: label_methods([text]),
    ):
        with pytest.raises(UnknownNameError) as caught:
            call()
        assert str(caught.value) == f"unknown calibration method {text!r}: {ways}"


def test_options_that_cannot_be_read_are_shown_as_a_form():
    with pytest.raises(UnknownNameError, match=r"method='low_rank', OPTION=VALUE\)"):
        build_method("low_rank:")
    with pytest.raises(UnknownNameError, match="'low_rnk:budget=0.1', did you mean 'low_rank'"):
        build_method("low_rnk:budget=0.1")
    with pytest.raises(
        UnknownNameError, match="unknown candidate .*: options do not go with the name 'low_rank'; known"
    ):
        build_method("auto", candidates="none+low_rank:budget=0.1")


def test_the_budget_is_a_share():
    for method, options in (("low_rank", {}), ("auto", {}), ("distill", {"start": "paired"})):
        with pytest.raises(NabnError, match="^budget must be the share of the network's multi.*between 0 and 1"):
            build_method(method, budget=5, **options)


def test_the_session_says_what_is_missing(chip, register):
    class Greedy(Half):
        needs_batches = False

        def calibrate(self, session):
            assert not session.has_batches and session.reference is None
            for call in (session.reference_layers, lambda: session.run_reference(torch.zeros(1))):
                with pytest.raises(CalibrationError, match="pass reference=model"):
                    call()
            next(session.batches())

    register("greedy", Greedy)
    with pytest.raises(CalibrationError, match="this method needs calibration batches, got None"):
        nabn.calibrate(chip, None, "greedy")


def test_distance_of_distributions():
    a = torch.tensor([[0.0, 5.0, 1.0], [2.0, 5.0, 3.0]])
    target, got = Moments.of(a, -1), Moments.of(a * 2 + 1, -1)  # the middle channel does not vary: left out
    mean, spread = distance(got, target)
    assert mean == pytest.approx((((3 - 1) ** 2 + (5 - 2) ** 2) / 2) ** 0.5)
    assert spread == pytest.approx(0.6931, abs=1e-4)
    assert distance(Moments.empty(3), target) == (0.0, 0.0)
    shift = LayerShift.between("a", "BatchNorm", got, target, target, target)
    assert (shift.mean_before, shift.mean_after, shift.spread_after, shift.n_values) == (mean, 0.0, 0.0, 2)


@pytest.mark.parametrize("max_samples", [None, 6])
def test_progress_is_shown_on_demand(chip, net, batches, capsys, max_samples):
    nabn.calibrate(chip, batches, reference=net, max_samples=max_samples)
    assert capsys.readouterr() == ("", "")
    data = torch.utils.data.DataLoader(torch.cat(batches), batch_size=3)
    report = nabn.calibrate(chip, data, reference=net, max_samples=max_samples, progress=True)
    assert report.n_samples == (max_samples or 10)
    nabn.calibrate(chip, None, "online", progress=True)
