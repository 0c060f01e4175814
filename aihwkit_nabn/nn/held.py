"""What modules hold outside the module tree: in containers, functions, kept methods and objects of other classes."""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn

# How deep it may lie.
_DEPTH = 12
# How many objects on the way; what a function closes over, such as a trainer, may hold half of the program.
_OBJECTS, _OBJECTS_IN_FUNCTIONS = 3, 1

_TREE = ("_parameters", "_buffers", "_modules")
# What runs only when weights are saved, loaded or trained.
_ASIDE = ("_state_dict", "_load_state_dict", "_backward", "_full_backward")
# Objects of these hold no layers of the user's.
_CLOSED = frozenset({"aihwkit", "aihwkit_nabn", "builtins", "logging", "numpy", "threading", "torch"})
_SIMPLE = (str, bytes, int, float, complex, type(None), type, types.ModuleType)

Found = tuple[str, nn.Module | nn.Parameter, bool]


def attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """Return a module's own attributes, its tree and its weights aside."""
    if type(module).__module__.startswith("aihwkit."):
        return []
    return [(name, v) for name, v in module.__dict__.items() if name not in _TREE and not name.startswith(_ASIDE)]


def held(value: Any, place: str = "", *, in_function: bool = False) -> Iterator[Found]:
    """Yield the modules and parameters that a value leads to, each once; modules are not entered.

    `place` is the name of the value; `in_function` says whether a function closes over it.

    Yields:
        The place (``stages[0]``), what lies there, and whether an object of another class lies between.
    """
    yield from _held(value, place, _OBJECTS_IN_FUNCTIONS if in_function else _OBJECTS, 0, False, set())


def held_beside(model: nn.Module, known: Collection[int] = ()) -> Iterator[Found]:
    """Yield what modules of `model` hold and its tree does not, each once; ids in `known` are left out.

    Modules outside of the tree are entered too.
    """
    waiting = [(name, module) for name, module in model.named_modules()]
    seen = {*known, *(id(part) for part in (*model.modules(), *model.parameters()))}
    while waiting:
        name, module = waiting.pop(0)
        for attribute, value in attributes(module):
            for place, found, through in held(value, f"{name}.{attribute}" if name else attribute):
                if id(found) in seen:
                    continue
                seen.add(id(found))
                yield place, found, through
                inner = list(found.named_modules(prefix=place)) if isinstance(found, nn.Module) else []
                waiting += [(name, part) for name, part in inner if part is found or id(part) not in seen]


def _held(value: Any, place: str, objects: int, depth: int, through: bool, seen: set[int]) -> Iterator[Found]:
    if isinstance(value, _SIMPLE) or depth > _DEPTH or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (nn.Module, nn.Parameter)):
        yield place, value, through
        return
    if is_object(value):
        objects, through = objects - 1, True
        if objects < 0:
            return
    elif isinstance(value, types.FunctionType):
        objects = min(objects, _OBJECTS_IN_FUNCTIONS)
    for name, part in list(_parts(value)):
        yield from _held(part, f"{place}{name}", objects, depth + 1, through, seen)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (list, tuple, deque)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from (("", part) for part in value)
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, functools.partial):
        yield from (("", part) for part in (value.func, value.args, value.keywords))
    elif isinstance(value, types.MethodType):
        yield from (("", part) for part in (value.__self__, value.__func__))
    elif isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        yield from ((f" (closure over {name})", cell.cell_contents) for name, cell in cells if not is_empty(cell))
        yield from (("", part) for part in (value.__defaults__, value.__kwdefaults__, value.__dict__))
    elif isinstance(value, weakref.ReferenceType):
        yield "", value()
    elif is_object(value):
        yield from ((f".{name}", getattr(value, name)) for name in object_attributes(value))


def is_empty(cell: types.CellType) -> bool:
    """Whether the variable of a closure has no value yet."""
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True


def is_object(value: Any) -> bool:
    """Whether the attributes of a value may hold layers: none of a simple type, a container or a function."""
    known = (*_SIMPLE, Tensor, nn.Module, list, tuple, deque, set, frozenset, dict, functools.partial)
    if isinstance(value, (*known, types.MethodType, types.FunctionType, weakref.ReferenceType)):
        return False
    return type(value).__module__.partition(".")[0] not in _CLOSED


def object_attributes(value: Any) -> list[str]:
    """Return the names of an object's own attributes, those in slots too."""
    own = list(getattr(value, "__dict__", ()))
    slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    named = [name for names in slots for name in ((names,) if isinstance(names, str) else names)]
    return [*own, *(name for name in named if name not in ("__dict__", "__weakref__") and hasattr(value, name))]
