"""Multi-head attention with its projections as layers of their own, so that they can lie on tiles."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from aihwkit.simulator.parameters.base import RPUConfigBase
from torch import Tensor, nn
from torch.nn import functional as F

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn.carry_over import carry_over
from aihwkit_nabn.nn.layers import NoiseAwareLinear

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class SplitMultiheadAttention(nn.Module):
    """`torch.nn.MultiheadAttention` that calls its four projections as children instead of reading their weights.

    Args:
        module: The attention to stand in for; nothing of it is changed. The projections of the inputs are new linear
            layers on the same memory, `out_proj`, `bias_k` and `bias_v` are the module's own.

    Attributes:
        q_proj: Projection of the queries, ``[embed_dim, embed_dim]``.
        k_proj: Of the keys, ``[embed_dim, kdim]``.
        v_proj: Of the values, ``[embed_dim, vdim]``.
        out_proj: Of the joined heads, ``[embed_dim, embed_dim]``.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = module.embed_dim, module.kdim, module.vdim
        self._qkv_same_embed_dim: bool = module._qkv_same_embed_dim
        self.num_heads: int = module.num_heads
        self.head_dim: int = module.head_dim
        self.dropout: float = module.dropout
        self.batch_first: bool = module.batch_first
        self.add_zero_attn: bool = module.add_zero_attn
        if self._qkv_same_embed_dim:
            weights = module.in_proj_weight.detach().chunk(3)
        else:
            weights = [getattr(module, f"{name}_weight").detach() for name in PROJECTIONS[:3]]
        biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.detach().chunk(3)
        for name, weight, bias in zip(PROJECTIONS, weights, biases, strict=False):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
            linear.weight = nn.Parameter(weight)
            if bias is not None:
                linear.bias = nn.Parameter(bias)
            setattr(self, name, linear.train(module.training))
        self.out_proj = module.out_proj
        self.bias_k: nn.Parameter | None = module.bias_k
        self.bias_v: nn.Parameter | None = module.bias_v
        carry_over(module, self)
        self.training = module.training

    @property
    def in_proj_weight(self) -> Tensor | None:
        """The input projections' weights now, ``[3 * embed_dim, embed_dim]``; None where their widths differ."""
        if not self._qkv_same_embed_dim:
            return None
        return torch.cat([getattr(self, name).weight for name in PROJECTIONS[:3]])

    @property
    def in_proj_bias(self) -> Tensor | None:
        """Their biases, ``[3 * embed_dim]``, or None."""
        biases = [getattr(self, name).bias for name in PROJECTIONS[:3]]
        return None if biases[0] is None else torch.cat(biases)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments, shapes and results are those of `torch.nn.MultiheadAttention`.

        Raises:
            NabnError: shapes do not fit each other, or `is_causal` comes without `attn_mask`.
        """
        if is_causal and attn_mask is None:
            raise NabnError("is_causal says what attn_mask holds; pass attn_mask too")
        batched = query.dim() == 3
        if query.dim() not in (2, 3) or key.dim() != query.dim() or value.dim() != query.dim():
            raise NabnError(
                "query, key and value must all be batched (3 dimensions) or all unbatched (2), "
                f"got {query.dim()}, {key.dim()} and {value.dim()}"
            )
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if not batched:
            q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        mask = self._mask(q, k, attn_mask, key_padding_mask)
        k, v = self._extended(k, self.bias_k), self._extended(v, self.bias_v)
        if mask is not None:
            mask = F.pad(mask, (0, k.shape[1] - mask.shape[-1]))  # what was added is never masked
        out, weights = self._attend(self._heads(q), self._heads(k), self._heads(v), mask, need_weights)
        out = out.transpose(1, 2).reshape(*q.shape[:2], self.embed_dim)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            out, weights = out.squeeze(0), None if weights is None else weights.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        return self.out_proj(out), weights

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def _extended(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Add the learned position and the one of zeros, where the layer has them."""
        extra = [] if bias is None else [bias.expand(x.shape[0], -1, -1)]
        if self.add_zero_attn:
            extra.append(x.new_zeros(x.shape[0], 1, x.shape[2]))
        return torch.cat([x, *extra], 1) if extra else x

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(q, k, v, mask, dropout), None
        scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
        weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
        return weights @ v, weights

    def _mask(self, q: Tensor, k: Tensor, attn: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Return both masks as what is added to the scores, ``[batch or 1, heads or 1, queries, keys]``, or None."""
        n, queries, keys = q.shape[0], q.shape[1], k.shape[1]
        total: Tensor | None = None
        if attn is not None:
            shapes = ((queries, keys), (n * self.num_heads, queries, keys))
            if tuple(attn.shape) not in shapes:
                raise NabnError(f"attn_mask must have shape {shapes[0]} or {shapes[1]}, got {tuple(attn.shape)}")
            n_masks = (1, 1) if attn.dim() == 2 else (n, self.num_heads)
            total = _added(attn, q).reshape(*n_masks, queries, keys)
        if padding is not None:
            if tuple(padding.shape) != (n, keys):
                raise NabnError(f"key_padding_mask must have shape {(n, keys)}, got {tuple(padding.shape)}")
            added = _added(padding, q).view(n, 1, 1, keys)
            total = added.expand(n, 1, queries, keys) if total is None else total + added
        return total


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Turn a mask that is true where nothing may be seen into what is added to the scores."""
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill_(mask, float("-inf"))


class NoiseAwareMultiheadAttention(SplitMultiheadAttention):
    """`torch.nn.MultiheadAttention` with its four projections on tiles; the attention itself is digital."""

    @classmethod
    def from_digital(
        cls, module: nn.Module, rpu_config: RPUConfigBase, tile_module_class: object = None
    ) -> NoiseAwareMultiheadAttention:
        """Return the analog form, weights copied; each projection gets a copy of `rpu_config`."""
        attention = cls(module)
        for name in PROJECTIONS:
            setattr(attention, name, NoiseAwareLinear.from_digital(getattr(attention, name), copy.deepcopy(rpu_config)))
        return attention

    @classmethod
    def to_digital(cls, module: NoiseAwareMultiheadAttention, realistic: bool = False) -> nn.MultiheadAttention:
        """Return torch's layer with the weights the tiles hold now, drift factor and alignments folded in."""
        linears: list[Any] = []
        for name in PROJECTIONS:
            child: Any = getattr(module, name)
            linears.append(NoiseAwareLinear.to_digital(child) if isinstance(child, NoiseAwareLinear) else child)
        weights = [linear.weight for linear in linears]
        biases = [w.new_zeros(len(w)) if m.bias is None else m.bias for w, m in zip(weights, linears, strict=True)]
        digital = nn.MultiheadAttention(
            module.embed_dim,
            module.num_heads,
            dropout=module.dropout,
            # An alignment can bring a bias to layers that had none.
            bias=any(linear.bias is not None for linear in linears),
            add_bias_kv=module.bias_k is not None,
            add_zero_attn=module.add_zero_attn,
            kdim=module.kdim,
            vdim=module.vdim,
            batch_first=module.batch_first,
            device=weights[-1].device,
            dtype=weights[-1].dtype,
        )
        state = {f"{name}_weight": weight for name, weight in zip(PROJECTIONS, weights, strict=True)}
        state |= {"in_proj_weight": torch.cat(weights[:3])} if digital._qkv_same_embed_dim else {}
        state |= {"in_proj_bias": torch.cat(biases[:3]), "bias_k": module.bias_k, "bias_v": module.bias_v}
        state |= {"out_proj.weight": weights[-1], "out_proj.bias": biases[-1]}
        digital.load_state_dict({name: state[name] for name in digital.state_dict()})
        return digital.train(module.training)


def is_plain_attention(module: nn.Module) -> bool:
    """Whether this is torch's attention, or a subclass of it, with torch's own forward pass."""
    return (
        isinstance(module, nn.MultiheadAttention)
        and "forward" not in module.__dict__
        and type(module).forward is nn.MultiheadAttention.forward
    )


def split_windows(module: nn.Module) -> Callable[[], None] | None:
    """Make torchvision's windowed attention call its projections; return what undoes that, or None: another layer."""
    if type(module).__module__ != "torchvision.models.swin_transformer":
        return None
    from aihwkit_nabn.nn import window_attention  # needs torchvision, which the network has

    return window_attention.split_windows(module)


_BIAS_APART = "qkv_bias_separate"  # off, timm's BEiT, EVA and Swin V2 read the weight of `qkv` instead of calling it

# Switches of the fused forms that go past a layer's children, and how they stand when closed.
_FAST_PATHS: dict[type[nn.Module], tuple[str, Any]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}


def close_fast_path(module: nn.Module) -> Callable[[], None]:
    """Make a transformer layer call its children, as tiles and hooks need; return what restores its fused form."""
    names = [(name, closed) for kind, (name, closed) in _FAST_PATHS.items() if isinstance(module, kind)]
    names += [(_BIAS_APART, True)] if _BIAS_APART in module.__dict__ else []
    before = [(name, module.__dict__[name]) for name, _ in names if name in module.__dict__]
    module.__dict__.update(names)
    return lambda: module.__dict__.update(before)


@contextmanager
def split_attention(model: nn.Module) -> Iterator[nn.Module]:
    """Yield `model` with every attention's projections as layers that are called, under the analog model's names.

    The stand-ins share the parameters. Behind the block the model has its own modules again, whatever happened.
    """
    stand_ins: dict[int, SplitMultiheadAttention] = {}
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    reopen: list[Callable[[], None]] = []
    if is_plain_attention(model):
        yield SplitMultiheadAttention(model)
        return
    try:
        for parent in list(model.modules()):
            reopen.append(close_fast_path(parent))
            rejoin = split_windows(parent)
            if rejoin is not None:
                reopen.append(rejoin)
            for name, child in parent._modules.items():
                if child is not None and is_plain_attention(child):
                    swapped.append((parent, name, child))
                    parent._modules[name] = stand_ins.setdefault(id(child), SplitMultiheadAttention(child))
        yield model
    finally:
        for parent, name, child in swapped:
            parent._modules[name] = child
        for restore in reopen:
            restore()
