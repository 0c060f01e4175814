"""The per-channel correction that the digital periphery applies to an analog layer's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aihwkit_nabn import native
from aihwkit_nabn.errors import NabnError


class InputMean:
    """Gives the mean of the inputs that each output was computed from: ``[..., 1 or groups, *spatial]``.

    Args:
        inputs: Of the layer.
        mean: What makes the mean of them.
    """

    def __init__(self, inputs: Tensor, mean: Callable[[Tensor], Tensor]) -> None:  # torch's compiler knows no dataclass
        self.inputs = inputs
        self.mean = mean

    def __call__(self) -> Tensor:
        """Return the mean."""
        return self.mean(self.inputs)


class OutputAlignment(nn.Module):
    """``y = scale * x + offset`` per channel, plus ``input_gain * m`` where it has one; the identity until it is set.

    m is the mean of the layer's inputs behind each output, one number for all channels (of a group): what a quantised
    network adds up for its zero points.

    Args:
        n_channels: Length of scale and offset.
        channel_dim: Dimension of the channels, counted from the end (-1 for a linear layer, -3 for a 2-d convolution).

    Attributes:
        scale: ``[n_channels]`` or None.
        offset: ``[n_channels]`` or None.
        input_gain: ``[n_channels]`` or None.
        enabled: Whether `forward` applies them.
        observer: While a calibration runs, called with the raw output and the input mean; what it returns goes on in
            its place.
    """

    scale: Tensor | None
    offset: Tensor | None
    input_gain: Tensor | None

    def __init__(self, n_channels: int, channel_dim: int) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.channel_dim = channel_dim
        self.enabled = True
        self.observer: Callable[[Tensor, InputMean | None], Tensor] | None = None
        self.register_buffer("scale", None)
        self.register_buffer("offset", None)
        self.register_buffer("input_gain", None)

    @property
    def is_set(self) -> bool:
        """Whether it changes anything."""
        return self.scale is not None or self.input_gain is not None

    def set(self, scale: Tensor, offset: Tensor, input_gain: Tensor | None = None) -> None:
        """Take over a scale, an offset and perhaps a gain of the input mean, each ``[n_channels]``.

        Raises:
            NabnError: a shape is wrong or a value is not finite.
        """
        for field, value in (("scale", scale), ("offset", offset), ("input_gain", input_gain)):
            if value is None:
                continue
            if value.shape != (self.n_channels,):
                raise NabnError(f"alignment {field} must have shape ({self.n_channels},), got {tuple(value.shape)}")
            if not bool(torch.isfinite(value).all()):
                raise NabnError(f"alignment {field} must be finite")
        self.scale = scale
        self.offset = offset
        self.input_gain = input_gain

    def reset(self) -> None:
        """Back to the identity."""
        self.scale = None
        self.offset = None
        self.input_gain = None

    def forward(self, x: Tensor, input_mean: InputMean | None = None, *, overwrite: bool = False) -> Tensor:
        """Return `x` aligned; ``[..., n_channels, *spatial]`` in and out; `overwrite` as in `align`."""
        if self.observer is not None:
            return self.observer(x, input_mean)
        if not self.enabled:
            return x
        mean = None if self.input_gain is None or input_mean is None else input_mean()
        if self.scale is not None and self.offset is not None:
            vectors = (self.scale, self.offset, self.input_gain)
            return align(x, *vectors, mean=mean, channel_dim=self.channel_dim, overwrite=overwrite)
        if self.input_gain is not None and mean is not None:
            return _add_mean(x, self.input_gain, mean.to(x.dtype), self.channel_dim, overwrite)
        return x

    def extra_repr(self) -> str:
        """Say whether it is set."""
        return f"{self.n_channels}, channel_dim={self.channel_dim}, set={self.is_set}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        adopt_optional_buffers(self, ("scale", "offset", "input_gain"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def align(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    gain: Tensor | None = None,
    *,
    mean: Tensor | None = None,
    channel_dim: int,
    overwrite: bool = False,
) -> Tensor:
    """Return ``scale * x + offset + gain * mean`` with ``[channels]`` vectors laid along `channel_dim` (negative).

    `mean` has one channel or one per group. `overwrite` says that nobody needs `x` any more. Where it can, the result
    then takes its place: new memory for a large map costs more than the arithmetic.
    """
    scale, offset = scale.to(x.dtype), offset.to(x.dtype)
    if gain is None or mean is None:
        gain = mean = None
    else:
        gain, mean = gain.to(x.dtype), mean.to(x.dtype)
    # Channels in dimension 1: torch's fastest scale-and-shift is to normalise with mean 0 and variance 1.
    is_map = x.dim() == 1 - channel_dim and x.numel() > 0
    if is_map and overwrite and not torch.is_grad_enabled() and native.fits(x, scale, offset, gain, mean):
        native.align_in_place(x, scale, offset, gain, mean)
        return x
    if is_map:
        zero, one = torch.zeros_like(scale), torch.ones_like(scale)
        if overwrite and _may_write(x) and x.is_contiguous() and x.device.type == "cpu":
            unused = (x.new_empty(0), x.new_empty(0))
            torch.native_batch_norm(x, scale, offset, zero, one, False, 0.0, 1e-30, out=(x, *unused))
            out = x
        else:
            out = F.batch_norm(x, zero, one, scale, offset, False, 0.0, 1e-30)
    else:
        view = (-1,) + (1,) * (-channel_dim - 1)
        out = torch.addcmul(offset.view(view), x, scale.view(view))
    return out if gain is None or mean is None else _add_mean(out, gain, mean, channel_dim, True)


def _add_mean(y: Tensor, gain: Tensor, mean: Tensor, channel_dim: int, overwrite: bool) -> Tensor:
    groups = mean.shape[channel_dim]
    if groups > 1:
        mean = mean.repeat_interleave(gain.shape[0] // groups, channel_dim)
    gain = gain.to(y.dtype).view((-1,) + (1,) * (-channel_dim - 1))
    if overwrite and _may_write(y):
        return y.addcmul_(gain, mean)
    return torch.addcmul(y, gain, mean)


def _may_write(y: Tensor) -> bool:
    """Whether neither a gradient nor a record of what torch does needs `y` as it is."""
    return not torch.is_grad_enabled() and not native.is_recorded(y)


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
