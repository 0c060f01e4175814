"""Which of the state dicts in a checkpoint is a network's, and under which prefix."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aihwkit_nabn.errors import NabnError, some, suggestion

COMPILED = "_orig_mod."  # of torch.compile, in front of the names of whichever module was compiled
MODEL, AVERAGED = "model", "ema"
_AVERAGED_WORDS = {"ema", "emamodel", "modelema", "swa", "averaged", "average", "avg"}
_COUNTERS = ("n_averaged", "steps")  # of torch's and mmengine's averages
_DEEPEST = 3
_ENTRIES = 12  # of a checkpoint that are told


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A network's tensors out of a checkpoint.

    Attributes:
        state: The tensors by the network's own names.
        place: Where they are in the file: keys and prefix, as ``model_ema.module``; empty: at the top.
        averaged: Whether they are averages over training steps (EMA, SWA).
        matched: How many of the network's names are among them.
        others: Places of other weights in the file that fit the network too.
        unused: Names of the tensors that lie beside them without the prefix.
    """

    state: dict[str, Tensor]
    place: str
    averaged: bool
    matched: int
    others: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def notes(self, source: str) -> list[str]:
        """Return lines that tell the user what was taken and what was not, none where there was no choice."""
        lines = []
        if self.others:
            kind = " (averaged)" if self.averaged else ""
            lines.append(f"{source}: {self.place or 'top'}{kind} was taken; --take NAME takes {', '.join(self.others)}")
        if self.unused:
            lines.append(f"{source}: left out, not of this network: {some(self.unused)}")
        return lines


def find_weights(
    content: Any,
    names: Collection[str],
    source: str,
    *,
    take: str | None = None,
    rename: Callable[[str], str] | None = None,
) -> Weights:
    """Return the state dict in a checkpoint that holds a network's tensors, its names freed of prefixes.

    Prefixes are those of whatever module held the network in training: Lightning's modules, `DataParallel`,
    `AveragedModel`, `torch.compile`. Of trained and averaged weights the trained ones are taken, if not told otherwise.

    Args:
        content: What the file holds.
        names: Of the network's tensors.
        source: The checkpoint's name in messages.
        take: ``"model"`` for weights as trained, ``"ema"`` for averaged ones, or a place as in `Weights`.
        rename: Returns the network's name for one of the file's, prefix or not.

    Raises:
        NabnError: nothing fits, or several do and `take` does not decide.
    """
    fitting = fitting_weights(content, names, rename)
    if not fitting:
        raise NabnError(f"{source} {_misfit(content, names)}")
    wanted = _wanted(fitting, take)
    places = [weights.place or "top" for weights in fitting]
    if not wanted:
        raise NabnError(
            f"{source} has no weights {take!r} for this network{suggestion(str(take), [*places, MODEL, AVERAGED])}; "
            f"it has {', '.join(places)}"
        )
    best = max(weights.matched for weights in wanted)
    first, *rest = [weights for weights in wanted if weights.matched == best]
    different = [weights.place or "top" for weights in rest if not _equal(first.state, weights.state)]
    if different:
        raise NabnError(
            f"{source} holds several weights for this network, in {', '.join([first.place or 'top', *different])}; "
            "say which with --take NAME"
        )
    others = tuple(w.place or "top" for w in fitting if w is not first and w not in rest)
    return replace(first, others=others)


def fitting_weights(content: Any, names: Collection[str], rename: Callable[[str], str] | None = None) -> list[Weights]:
    """Return all state dicts in a checkpoint that could be a network's; arguments as for `find_weights`.

    Those with less than half as many of its names as the best one are left out.
    """
    counted = {name for name in names if not name.endswith("num_batches_tracked")} or set(names)
    found = []
    for path, tensors in _state_dicts(content):
        own = {name.replace(COMPILED, ""): tensor for name, tensor in tensors.items()}
        if rename is not None:
            own = {rename(name): tensor for name, tensor in own.items()}
        found += _under_prefixes(path, own, counted)
    most = max((weights.matched for weights in found), default=0)
    fitting = [weights for weights in found if 2 * weights.matched >= most]
    return [_swapped(weights) for weights in fitting] if _swaps_averages(content) else fitting


def _wanted(fitting: list[Weights], take: str | None) -> list[Weights]:
    if take is None:
        return [weights for weights in fitting if not weights.averaged] or fitting
    named = [weights for weights in fitting if (weights.place or "top") == take]
    if named or take not in (MODEL, AVERAGED):
        return named
    return [weights for weights in fitting if weights.averaged == (take == AVERAGED)]


def _state_dicts(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every mapping with named tensors in it, the outermost first."""
    if not isinstance(content, Mapping) or len(path) > _DEEPEST:
        return
    entries = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    for name, value in entries.items():
        yield from _state_dicts(value, (*path, name))


def _under_prefixes(path: tuple[str, ...], tensors: dict[str, Tensor], names: set[str]) -> list[Weights]:
    """Return what fits the network under each prefix that some of its names have here."""
    counts: Counter[str] = Counter()
    for name in tensors:
        starts = (0, *(place + 1 for place, letter in enumerate(name) if letter == "."))
        counts.update(name[:start] for start in starts if name[start:] in names)
    found = []
    for prefix, matched in counts.items():
        place = ".".join([*path, *prefix.split(".")]).rstrip(".")
        found.append(
            Weights(
                state={name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)},
                place=place,
                averaged=any(name in tensors for name in _COUNTERS)
                or not _AVERAGED_WORDS.isdisjoint(re.split(r"[._]", place.lower())),
                matched=matched,
                unused=tuple(name for name in tensors if not name.startswith(prefix) and name not in _COUNTERS),
            )
        )
    return found


def _swaps_averages(content: Any) -> bool:
    """Whether mmengine's EMAHook wrote the file: it puts the averages under ``state_dict``, and the others aside."""
    return (
        isinstance(content, Mapping) and "ema_state_dict" in content and ("message_hub" in content or "meta" in content)
    )


def _swapped(weights: Weights) -> Weights:
    return replace(weights, averaged=weights.place.partition(".")[0] == "state_dict")


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _misfit(content: Any, names: Collection[str]) -> str:
    dicts = list(_state_dicts(content))
    if not dicts:
        return f"holds no state dict but {describe(content)}; save one with torch.save(model.state_dict(), path)"
    return f"is of another network: it holds {describe(content)}, and the network has {some(names)}"


def describe(content: Any) -> str:
    """Return what a checkpoint holds, in a line: its entries, with the names of the first tensors."""
    if isinstance(content, Tensor):
        return "a tensor"
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    tensors = [str(name) for name, value in content.items() if isinstance(value, Tensor)]
    parts = [f"{len(tensors)} tensors ({some(tensors)})"] if tensors else []
    parts += [
        f"{name} ({describe(value)})" if isinstance(value, Mapping) else f"{name} ({type(value).__name__})"
        for name, value in list(content.items())[:_ENTRIES]
        if not isinstance(value, Tensor)
    ]
    return ", ".join(parts) or "nothing"
