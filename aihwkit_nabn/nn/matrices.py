"""Which parameters of a model are matrices that inputs are multiplied with, and which are not."""

from __future__ import annotations

import re

from torch import nn
from torch.nn.parameter import is_lazy

from aihwkit_nabn.nn.attention import SplitMultiheadAttention

_TABLES = (nn.Embedding, nn.EmbeddingBag)
# What is added to a signal or looked up goes by such names: pos_embed, relative_position_bias_table, cls_token.
_ADDED = re.compile(r"embed|token|bias|(^|_)pos(_|$)")


def matrix_parameters(module: nn.Module, recurse: bool = True) -> list[nn.Parameter]:
    """Return the weight matrices of a module, with `recurse` those inside it too.

    Parameters of two dimensions or more, except lookup tables, learned positions and tokens (told by their names) and
    scales per channel.
    """
    owners = list(module.modules()) if recurse else [module]
    found = {id(p): p for owner in owners for name, p in _parameters(owner) if _is_matrix(owner, name, p)}
    return list(found.values())


def kept_reason(module: nn.Module) -> str:
    """Return why a module without an analog form keeps its own large parameters digital; empty if it has none."""
    if isinstance(module, _TABLES):
        return "lookup table, no matrix product"
    large = [(name, p) for name, p in _parameters(module) if not is_lazy(p) and p.dim() >= 2]
    if any(_is_matrix(module, name, p) for name, p in large):
        return f"{type(module).__name__} has no analog form"
    names = ", ".join(name for name, _ in large)
    return f"{names}: added or scaled elementwise, no matrix product" if large else ""


def _parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module._parameters.items() if p is not None]


def _is_matrix(owner: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    if is_lazy(parameter) or parameter.dim() < 2 or isinstance(owner, _TABLES):
        return False
    if name == "weight":
        return True
    if isinstance(owner, (nn.MultiheadAttention, SplitMultiheadAttention)):
        return name not in ("bias_k", "bias_v")
    return not _ADDED.search(name) and parameter.numel() > max(parameter.shape)
