"""Which modules a conversion leaves digital: those named, those a pattern matches, those a placement file has."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from torch import nn

from aihwkit_nabn.errors import ConversionError, suggestion
from aihwkit_nabn.nn.matrices import matrix_parameters
from aihwkit_nabn.results.placement import PlacedName, Placement

_COMPUTED = ".parametrizations."  # torch keeps what a layer's weight is computed from below it


def check_excluded(model: nn.Module, exclude: Sequence[str]) -> None:
    """Raise unless a model has what is to stay digital.

    Args:
        model: The digital network.
        exclude: From `aihwkit_nabn.results.placement.excluded_names`.

    Raises:
        ConversionError: a name or pattern fits no module; or a placement file is of another network, or keeps digital
            what is no layer.
    """
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    files = {entry.file: entry.placement for entry in exclude if isinstance(entry, PlacedName)}
    for file, placement in files.items():
        check_placement(file, placement, model)
    for entry in exclude:
        if not _matched(modules, (entry,)):
            raise ConversionError(f"exclude names {entry!r}, which no module has{suggestion(entry, modules)}")


def check_placement(file: str | Path, placement: Placement, model: nn.Module) -> None:
    """Raise unless a placement is of this network, with whatever weights, and names layers.

    Raises:
        ConversionError: it is of another network, or keeps digital what is no layer.
    """
    modules, own = dict(model.named_modules(remove_duplicate=False)), set(matrix_layers(model))
    other = f"the placement {file} is of another network ({placement.network}): it"
    for name in placement.exclude:
        if name not in modules:
            raise ConversionError(f"{other} keeps {name!r} digital, which this model lacks{suggestion(name, modules)}")
    differing = sorted(own ^ set(placement.layers))
    if differing:
        name = differing[0]
        having = "lacks the layer" if name in own else "has a layer"
        raise ConversionError(f"{other} {having} {name!r}, which this model {'has' if name in own else 'lacks'}")
    for name in placement.exclude:
        if not matrix_parameters(modules[name]):
            raise ConversionError(
                f"the placement {file} keeps {name!r} digital, which is no layer that could lie on tiles: a "
                f"{type(modules[name]).__name__} without a matrix"
            )


def excluded_ids(model: nn.Module, exclude: Iterable[str]) -> set[int]:
    """Return the ids of the modules left digital, under whichever of their names, with all they contain."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return {id(part) for name in _matched(modules, exclude) for part in modules[name].modules()}


def matrix_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that hold matrices themselves: they tell networks apart, whatever the weights."""
    found = [name.partition(_COMPUTED)[0] for name, module in model.named_modules() if matrix_parameters(module, False)]
    return tuple(dict.fromkeys(filter(None, found)))


def placed_names(model: nn.Module, exclude: Iterable[str]) -> tuple[str, ...]:
    """Return names in place of patterns: the outermost modules left digital that hold matrices."""
    modules = {name: module for name, module in model.named_modules() if name}
    names: list[str] = []
    for name in _matched(modules, exclude):
        inside = any(name.startswith(f"{outer}.") for outer in names)
        if not inside and matrix_parameters(modules[name]):
            names.append(name)
    return tuple(names)


def _matched(names: Collection[str], exclude: Iterable[str]) -> list[str]:
    """Return those of the names that are meant; an entry that is a name itself is no pattern."""
    found = {name for entry in exclude for name in ([entry] if entry in names else fnmatch.filter(names, entry))}
    return [name for name in names if name in found]
