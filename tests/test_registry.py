from __future__ import annotations

import pytest

from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.registry import Registry


class One:
    pass


class Two:
    pass


@pytest.fixture
def registry():
    return Registry("thing")


def test_register_get_and_list(registry):
    assert registry.register("one")(One) is One
    registry.register("two_2")(Two)
    assert registry.get("one") is One
    assert registry.names() == list(registry) == ["one", "two_2"] and len(registry) == 2
    assert "one" in registry and "One" not in registry and 1 not in registry


@pytest.mark.parametrize("name", ["", "One", "1st", "a-b", "a b", "_a", "a.b", None, 3, "a\n"])
def test_malformed_names(registry, name):
    with pytest.raises(NabnError, match="thing name must be lower_snake_case, got "):
        registry.register(name)


def test_a_taken_name_and_the_same_class_again(registry):
    registry.register("one")(One)
    with pytest.raises(NabnError, match="thing 'one' is already registered by .*One"):
        registry.register("one")(Two)
    reloaded = type("One", (), {"__module__": One.__module__, "__qualname__": One.__qualname__})
    registry.register("one")(reloaded)
    assert registry.get("one") is reloaded and len(registry) == 1


@pytest.mark.parametrize("name", ["twoo", None, 7, ["two"]])
def test_unknown_names(registry, name):
    registry.register("two")(Two)
    with pytest.raises(UnknownNameError, match="unknown thing .*known: two"):
        registry.get(name)


def test_unregister(registry):
    registry.register("one")(One)
    registry.unregister("one")
    assert "one" not in registry
    with pytest.raises(UnknownNameError):
        registry.unregister("one")
    registry.register("one")(Two)


def test_check_refuses_before_anything_is_entered():
    def check(name, entry):
        raise NabnError(f"{name} {entry.__name__} refused")

    registry = Registry("thing", check=check)
    with pytest.raises(NabnError, match="one One refused"):
        registry.register("one")(One)
    assert not registry.names()
