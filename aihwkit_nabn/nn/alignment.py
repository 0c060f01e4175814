"""The per-channel correction that the digital periphery applies to an analog layer's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aihwkit_nabn import native
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.simulator.product.linear_map import LinearMap

#: What an alignment is made of.
PARTS = ("scale", "offset", "input_gain", "directions", "mixing")


class LayerInput:
    """A layer's inputs, summed as the digital periphery does it beside the tiles.

    `mean_is_cheap` says whether that is little work beside the layer's own.
    """

    def __init__(  # torch's compiler knows no dataclass
        self, inputs: Tensor, linear_map: LinearMap, mean_is_cheap: bool = True
    ) -> None:
        self.inputs = inputs
        self.linear_map = linear_map
        self.mean_is_cheap = mean_is_cheap

    def mean(self) -> Tensor:
        """Return the mean of the inputs that each output was computed from: ``[..., 1 or groups, *spatial]``."""
        return self.linear_map.input_mean(self.inputs)

    def window_mean(self) -> Tensor:
        """Return each input channel's mean over the window of each output: ``[..., in_channels, *spatial]``."""
        return self.linear_map.window_mean(self.inputs)

    def along(self, directions: Tensor) -> Tensor:
        """Return the window means along directions ``[rank, in_channels]``: ``[..., rank, *spatial]``."""
        m, directions = self.linear_map, directions.to(self.inputs)
        if m.skips_positions:
            return m.project(m.window_mean(self.inputs), directions)
        return m.window_mean(m.project(self.inputs, directions))


class OutputAlignment(nn.Module):
    """``y = scale * x + offset`` per channel, plus terms of the layer's inputs; the identity until it is set.

    The terms are ``input_gain * m`` and ``mixing @ (directions @ b)``. m is the mean of the inputs behind each output,
    one number for all channels of a group, as a quantised network sums it for its zero points. b holds the input
    channels' means over each output's window: a low-rank correction.

    Args:
        n_channels: Length of scale and offset.
        channel_dim: Dimension of the channels, counted from the end (-1 for a linear layer, -3 for a 2-d convolution).

    Attributes:
        scale: ``[n_channels]`` or None.
        offset: ``[n_channels]`` or None.
        input_gain: ``[n_channels]`` or None.
        directions: ``[rank, in_channels]`` or None.
        mixing: ``[n_channels, rank]`` or None.
        enabled: Whether `forward` applies them.
        observer: While a calibration runs, called with the raw output and the layer's input (None where the periphery
            cannot add it up); what it returns goes on in its place.
    """

    scale: Tensor | None
    offset: Tensor | None
    input_gain: Tensor | None
    directions: Tensor | None
    mixing: Tensor | None

    def __init__(self, n_channels: int, channel_dim: int) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.channel_dim = channel_dim
        self.enabled = True
        self.observer: Callable[[Tensor, LayerInput | None], Tensor] | None = None
        for name in PARTS:
            self.register_buffer(name, None)

    @property
    def is_set(self) -> bool:
        """Whether it changes anything."""
        return any(getattr(self, name) is not None for name in PARTS)

    def set(
        self,
        scale: Tensor,
        offset: Tensor,
        input_gain: Tensor | None = None,
        directions: Tensor | None = None,
        mixing: Tensor | None = None,
    ) -> None:
        """Take over a scale, an offset and perhaps a gain of the input mean, each ``[n_channels]``, and a correction.

        Raises:
            NabnError: a shape is wrong or a value is not finite.
        """
        if (directions is None) != (mixing is None):
            raise NabnError("alignment directions and mixing go together, got one of them")
        if directions is not None and mixing is not None:
            if directions.dim() != 2 or mixing.shape != (self.n_channels, len(directions)):
                raise NabnError(
                    f"alignment mixing must have shape ({self.n_channels}, rank) and directions (rank, in_channels), "
                    f"got {tuple(mixing.shape)} and {tuple(directions.shape)}"
                )
        parts = dict(zip(PARTS, (scale, offset, input_gain, directions, mixing), strict=True))
        for name, value in parts.items():
            if name in PARTS[:3] and value is not None and value.shape != (self.n_channels,):
                raise NabnError(f"alignment {name} must have shape ({self.n_channels},), got {tuple(value.shape)}")
            if value is not None and not bool(torch.isfinite(value).all()):
                raise NabnError(f"alignment {name} must be finite")
        for name, value in parts.items():
            setattr(self, name, value)

    def reset(self) -> None:
        """Back to the identity."""
        for name in PARTS:
            setattr(self, name, None)

    def forward(self, x: Tensor, given: LayerInput | None = None, *, overwrite: bool = False) -> Tensor:
        """Return `x` aligned; ``[..., n_channels, *spatial]`` in and out; `overwrite` as in `align`."""
        if self.observer is not None:
            return self.observer(x, given)
        if not self.enabled:
            return x
        out = self._scaled(x, given, overwrite)
        if self.directions is None or self.mixing is None or given is None:
            return out
        return add_correction(out, given, self.directions, self.mixing, overwrite=overwrite or out is not x)

    def _scaled(self, x: Tensor, given: LayerInput | None, overwrite: bool) -> Tensor:
        mean = None if self.input_gain is None or given is None else given.mean()
        if self.scale is not None and self.offset is not None:
            vectors = (self.scale, self.offset, self.input_gain)
            return align(x, *vectors, mean=mean, channel_dim=self.channel_dim, overwrite=overwrite)
        if self.input_gain is not None and mean is not None:
            return add_mean(x, self.input_gain, mean.to(x.dtype), self.channel_dim, overwrite)
        return x

    def extra_repr(self) -> str:
        """Say whether it is set."""
        return f"{self.n_channels}, channel_dim={self.channel_dim}, set={self.is_set}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        adopt_optional_buffers(self, PARTS, state_dict, prefix)
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
    return out if gain is None or mean is None else add_mean(out, gain, mean, channel_dim, True)


def add_correction(
    y: Tensor, given: LayerInput, directions: Tensor, mixing: Tensor, *, overwrite: bool = False
) -> Tensor:
    """Return `y` plus ``mixing @ (directions @ b)``; `overwrite` as in `align`."""
    correction = given.linear_map.project(given.along(directions), mixing.to(y.dtype))
    if overwrite and _may_write(y):
        return y.add_(correction)
    return y + correction


def add_mean(y: Tensor, gain: Tensor, mean: Tensor, channel_dim: int, overwrite: bool) -> Tensor:
    """Return ``y + gain * mean``, the mean having one channel or one per group; `overwrite` as in `align`."""
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
