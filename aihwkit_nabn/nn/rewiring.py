"""Replacing layers also where a model holds them outside its module tree."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import nn

from aihwkit_nabn.errors import ConversionError, NabnError
from aihwkit_nabn.nn.held import attributes, held, held_beside, is_empty, is_object, object_attributes
from aihwkit_nabn.nn.reparametrization import copy_model

_REMEDY = "call the layer itself (self.conv(x)), or set this attribute after the conversion"


def rewire(analog: nn.Module, model: nn.Module, copies: dict[int, Any], replaced: Mapping[int, nn.Module]) -> None:
    """Replace layers also where a converted copy of `model` holds them outside its module tree, in place.

    Containers, partials, kept methods and objects are the copy's own. Functions are not copied with a model: those
    that close over modules of it are made anew, over the copy's.

    Args:
        analog: The converted copy, which nobody else holds.
        model: The original.
        copies: The copies of its parts by the originals' ids, as `copy.deepcopy` notes them.
        replaced: What took the place of each module of the copy, by the module's id.

    Raises:
        ConversionError: a layer of `model` itself is still reached, or a layer's forward method is kept; the attribute
            is named.
    """
    names = {id(module): name for name, module in model.named_modules()}
    digital = {key for key in names if replaced.get(id(copies.get(key)), copies.get(key)) is not copies.get(key)}
    work = _Rewiring(analog, set(names), digital, copies, replaced)
    for name, module in list(analog.named_modules()):
        work.renew_attributes(module, name)
    for place, found, _ in held_beside(analog, set(names) - digital):
        if id(found) in digital:
            raise ConversionError(
                f"{place} leads to layer {names[id(found)]!r} of the digital model even in a copy of the model; "
                f"{_REMEDY}"
            )


def copy_whole(model: nn.Module) -> nn.Module:
    """Return a deep copy whose functions, too, go over its own modules; `copy_model` says what is raised."""
    copies: dict[int, Any] = {}
    twin = copy_model(model, copies)
    rewire(twin, model, copies, {})
    return twin


def replace_held(model: nn.Module, replaced: Mapping[int, nn.Module]) -> None:
    """Replace modules, by their ids, where modules of `model` hold them outside the tree."""
    work = _Rewiring(model, set(), set(), {}, replaced)
    for name, module in list(model.named_modules()):
        work.renew_attributes(module, name)


class _Kept(Exception):
    """A forward pass was taken from its layer: on the chip it would be the digital one, and in the model unseen."""


class _Rewiring:
    def __init__(self, analog: nn.Module, originals: set[int], digital: set[int], copies: Any, replaced: Any) -> None:
        self.tree = {id(module) for module in analog.modules()}
        self.originals, self.digital = originals, digital
        self.copies: dict[int, Any] = copies
        self.replaced: Mapping[int, nn.Module] = replaced
        self.done: dict[int, Any] = {}
        self.alive: list[Any] = []  # ids are only unique among the living

    def renew_attributes(self, module: nn.Module, place: str) -> None:
        for name, value in attributes(module):
            if not _holds_modules(value):
                continue
            try:
                self._renew_entry(module.__dict__, name)
            except _Kept as error:
                raise ConversionError(f"{place}.{name}".lstrip(".") + f" {error}; {_REMEDY}") from None
            except NabnError:
                raise
            except Exception as error:  # whatever objects of the user's raise when they are copied or set
                text = f" holds layers and cannot be copied: {type(error).__name__}: {error}; {_REMEDY}"
                raise ConversionError(f"{place}.{name}".lstrip(".") + text) from error

    def _renew(self, value: Any) -> Any:
        """Return the value with every layer in it renewed; the same object where that can be changed in place."""
        if id(value) not in self.done:
            self.alive.append(value)
            self.done[id(value)] = value
            self.done[id(value)] = self._renewed(value)
        return self.done[id(value)]

    def _renew_entry(self, container: Any, key: Any) -> None:
        new = self._renew(container[key])
        if new is not container[key]:
            container[key] = new

    def _renew_attribute(self, owner: Any, name: str) -> None:
        old = getattr(owner, name)
        new = self._renew(old)
        if new is not old:
            object.__setattr__(owner, name, new)

    def _renewed(self, value: Any) -> Any:
        renew = self._renew
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, (list, deque, dict)):
            for key in list(value if isinstance(value, dict) else range(len(value))):
                self._renew_entry(value, key)
        elif isinstance(value, (tuple, set, frozenset)):
            entries = [renew(entry) for entry in value]
            if any(new is not old for new, old in zip(entries, value, strict=True)):
                return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
        elif isinstance(value, functools.partial):
            function, args, keywords = renew(value.func), renew(value.args), renew(dict(value.keywords))
            changed = any(keywords[key] is not entry for key, entry in value.keywords.items())
            if changed or function is not value.func or args is not value.args:
                return functools.partial(function, *args, **keywords)
        elif isinstance(value, types.MethodType):
            return self._method(value)
        elif isinstance(value, types.FunctionType):
            return self._function(value)
        elif type(value) is weakref.ref and isinstance(value(), nn.Module):
            new = renew(self.copies.get(id(value()), value()))
            return value if new is value() else weakref.ref(new)
        elif is_object(value) and _holds_modules(value):
            for name in object_attributes(value):
                self._renew_attribute(value, name)
        return value

    def _module(self, module: nn.Module) -> nn.Module:
        if id(module) in self.replaced or id(module) in self.tree or id(module) in self.originals:
            return self.replaced.get(id(module), module)
        for part in list(module.modules()):  # outside of the tree, but layers of it may lie inside
            part._modules.update({name: self.replaced.get(id(child), child) for name, child in part._modules.items()})
            self.renew_attributes(part, type(part).__name__)
        return module

    def _method(self, method: types.MethodType) -> Any:
        owner, function = self._renew(method.__self__), self._renew(method.__func__)
        if owner is method.__self__ and function is method.__func__:
            return method
        name = getattr(method.__func__, "__name__", "")
        of_class = getattr(type(method.__self__), name, None) is method.__func__
        if of_class and isinstance(owner, nn.Module) and owner is not method.__self__ and "forward" in name:
            raise _Kept(f"keeps {name}() of a {type(method.__self__).__name__}, whose calls nobody sees")
        return getattr(owner, name) if of_class and hasattr(type(owner), name) else types.MethodType(function, owner)

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        if not self._leads_to_originals(function):
            self._renew_in_place(function)
            return function
        cells = tuple(self._cell(cell) for cell in function.__closure__ or ())
        new = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
        self.done[id(function)] = new  # it may close over itself
        for name in ("__module__", "__qualname__", "__doc__", "__annotations__"):
            setattr(new, name, getattr(function, name))
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            if cell is not old and is_empty(cell):
                cell.cell_contents = self._own(old.cell_contents)
        new.__defaults__, new.__kwdefaults__ = self._own(function.__defaults__), self._own(function.__kwdefaults__)
        new.__dict__.update({name: self._own(value) for name, value in function.__dict__.items()})
        return new

    def _renew_in_place(self, function: types.FunctionType) -> None:
        if not any(id(found) in self.replaced for _, found, _ in held(function, in_function=True)):
            return
        for cell in function.__closure__ or ():
            if not is_empty(cell):
                self._renew_attribute(cell, "cell_contents")
        for name in ("__defaults__", "__kwdefaults__"):
            self._renew_attribute(function, name)
        self._renew(function.__dict__)

    def _cell(self, cell: types.CellType) -> types.CellType:
        """Return a variable of its own where it leads to the model; others stay shared."""
        if id(cell) not in self.done:
            self.alive.append(cell)
            self.done[id(cell)] = cell
            if not is_empty(cell) and self._leads_to_originals(cell.cell_contents):
                self.done[id(cell)] = types.CellType()
        new: types.CellType = self.done[id(cell)]
        return new

    def _own(self, value: Any) -> Any:
        """Return the copy's counterpart of what a function holds."""
        return self._renew(copy.deepcopy(value, self.copies)) if self._leads_to_originals(value) else value

    def _leads_to_originals(self, value: Any) -> bool:
        for _, found, through in held(value, in_function=True):
            if not isinstance(found, nn.Module):
                continue
            if id(found) in self.originals:  # an object may hold the whole model without computing anything with it
                leads = not through or id(found) in self.digital
            else:
                leads = id(found) not in self.tree and any(id(part) in self.originals for part in found.modules())
            if leads:
                return True
        return False


def _holds_modules(value: Any) -> bool:
    return any(isinstance(found, nn.Module) for _, found, _ in held(value))


def check_not_compiled(model: nn.Module) -> None:
    """Raise where a layer lies in a wrapper of `torch.compile`, which goes on running the digital layer.

    Raises:
        ConversionError: names the first one.
    """
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" and hasattr(module, "_orig_mod"):
            place = f"module {name!r}" if name else "the model"
            raise ConversionError(
                f"{place} was compiled by torch.compile, which keeps the digital layers; convert the model first and "
                "compile the result"
            )
