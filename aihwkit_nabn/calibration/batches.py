"""Read calibration sets: any iterable of any kind of batch, up to a number of samples, checked on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.errors import CalibrationError, NabnError
from aihwkit_nabn.nn.keeping import copied, remade

ForwardFn = Callable[[nn.Module, Any], Any]


def check_batches(batches: object, needed_by: str) -> None:
    """Raise `CalibrationError` unless `batches` is an iterable of batches, not one of them; say who needs it."""
    one = isinstance(batches, (Tensor, str)) or hasattr(batches, "__array__")
    if one or (isinstance(batches, Mapping) and batches):
        shape = f" of shape {tuple(batches.shape)}" if isinstance(batches, Tensor) else ""
        kind = type(batches).__name__
        raise CalibrationError(f"{needed_by} needs an iterable of batches, got one {kind}{shape}; pass a list: [batch]")
    if not isinstance(batches, Iterable):
        raise CalibrationError(f"{needed_by} needs calibration batches (an iterable), got {batches!r}")


def separate(forward_fn: ForwardFn, model: nn.Module, batch: Any) -> list[Any]:
    """Return the parts of a batch that `forward_fn` runs one after the other, as batches of their own.

    A function that does so has an attribute `separate`, called with the model and the batch. Run side by side, each
    part meets every layer once, which makes one pass over them exact.
    """
    found: Callable[[nn.Module, Any], list[Any]] | None = getattr(forward_fn, "separate", None)
    return [batch] if found is None else found(model, batch)


def default_forward(model: nn.Module, batch: Any) -> Any:
    """Call the model on a tensor, or on the first element of a tuple or list (images, labels); moved to its device.

    Raises:
        CalibrationError: the batch is of another kind.
    """
    images = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
    if not isinstance(images, Tensor):
        raise CalibrationError(
            f"a calibration batch of type {type(batch).__name__} needs forward_fn(model, batch); without it a batch "
            "must be a tensor or a tuple that begins with one"
        )
    like = next((t for t in (*model.parameters(), *model.buffers())), images)
    return model(images.to(like.device))


def run_batch(forward_fn: ForwardFn, model: nn.Module, batch: Any, what: str) -> Any:
    """Return what a model makes of a batch.

    Raises:
        CalibrationError: it cannot be run; names `what` failed, and the batch's shapes.
    """
    try:
        return forward_fn(model, batch)
    except NabnError:
        raise
    except Exception as error:
        raise CalibrationError(f"{what} ({describe(batch)}): {type(error).__name__}: {error}") from error


def limited(
    batches: Iterable[Any], max_samples: int | None, forward_fn: ForwardFn | None = None
) -> Iterator[tuple[Any, int]]:
    """Yield each batch with its number of samples, cutting the last one so that `max_samples` are not exceeded.

    For `default_forward` a list is what a tuple is, the parts of a batch side by side (a DataLoader makes lists of
    them), and comes out as one.

    Raises:
        CalibrationError: a batch holds NaN or infinite values, or the loader itself fails.
    """
    seen = 0
    index = 0
    iterator = iter(batches)
    while max_samples is None or seen < max_samples:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except CalibrationError:
            raise
        except Exception as error:
            raise CalibrationError(f"the calibration loader failed after {index} batches: {error}") from error
        if forward_fn is default_forward and type(batch) is list:
            batch = tuple(batch)
        size = batch_size(batch)
        if max_samples is not None and seen + size > max_samples:
            batch = _first(batch, max_samples - seen, size)
            size = batch_size(batch)
        check_finite(batch, f"calibration batch {index}")
        seen += size
        index += 1
        yield batch, size


def batch_size(batch: Any) -> int:
    """Return the number of samples in a batch.

    That is the length of its first tensor; of a list of images ``[C, H, W]``, records or other objects, the length of
    the list. A tuple holds the parts of a batch side by side (images, labels), and so does a list of tensors that are
    not all of three dimensions; inside one, a list or tuple has an entry per sample.
    """
    size = _size(batch, inside=False)
    return 1 if size is None else size


def _size(batch: Any, inside: bool) -> int | None:
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else None
    if isinstance(batch, Mapping):
        sizes = (_size(value, inside=True) for value in batch.values())
        return next((size for size in sizes if size is not None), None)
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return _size(batch[0], inside=True) if batch and not _lists_samples(batch, inside) else len(batch)
    return None


def _lists_samples(batch: Sequence[Any], inside: bool) -> bool:
    """Whether each entry is one sample, rather than one part of all samples."""
    first = batch[0]
    if isinstance(first, Tensor):
        if inside:
            return first.dim() <= 3
        return isinstance(batch, list) and all(isinstance(part, Tensor) and part.dim() == 3 for part in batch)
    if isinstance(first, Mapping):
        return inside or isinstance(batch, list)
    return inside or isinstance(batch, list) or not isinstance(first, (list, tuple))


def first_samples(batch: Any, n: int, size: int) -> Any:
    """Return the first `n` of a batch's `size` samples, their tensors copied: some networks write into their inputs."""
    return copied(_first(batch, min(n, size), size))


def _first(batch: Any, n: int, size: int, inside: bool = False) -> Any:
    """Return the first `n` of `size` samples; parts that do not count samples stay whole."""
    if isinstance(batch, Tensor):
        return batch[:n] if batch.dim() and batch.shape[0] == size else batch
    if isinstance(batch, Mapping):
        return remade(batch, {key: _first(value, n, size, inside=True) for key, value in batch.items()})
    if not isinstance(batch, (list, tuple)) or not batch:
        return batch
    if len(batch) == size and _lists_samples(batch, inside):
        return batch[:n]
    parts = [_first(part, n, size, inside=True) for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)


class SampleStore:
    """Kept batches, at least one, to be drawn from in mini-batches.

    Tensors, and tuples of tensors with one row per sample, are joined and drawn from sample by sample. Batches of any
    other kind are drawn whole, as they came; with `whole`, all are.
    """

    def __init__(self, batches: Sequence[Any], whole: bool = False) -> None:
        self._whole = list(batches)
        self._joined = None if whole else _join(self._whole)
        self.n = len(self._whole) if self._joined is None else self._joined[0].shape[0]

    def n_samples(self, index: list[int]) -> int:
        """Return how many samples some of what can be drawn are."""
        return len(index) if self.by_sample else sum(batch_size(self._whole[i]) for i in index)

    @property
    def by_sample(self) -> bool:
        """Whether single samples can be drawn."""
        return self._joined is not None

    @property
    def values_per_sample(self) -> int:
        """Numbers in one sample; 0 where single samples cannot be drawn."""
        return 0 if self._joined is None else self._joined[0][0].numel()

    def split(self, share: float) -> tuple[list[int], list[int]]:
        """Return the indices to learn from and those held out, evenly spaced; nothing is held out of fewer than two."""
        n_held = min(self.n - 1, max(1, round(self.n * share))) if share > 0 else 0
        held = sorted({round((i + 0.5) * self.n / n_held - 0.5) for i in range(n_held)}) if n_held else []
        apart = set(held)
        return [i for i in range(self.n) if i not in apart], held

    def minibatches(self, index: list[int], size: int) -> list[list[int]]:
        """Cut indices into groups of about `size` samples; whole batches stay alone."""
        step = size if self._joined is not None else 1
        groups = [index[i : i + step] for i in range(0, len(index), step)]
        if len(groups) > 1 and len(groups[-1]) * 2 < step:  # a small rest would be a noisy step of its own
            groups[-2:] = [groups[-2] + groups[-1]]
        return groups

    def take(self, index: list[int]) -> Any:
        """Return the samples of one group as a batch of the original kind."""
        if self._joined is None:
            return self._whole[index[0]]
        rows = torch.tensor(index)
        parts = tuple(part[rows.to(part.device)] for part in self._joined)
        return parts[0] if isinstance(self._whole[0], Tensor) else type(self._whole[0])(parts)


def _join(batches: list[Any]) -> tuple[Tensor, ...] | None:
    first = batches[0]
    if all(isinstance(batch, Tensor) and batch.dim() for batch in batches):
        columns: list[list[Tensor]] = [list(batches)]
    elif type(first) in (tuple, list) and all(
        type(batch) is type(first)
        and len(batch) == len(first)
        and all(isinstance(part, Tensor) and part.dim() and len(part) == len(batch[0]) for part in batch)
        for batch in batches
    ):
        if _lists_samples(first, inside=False):
            return None
        columns = [list(column) for column in zip(*batches, strict=True)]
    else:
        return None
    if any(part.shape[1:] != column[0].shape[1:] for column in columns for part in column):
        return None
    return tuple(torch.cat(column) for column in columns)


def check_finite(batch: Any, what: str) -> None:
    """Raise if a floating-point tensor inside `batch` holds NaN or infinite values.

    Raises:
        CalibrationError: names `what`.
    """
    for tensor in tensors_in(batch):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CalibrationError(f"{what} holds NaN or infinite values")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors inside nested tuples, lists, dictionaries and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name, None))


def describe(batch: Any) -> str:
    """Return a batch's type and shapes, for messages."""
    shapes = [str(tuple(tensor.shape)) for tensor in tensors_in(batch)]
    shown = ", ".join(shapes[:3]) + (", ..." if len(shapes) > 3 else "")
    return f"{type(batch).__name__} with {'shapes ' + shown if shapes else 'no tensor'}"
