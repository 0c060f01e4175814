"""Torchvision's windowed attention, calling its projections instead of reading their weights.

Imported only for networks that have it, so that the core does not need torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    shifted_window_attention,
)


class SplitWindowAttention(ShiftedWindowAttention):  # type: ignore[misc]  # torchvision comes without types
    """`ShiftedWindowAttention` of Swin transformers whose `qkv` and `proj` are called, so that they can lie on tiles.

    Torchvision's own function does the rest; ``[batch, height, width, channels]`` in and out.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows."""
        stand_ins = x.new_empty(0), x.new_empty(0)
        with _Calls(stand_ins, (self.qkv, self.proj)):
            out: Tensor = shifted_window_attention(
                x,
                *stand_ins,
                self.get_relative_position_bias(),
                self.window_size,
                self.num_heads,
                shift_size=self.shift_size,
                attention_dropout=self.attention_dropout,
                dropout=self.dropout,
                logit_scale=getattr(self, "logit_scale", None),
                training=self.training,
            )
        return out


class SplitWindowAttentionV2(SplitWindowAttention, ShiftedWindowAttentionV2):  # type: ignore[misc]
    """The same for `ShiftedWindowAttentionV2`."""


# By torchvision's class; no others, since a subclass may have a forward pass of its own.
_FORMS: dict[type, type] = {
    ShiftedWindowAttention: SplitWindowAttention,
    ShiftedWindowAttentionV2: SplitWindowAttentionV2,
}


def split_windows(module: Any) -> Callable[[], None] | None:
    """Make an attention call its projections, in place; return what undoes that, or None where it is another layer."""
    own, form, bias = type(module), _FORMS.get(type(module)), None
    if form is None:
        return None
    module.__class__ = form
    if own is ShiftedWindowAttentionV2 and module.qkv.bias is not None:
        bias = module.qkv.bias
        without = bias.detach().clone().unflatten(0, (3, -1))
        without[1] = 0.0  # the second version gives its keys none, whatever the layer holds
        module.qkv.bias = nn.Parameter(without.flatten(), requires_grad=bias.requires_grad)

    def undo() -> None:
        module.__class__ = own
        if bias is not None:
            module.qkv.bias = bias

    return undo


class _Calls(TorchFunctionMode):
    """Inside the block, ``F.linear`` with one of the stand-ins as weight is a call of its layer."""

    def __init__(self, stand_ins: Sequence[Tensor], layers: Sequence[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.calls = {id(stand_in): layer for stand_in, layer in zip(stand_ins, layers, strict=True)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        layer = self.calls.get(id(args[1])) if func is F.linear else None
        return func(*args, **(kwargs or {})) if layer is None else layer(args[0])
