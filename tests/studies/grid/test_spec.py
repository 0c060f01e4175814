from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.studies.grid import parse_spec, read_yaml

Small = Callable[..., dict[str, Any]]


def test_strengths_are_written_out_and_the_uncalibrated_chip_comes_first(small: Small) -> None:
    noise = [{"preset": "gaussian:relative_to=weight", "strength": [0.1, 0.3]}, "pcm"]
    spec = parse_spec(small(noise=noise, methods=["paired"], time=["1h", "1y"]))
    assert spec.noise == ("gaussian:relative_to=weight,sigma=0.1", "gaussian:relative_to=weight,sigma=0.3", "pcm")
    assert [entry.label for entry in spec.methods] == ["uncalibrated", "paired"]
    assert spec.time == (3600.0, 31_557_600.0) and spec.chip_seeds == [0, 1]
    assert len(spec.scenarios()) == 4  # Gaussian noise is the same at all times


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("version: 1\nchips: 2\nname: a\nchips: 3\n", "'chips' twice: again in line 4, after line 2"),
        ("models:\n- model: digits\n  name: a\n  name: b\n", "'name' twice: again in line 4, after line 3"),
        ('{"chips": 2, "chips": 2}', "'chips' twice: again in line 1, after line 1"),
    ],
)
def test_a_key_given_twice_is_an_error(text: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(NabnError, match=place):
        parse_spec(read_yaml(path))


def test_merged_keys_may_be_given_again(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1, y: 1}\nb: {<<: *a, x: 2}\nc: {<<: *a, y: 3}\n")
    assert read_yaml(path) == {"a": {"x": 1, "y": 1}, "b": {"x": 2, "y": 1}, "c": {"x": 1, "y": 3}}


def test_what_suits_a_method_is_chosen_and_can_be_changed(small: Small) -> None:
    spec = parse_spec(small(methods=["population", {"method": "paired", "images": "augmented", "label": "ours"}]))
    assert {entry.label: entry.images for entry in spec.methods} == {
        "uncalibrated": None,
        "population": "augmented",
        "ours": "augmented",
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"modles": 1}, "unknown key 'modles', did you mean 'models'"),
        ({"methods": [{"method": "paired", "options": {"method": 1}}]}, "option 'method'"),
        ({"noise": ["gaussian:name=1"]}, "option 'name'"),
        ({"noise": None}, "lacks 'noise'"),
        ({"version": 2}, "version must be 1"),
        ({"version": True}, "version must be 1"),
        ({"name": "../up"}, "name must be letters"),
        ({"name": "a\nb"}, "name must be text on one line"),
        ({"chips": 0}, "chips must be an integer >= 1, got 0"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"models": ["digit"]}, "unknown workload 'digit', did you mean 'digits'"),
        ({"models": ["torchvision"]}, "must be written torchvision:NAME"),
        ({"models": ["torchvision:resnet18"]}, "lacks 'checkpoint'"),
        ({"models": [{"model": "digits", "data": "x"}]}, "unknown key 'data'"),
        ({"models": [{"model": "digits", "name": "a/b"}]}, "names a folder"),
        ({"models": ["digits", {"model": "digits", "exclude": ["linear"]}]}, "models has 'digits' twice"),
        ({"models": ["some.py"]}, "lacks 'checkpoint'"),
        ({"noise": "pcn"}, "unknown preset 'pcn', did you mean 'pcm'"),
        ({"noise": []}, "noise must hold at least one entry"),
        ({"noise": ["pcm", "pcm"]}, "noise must not hold an entry twice"),
        ({"noise": [{"preset": "gaussian:sigma=0.1", "strength": 0.1}]}, "given twice"),
        ({"noise": [{"preset": "pcm+stuck", "strength": 0.1}]}, "one strength"),
        ({"noise": [{"preset": "gaussian", "strength": [-1]}]}, "strength of noise must be"),
        ({"noise": [{"preset": "gaussian", "strength": float("nan")}]}, "strength of noise must be"),
        ({"time": "soon"}, "time: time must be"),
        ({"noise": ["reram_wan"], "time": ["1y"]}, "time"),
        ({"methods": ["pared"]}, "did you mean 'paired'"),
        ({"methods": [{"method": "distill", "options": {"step": 3}}]}, "did you mean 'steps'"),
        ({"methods": [{"method": "online", "images": "plain"}]}, "takes no calibration images"),
        ({"methods": [{"method": "paired", "reference": "clean"}]}, "jpeg names no quality"),
        ({"methods": [{"method": "ema", "reference": "clean"}], "jpeg": [10]}, "compare with the digital model"),
        ({"methods": ["paired", {"method": "paired", "options": {"shrink": 0}}]}, "methods has 'paired' twice"),
        ({"samples": [0]}, "samples must be an integer >= 1"),
        ({"samples": [4, 4]}, "samples must not hold an entry twice"),
        ({"calibration": "one class"}, "did you mean 'one_class'"),
        ({"jpeg": [96]}, "jpeg must be none or a quality from 1 to 95"),
        ({"jpeg": [True]}, "jpeg must be none or a quality from 1 to 95"),
        ({"test_images": 0}, "test_images must be"),
        ({"test_batch": 1.5}, "test_batch must be"),
        ({"stream": {"images": 10, "window": 5, "tracking": ["none"]}}, "methods does not go with stream"),
    ],
)
def test_one_clear_error(small: Small, changed: dict[str, Any], message: str) -> None:
    content = small()
    for key, value in changed.items():
        content.pop(key, None) if value is None else content.update({key: value})
    with pytest.raises(NabnError, match=message):
        parse_spec(content)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": 50}, "multiple of window"),
        ({"batch": 7}, "multiple of batch"),
        ({"drift": {"from": "1y", "to": "1h"}}, "to a later one"),
        ({"drift": {"from": "1h"}}, "lacks 'to'"),
        ({"tracking": [{"method": "paired", "at": [5]}]}, "multiples of batch"),
        ({"tracking": [{"method": "paired", "at": [60]}]}, "below 60"),
        ({"tracking": [{"method": "paired", "at": [0], "every": 20}]}, "both at and every"),
        ({"tracking": [{"method": "online", "every": 20}]}, "goes on by itself"),
        ({"tracking": [{"method": "none", "every": 20}]}, "takes neither"),
        ({"trackin": []}, "did you mean 'tracking'"),
    ],
)
def test_streams(small_stream: Small, changed: dict[str, Any], message: str) -> None:
    content = small_stream()
    content["stream"].update(changed)
    with pytest.raises(NabnError, match=message):
        parse_spec(content)


@pytest.mark.parametrize(
    "text", ["", "[1", "a: b: c", "\x00", "- &a [*a]", "x: 2001-99-99", "1", "? [a]\n: 1", "{[a]: 1}"]
)
def test_other_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(NabnError):
        parse_spec(read_yaml(path))
    with pytest.raises(NabnError, match="does not exist"):
        parse_spec(read_yaml(tmp_path / "none.yaml"))
    with pytest.raises(NabnError, match="cannot read"):
        parse_spec(read_yaml(tmp_path))


def test_the_sweeps_of_the_repository_can_be_read() -> None:
    files = sorted((Path(__file__).parents[3] / "configs" / "sweeps").glob("*.yaml"))
    assert {parse_spec(read_yaml(path)).name for path in files} == {path.stem for path in files} and len(files) >= 7


_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**20)
    | st.floats()
    | st.text(max_size=6)
    | st.dates()
    | st.binary(max_size=3)
    | st.sampled_from(["none", "paired", "pcm", "digits", "gaussian:sigma=0.1", "x.py", "1d", "clean", "online"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
        | st.dictionaries(st.sampled_from(["method", "model", "preset", "strength", "images", "at"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key in keys for place in _places(value[key], (*path, key))]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_changed_is_taken_or_gives_one_error(
    small: Small, small_stream: Small, data: st.DataObject
) -> None:
    content = copy.deepcopy(data.draw(st.sampled_from([small(), small_stream()])))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(_places(content)))
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        if isinstance(inner, dict) and data.draw(st.booleans()):
            inner[data.draw(st.sampled_from(["jpeg", "time", "label", "options", "drift", "exclude", "nonsense"]))] = (
                data.draw(_ANYTHING)
            )
        else:
            inner[place[-1]] = data.draw(_ANYTHING)
    try:
        parse_spec(content)
    except NabnError as error:
        assert str(error).strip() and len(str(error)) < 1500
