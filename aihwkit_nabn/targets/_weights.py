"""Checkpoints of classifiers: tensors only, in the wrappings that training scripts put around them."""

from __future__ import annotations

import argparse
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from aihwkit_nabn.errors import NabnError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_LISTED = 3

# UnpicklingError aside, what torch raises for files that are damaged or of another kind.
DAMAGED = (RuntimeError, EOFError, OSError, LookupError, ValueError, AssertionError, struct.error)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a ``.pth``, ``.pt`` or ``.safetensors`` file, freed of wrappers and prefixes.

    Raises:
        NabnError: no such file, one that cannot be read or holds more than tensors, or no state dict inside.
    """
    path = Path(path)
    if not path.is_file():
        raise NabnError(f"weights {str(path)!r} is no file; give a .pth, .pt or .safetensors file, or the word random")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise NabnError(
            f"weights {path}: no state dict found, neither at the top nor under {', '.join(_WRAPPERS)}; "
            f"save one with torch.save(model.state_dict(), path)"
        )
    state = {str(name): tensor for name, tensor in content.items()}
    # They come in either order: a compiled model that is distributed, or a distributed one that is compiled.
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise NabnError(f"weights {path} is no safetensors file: {error}") from error


def _read_pickle(path: Path) -> object:
    try:
        # torchvision's own training script saves its command line, an argparse.Namespace: a bag of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise NabnError(f"weights {path} is no checkpoint: {_first_line(error)}") from error
        raise NabnError(
            f"weights {path} holds Python objects besides tensors, which are not loaded because they can run code; "
            f"save the state dict alone with torch.save(model.state_dict(), path)"
        ) from error
    except DAMAGED as error:
        raise NabnError(f"weights {path} is no checkpoint: {_first_line(error)}") from error


def count_classes(state: Mapping[str, Tensor], build: Callable[[int], nn.Module], source: str) -> int:
    """Return the number of classes of a checkpoint, from the tensors whose size depends on it.

    Args:
        state: The checkpoint.
        build: Makes the model for a number of classes.
        source: What the checkpoint is called in messages.

    Raises:
        NabnError: the checkpoint lacks the classifier, or its parts contradict each other.
    """
    one, other = _shapes(build, 5), _shapes(build, 7)
    counts: set[int] = set()
    classifier = {name for name in one if name in other and one[name] != other[name]}
    for name in classifier & set(state):
        if state[name].ndim == len(one[name]):
            sizes = zip(one[name], other[name], state[name].shape, strict=True)
            counts.update(size for a, b, size in sizes if a != b)
    if len(counts) != 1:
        found = f"sizes {sorted(counts)}" if counts else "none of these"
        raise NabnError(
            f"{source}: the classifier is to be in {', '.join(sorted(classifier))}, but the file has {found}; "
            f"is it of another model?"
        )
    return counts.pop()


def _shapes(build: Callable[[int], nn.Module], classes: int) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):  # shapes only, no memory
            model = build(classes)
    except NotImplementedError:  # RegNet computes its widths with tensors
        model = build(classes)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def fill_model(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `model`, every tensor of both.

    Raises:
        NabnError: tensors are missing, left over or of another shape.
    """
    own = model.state_dict()
    faults = {
        # Checkpoints older than this counter are complete without it.
        "missing": [n for n in own if n not in state and not n.endswith("num_batches_tracked")],
        "unknown": [n for n in state if n not in own],
        "of another shape": [n for n in own if n in state and state[n].shape != own[n].shape],
    }
    told = [
        f"{kind} {', '.join(names[:_LISTED])}{f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''}"
        for kind, names in faults.items()
        if names
    ]
    if told:
        raise NabnError(f"{source} does not fit the model: {'; '.join(told)}")
    model.load_state_dict(dict(state), strict=False)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
