"""Layers and weights that a model uses but does not register: they stay digital, and the report says so."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator

from torch import nn

from aihwkit_nabn.errors import some
from aihwkit_nabn.nn.held import held_beside
from aihwkit_nabn.nn.matrices import count_new, is_added, matrix_parameters
from aihwkit_nabn.nn.own_normalization import has_running_statistics
from aihwkit_nabn.nn.report import ConversionReport, LayerEntry

UNREGISTERED = (
    "not registered in the model (a plain list, a function, a global), so it stays digital and state_dict() and .to() "
    "miss it; register it, e.g. in an nn.ModuleList"
)


def unregistered(model: nn.Module, known: Collection[int] = ()) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Yield what is held outside of the tree, by place: layers with matrices or running statistics, and matrices.

    Ids in `known` are left out.
    """
    seen = {*known, *map(id, model.modules())}
    for place, found, _ in held_beside(model, known):
        if isinstance(found, nn.Parameter):
            if found.dim() >= 2 and not is_added(place):
                yield place, found
            continue
        for name, part in found.named_modules(prefix=place):
            if id(part) not in seen:
                seen.add(id(part))
                if matrix_parameters(part, recurse=False) or has_running_statistics(part):
                    yield name, part


def note_unregistered(analog: nn.Module, report: ConversionReport, known: Collection[int], counted: set[int]) -> None:
    """Enter in a conversion's report, with a warning, what the analog model holds outside of its tree.

    Ids of parameters that are in the report already stand in `counted`; those found are added.
    """
    entries = []
    for place, found in unregistered(analog, known):
        own = [found] if isinstance(found, nn.Parameter) else matrix_parameters(found, recurse=False)
        n_weights = count_new(own, counted)
        entries.append(LayerEntry(name=place, kind=type(found).__name__, n_weights=n_weights, reason=UNREGISTERED))
    note_kept(report, entries)


def note_kept(report: ConversionReport, entries: Iterable[LayerEntry]) -> None:
    """Add to a report what it has not yet; warn of what is in no tree."""
    known = {(entry.name, entry.kind) for entry in report.kept_digital}
    new = [entry for entry in entries if (entry.name, entry.kind) not in known]
    report.kept_digital += new
    names = [f"{entry.name} ({entry.kind})" for entry in new if entry.reason == UNREGISTERED]
    if names:
        warnings.warn(
            f"{len(names)} layers or weights of the network stay digital, because they are not registered in it: "
            f"{some(names)}; register them, e.g. in an nn.ModuleList",
            stacklevel=5,
        )
