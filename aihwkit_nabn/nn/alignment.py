"""The per-channel scale and offset that the digital periphery applies to an analog layer's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aihwkit_nabn.errors import NabnError


class OutputAlignment(nn.Module):
    """``y = scale * x + offset`` per channel; the identity until it is set.

    Args:
        n_channels: Length of scale and offset.
        channel_dim: Dimension of the channels, counted from the end (-1 for a linear layer, -3 for a 2-d convolution).

    Attributes:
        scale: ``[n_channels]`` or None.
        offset: ``[n_channels]`` or None.
        enabled: Whether `forward` applies them.
        observer: While a calibration runs, called with the raw output; what it returns goes on in its place.
    """

    scale: Tensor | None
    offset: Tensor | None

    def __init__(self, n_channels: int, channel_dim: int) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.channel_dim = channel_dim
        self.enabled = True
        self.observer: Callable[[Tensor], Tensor] | None = None
        self.register_buffer("scale", None)
        self.register_buffer("offset", None)

    @property
    def is_set(self) -> bool:
        """Whether a scale and an offset are there."""
        return self.scale is not None

    def set(self, scale: Tensor, offset: Tensor) -> None:
        """Take over a scale and an offset, each ``[n_channels]``.

        Raises:
            NabnError: a shape is wrong or a value is not finite.
        """
        for field, value in (("scale", scale), ("offset", offset)):
            if value.shape != (self.n_channels,):
                raise NabnError(f"alignment {field} must have shape ({self.n_channels},), got {tuple(value.shape)}")
            if not bool(torch.isfinite(value).all()):
                raise NabnError(f"alignment {field} must be finite")
        self.scale = scale
        self.offset = offset

    def reset(self) -> None:
        """Back to the identity."""
        self.scale = None
        self.offset = None

    def forward(self, x: Tensor, *, overwrite: bool = False) -> Tensor:
        """Return `x` aligned; ``[..., n_channels, *spatial]`` in and out; `overwrite` as in `align`."""
        if self.observer is not None:
            return self.observer(x)
        if not self.enabled or self.scale is None or self.offset is None:
            return x
        return align(x, self.scale, self.offset, self.channel_dim, overwrite=overwrite)

    def extra_repr(self) -> str:
        """Say whether it is set."""
        return f"{self.n_channels}, channel_dim={self.channel_dim}, set={self.is_set}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        adopt_optional_buffers(self, ("scale", "offset"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def align(x: Tensor, scale: Tensor, offset: Tensor, channel_dim: int, *, overwrite: bool = False) -> Tensor:
    """Return ``scale * x + offset`` with ``[channels]`` vectors laid along `channel_dim` (negative).

    `overwrite` says that nobody needs `x` any more. Where it can, the result then takes its place: new memory for a
    large map costs more than the arithmetic.
    """
    scale, offset = scale.to(x.dtype), offset.to(x.dtype)
    if x.dim() == 1 - channel_dim and x.numel():
        # Channels in dimension 1: normalising with mean 0 and variance 1 is torch's fastest fused scale-and-shift.
        zero, one = torch.zeros_like(scale), torch.ones_like(scale)
        if not overwrite or torch.is_grad_enabled() or not x.is_contiguous() or x.device.type != "cpu":
            return F.batch_norm(x, zero, one, scale, offset, False, 0.0, 1e-30)
        unused = (x.new_empty(0), x.new_empty(0))
        torch.native_batch_norm(x, scale, offset, zero, one, False, 0.0, 1e-30, out=(x, *unused))
        return x
    view = (-1,) + (1,) * (-channel_dim - 1)
    return torch.addcmul(offset.view(view), x, scale.view(view))


def adopt_optional_buffers(module: nn.Module, names: tuple[str, ...], state: dict[str, Any], prefix: str) -> None:
    """Make room for buffers that are None in a fresh module but stand in the state dict to load, and the reverse."""
    like = next((t for t in (*module.parameters(), *module.buffers())), None)
    for name in names:
        value = state.get(prefix + name)
        current = getattr(module, name)
        if value is None:
            setattr(module, name, None)
        elif current is None or current.shape != value.shape:
            device = value.device if like is None else like.device
            setattr(module, name, torch.empty_like(value, device=device))
