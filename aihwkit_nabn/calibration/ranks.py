"""Calibration sets that are spread over the processes of a torch.distributed run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor

from aihwkit_nabn.errors import CalibrationError
from aihwkit_nabn.nn.keeping import mapped


class UnionOfRanks:
    """The batches of all ranks, the same ones in the same order on each: every rank's first, every rank's second, ...

    Each rank calibrates on all of them. Calibration sets are small, and so every rank holds the same chip, methods that
    correct a layer before the next is measured see the same batches as on one process, and shards may be uneven or
    empty. One batch per rank is in memory at a time.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self._open = True

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self._batches)
        index, left = 0, True
        while left:
            mine: dict[str, Any] = {}
            try:
                # Another rank may not have this one's device.
                mine["batch"] = mapped(next(iterator), Tensor.cpu)
            except StopIteration:
                pass
            except Exception as error:
                mine["error"] = f"the calibration loader failed after {index} batches: {error}"
            index += 1
            found = self._gather(mine)
            left = any("batch" in entry for entry in found)
            for entry in found:
                if "batch" in entry:
                    yield entry["batch"]

    def finish(self, error: BaseException | None) -> None:
        """Tell the other ranks how it ended here.

        Raises:
            CalibrationError: it ended with an error on another rank, and without one here.
        """
        if self._open:
            try:
                self._gather({} if error is None else {"error": str(error) or type(error).__name__})
            except CalibrationError:
                if error is None:
                    raise
            self._open = False

    def _gather(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, mine)
        for rank, entry in enumerate(found):
            if "error" in entry:
                self._open = False  # every rank knows now
                raise CalibrationError(f"calibration failed on rank {rank} of {len(found)}: {entry['error']}")
        return found


@contextmanager
def union_of_ranks(batches: Any, sharded: bool) -> Iterator[Any]:
    """Yield the union of all ranks' batches where there are several ranks, each with a part of the set.

    An error on one rank inside the block becomes an error on all.
    """
    whole = getattr(batches, "same_on_all_ranks", False)
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if not (sharded and several) or whole or not isinstance(batches, Iterable):
        yield batches
        return
    union = UnionOfRanks(batches)
    try:
        yield union
    except BaseException as error:
        union.finish(error)
        raise
    union.finish(None)
