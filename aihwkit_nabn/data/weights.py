"""Checkpoints of classifiers: reading files, counting classes, filling models."""

from __future__ import annotations

import argparse
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.errors import NabnError, first_line, some

# What training scripts save beside the weights: torchvision's and timm's command lines, paths, and Lightning's
# hyperparameters, read as what they are derived from.
PLAIN: list[Any] = [
    argparse.Namespace,
    *((PurePath, f"{module}.{kind}Path") for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
    *(
        (OrderedDict, f"{module}.AttributeDict")
        for module in (
            "lightning.fabric.utilities.data",
            "lightning_fabric.utilities.data",
            "pytorch_lightning.utilities.parsing",
            "lightning.pytorch.utilities.parsing",
        )
    ),
]

# UnpicklingError aside, what torch raises for files that are damaged or of another kind.
DAMAGED = (RuntimeError, EOFError, OSError, LookupError, ValueError, AssertionError, struct.error)


def read_checkpoint(path: str | Path) -> Any:
    """Return what a ``.pth``, ``.pt``, ``.ckpt`` or ``.safetensors`` file holds; nothing in it is run.

    Raises:
        NabnError: no such file, or one that cannot be read or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise NabnError(
            f"weights {str(path)!r} is not a file; give a .pth, .pt or .safetensors file, or the word random"
        )
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise NabnError(f"weights {path} is not a safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, LookupError) as error:  # text can begin as an instruction of a pickle
        if not _is_pickle(path):
            raise NabnError(
                f"weights {path} is not a checkpoint: neither a zip archive nor a pickle of torch.save"
            ) from error
        if "Weights only load failed" not in str(error):
            raise NabnError(f"weights {path} is not a checkpoint: {first_line(error)}") from error
        raise NabnError(
            f"weights {path} holds Python objects besides tensors, which are not loaded because they can run code; "
            f"save the state dict alone with torch.save(model.state_dict(), path)"
        ) from error
    except DAMAGED as error:
        raise NabnError(f"weights {path} is not a checkpoint: {first_line(error)}") from error


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as torch.save's do: a zip archive, or a pickle of protocol 2 and later."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", *(bytes((0x80, protocol)) for protocol in range(2, 6)))


def count_classes(state: Mapping[str, Tensor], build: Callable[[int], nn.Module], source: str) -> int:
    """Return the number of classes of a checkpoint, from the tensors whose size depends on it.

    Args:
        state: The checkpoint.
        build: Makes the model for a number of classes.
        source: The checkpoint's name in messages.

    Raises:
        NabnError: the checkpoint lacks the classifier, or its parts contradict each other.
    """
    one, other = _shapes(build, 5), _shapes(build, 7)
    counts: set[float] = set()
    classifier = {name for name in one if name in other and one[name] != other[name]}
    for name in classifier & set(state):
        if state[name].ndim == len(one[name]):
            sizes = zip(one[name], other[name], state[name].shape, strict=True)
            # A detector has an output per class and anchor.
            counts.update(5 + 2 * (size - a) / (b - a) for a, b, size in sizes if a != b)
    if len(counts) != 1 or not min(counts).is_integer() or min(counts) < 1:
        listed = ", ".join(f"{count:g}" for count in sorted(counts))
        found = f"sizes [{listed}]" if counts else "none of these"
        raise NabnError(
            f"{source}: the classifier's tensors are {', '.join(sorted(classifier))}, but the file has {found}; "
            f"is it of another model?"
        )
    return int(counts.pop())


def tensor_names(build: Callable[[int], nn.Module]) -> set[str]:
    """Return the names of a model's tensors; `build` as for `count_classes`."""
    return set(_shapes(build, 2))


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
    told = [f"{kind} {some(names)}" for kind, names in faults.items() if names]
    if told:
        raise NabnError(f"{source} does not fit the model: {'; '.join(told)}")
    model.load_state_dict(dict(state), strict=False)
