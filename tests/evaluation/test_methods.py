from __future__ import annotations

import pytest
from torch import nn

from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.evaluation.methods import AUGMENTED, PLAIN, MethodSpec, method_spec, method_specs
from aihwkit_nabn.evaluation.plan import make_plan
from aihwkit_nabn.evaluation.scenario import Scenario
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.studies.grid.methods import read_method
from tests.built_in import METHOD_NAMES


def test_a_method_s_options_and_images_are_checked() -> None:
    assert method_spec("paired", {"shrink": 0.0}, label="x") == MethodSpec(
        "paired", batches=PLAIN, label="x", options={"shrink": 0.0}
    )
    assert method_spec("population").batches == AUGMENTED and method_spec("population", batches=PLAIN).batches == PLAIN
    for arguments, message in (
        (("pared",), "'pared', did you mean 'paired'"),
        ((3,), "calibration method"),
        (("paired", {"shrnk": 0}), "no option 'shrnk'"),
        (("none", {"shrink": 0}), "takes neither batches nor options"),
    ):
        with pytest.raises(NabnError, match=message):
            method_spec(*arguments)
    with pytest.raises(NabnError, match="'online' takes no calibration images, got 'plain'"):
        method_spec("online", batches=PLAIN)


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_every_way_of_naming_a_method_gives_it_the_same_images(name: str) -> None:
    expected = method_spec(name).batches
    assert method_specs([name])[-1].batches == read_method("methods", name).images == expected
    scenario = Scenario(name="s", rpu_config=parse_preset("gaussian:sigma=0.1"))
    sets = {PLAIN: [1], AUGMENTED: [2]}
    plan = make_plan(
        model=nn.Linear(2, 2),
        scenarios=[scenario],
        methods=[name],
        chips=1,
        seed=0,
        calibration_batches=sets,
        eval_fn=print,
        max_samples=None,
    )
    assert plan.methods[-1].spec.batches == expected and plan.methods[-1].batches == sets.get(str(expected))


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_configs_give_it_the_same_images_too(name: str) -> None:
    pytest.importorskip("mmengine")
    from aihwkit_nabn.openmmlab.settings import build_methods

    assert build_methods([name], None).specs[0].batches == method_spec(name).batches
    with pytest.raises(NabnError, match="takes neither batches nor options"):
        build_methods([{"method": "none", "shrink": 0.0}], None)


def test_methods_that_replace_statistics_get_augmented_images() -> None:
    specs = {spec.method: spec for spec in method_specs(["all"])}
    assert sorted(specs) == sorted(["none", *CALIBRATION_METHODS.names()])
    compares = [name != "none" and CALIBRATION_METHODS.get(name).needs_reference for name in specs]
    assert compares == sorted(compares)  # those that compare with the digital model stand last
    for name in CALIBRATION_METHODS.names():
        expected = {"population": "augmented", "ema": "augmented", "prior": "augmented", "batch": None, "online": None}
        assert specs[name].batches == expected.get(name, "plain"), name


def test_methods_are_taken_once_and_none_is_always_there() -> None:
    assert [spec.method for spec in method_specs(["paired", "none", "paired"])] == ["none", "paired"]


def test_method_errors() -> None:
    with pytest.raises(UnknownNameError, match="'piared', did you mean 'paired'"):
        method_specs(["piared"])
    with pytest.raises(NabnError, match="methods must name"):
        method_specs([])


def test_methods_take_options() -> None:
    text = "none, paired,paired: shrink=0 ,distill:steps=3,start=paired,lr=1e-2,batch"
    found = [(spec.method, spec.label, spec.options) for spec in method_specs(text.split(","))]
    assert found == [
        ("none", None, {}),
        ("paired", None, {}),
        ("paired", "paired (shrink=0)", {"shrink": 0}),
        (
            "distill",
            "distill (steps=3, start=paired, lr=1e-2)",
            {"steps": 3, "start": "paired", "lr": 0.01},
        ),
        ("batch", None, {}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paired:", "malformed option '' of method 'paired'"),
        ("paired:shrink", "malformed option 'shrink' of method 'paired'"),
        ("distill:steps=3,lr=", "malformed option 'lr=' of method 'distill'"),
        ("distill:steps=3,steps=4", "option 'steps' of method 'distill' is given twice"),
        ("paired:shrnk=0", "no option 'shrnk', did you mean 'shrink'"),
        ("paired:shrink=2", "shrink must be"),
        ("paired:shrink=a", "shrink must be"),
        ("distill:steps=0", "steps must be"),
        ("distill:start=pared", "unknown start 'pared', did you mean 'paired'"),
        ("shrink=0", "calibration method 'shrink=0'"),
        ("paired,shrink=0", "calibration method 'shrink=0'"),
        ("none:shrink=0", "'none' takes no options"),
        ("all:shrink=0", "'all' takes no options"),
    ],
)
def test_errors_of_method_options(text: str, message: str) -> None:
    with pytest.raises(NabnError, match=message):
        method_specs(text.split(","))
