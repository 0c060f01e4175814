"""Tensors that deep copies share, because nobody writes into them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SharedTensor(Tensor):
    """A tensor that nobody writes into: deep copies of what holds it hold the same one.

    Whatever is computed from it is a plain tensor, and so is what comes back from a pickle.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedTensor:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def share(value: Any) -> Any:
    """Return `value`, the tensors in its lists and dictionaries made shared ones, of the same memory if contiguous."""
    if type(value) is Tensor:
        return value.contiguous().as_subclass(SharedTensor)
    if type(value) is list:
        return [share(item) for item in value]
    if type(value) is dict:
        return {key: share(item) for key, item in value.items()}
    return value


def share_programming(tile: Any) -> None:
    """Let copies of a programmed tile share its targets, its programmed weights and what its drift needs.

    aihwkit and the noise models replace them, never write into them.
    """
    for name in ("reference_combined_weights", "programmed_weights", "drift_noise_parameters", "drift_baseline"):
        vars(tile)[name] = share(vars(tile)[name])
