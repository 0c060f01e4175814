"""Which parameters of a model are matrices that inputs are multiplied with, and which are not."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn
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


def count_new(parameters: Iterable[nn.Parameter], counted: set[int]) -> int:
    """Return how many weights lie in parameters whose ids are not `counted` yet, and count them."""
    new = [parameter for parameter in parameters if id(parameter) not in counted]
    counted.update(map(id, new))
    return sum(parameter.numel() for parameter in new)


def kept_reason(module: nn.Module) -> str:
    """Return why a module without an analog form keeps its own large parameters digital; empty if it has none."""
    if isinstance(module, _TABLES):
        return "lookup table, no matrix product"
    large = [(name, p) for name, p in _parameters(module) if not is_lazy(p) and p.dim() >= 2]
    matrices = [name for name, p in large if _is_matrix(module, name, p)]
    if matrices:
        reason = f"{type(module).__name__} has no analog form"
        is_torchs = type(module).__module__.startswith("torch.")
        return reason if is_torchs else f"{reason}: {', '.join(matrices)} used outside of a layer"
    names = ", ".join(name for name, _ in large)
    return f"{names}: added or scaled elementwise, no matrix product" if large else ""


def opaque_weights(module: nn.Module) -> tuple[str, int] | None:
    """Return why a module whose weights are no parameters is kept, and how many there are; None: it is no such module.

    Quantised layers of torch hold packed weights. Those of lookup tables, and of what cannot give them back, are not
    counted. Scripted modules cannot be changed; their weights are parameters all the same.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit, so its layers cannot be replaced", 0
    give = next((f for f in (getattr(module, name, None) for name in ("weight", "get_weight")) if callable(f)), None)
    if not any(_holds_packed(part) for part in ([module] if give is None else module.modules())):
        return None
    if hasattr(module, "num_embeddings"):
        return "lookup table, no matrix product", 0
    if give is None:
        return "packed weights, not counted: no analog form", 0
    given = give()
    weights = given.values() if isinstance(given, dict) else (given,)
    return "quantised weights, packed: no analog form", sum(w.numel() for w in weights if isinstance(w, Tensor))


def _holds_packed(module: nn.Module) -> bool:
    return any(isinstance(value, torch.ScriptObject) for value in vars(module).values())


def _parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module._parameters.items() if p is not None]


def _is_matrix(owner: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    if is_lazy(parameter) or parameter.dim() < 2 or isinstance(owner, _TABLES):
        return False
    if name == "weight":
        return True
    if isinstance(owner, (nn.MultiheadAttention, SplitMultiheadAttention)):
        return name not in ("bias_k", "bias_v")
    return not is_added(name) and parameter.numel() > max(parameter.shape)


def is_added(name: str) -> bool:
    """Whether a parameter of that name is added to a signal or looked up."""
    return bool(_ADDED.search(name))
