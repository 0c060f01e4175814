"""Take a tile's digital scales out of its weights' gradient, in a form that copies and files keep."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class ScaledGradient:
    """Divides a gradient by the square of each row's digital scale.

    aihwkit's torch tile does so with a hook that is a local function: it cannot be pickled, and a copy of the tile has
    none, so that it trains otherwise. This is both the hook and, for the tile, the handle that removes it. Copies of it
    are hooks of the copied weights ``[out, in]``; `scales` are one number or ``[out]``.
    """

    def __init__(self, weight: nn.Parameter, scales: Tensor) -> None:
        self.weight, self.scales = weight, scales
        trainable = weight.requires_grad
        weight.requires_grad_(True)  # torch takes no hook for frozen weights, which may be trained later
        self._handle = weight.register_hook(self)
        weight.requires_grad_(trainable)

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the gradient as it goes on."""
        return gradient / self.scales.to(gradient.device).view(-1, 1) ** 2

    def remove(self) -> None:
        """Leave the weights' gradient alone from now on."""
        self._handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {"weight": self.weight, "scales": self.scales}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def keep_scaled_gradient(tile: Any) -> None:
    """Put a `ScaledGradient` in the place of aihwkit's own hook on a tile, if any; gradients stay the same."""
    handle = getattr(tile, "_backward_hook_handle", None)
    if not isinstance(handle, RemovableHandle):
        return
    hook = (handle.hooks_dict_ref() or {}).get(handle.id)
    scales = None if hook is None else inspect.getclosurevars(hook).nonlocals.get("scales")
    if isinstance(scales, Tensor):
        handle.remove()
        tile._backward_hook_handle = ScaledGradient(tile.tile.weight, scales)
