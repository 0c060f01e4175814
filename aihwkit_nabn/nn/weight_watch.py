"""Which weights a forward pass uses, however it reaches the layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from aihwkit_nabn.nn.matrices import matrix_parameters
from aihwkit_nabn.nn.operation import OPERATIONS
from aihwkit_nabn.nn.report import LayerEntry
from aihwkit_nabn.nn.unregistered import UNREGISTERED, unregistered

_MULTIPLIED = "multiplied with outside of a layer that can go on tiles: use a layer, e.g. nn.Linear"

# Either operand may be the weight.
_PRODUCTS: set[Any] = {
    *(getattr(torch, name) for name in ("matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "einsum", "tensordot")),
    *(getattr(Tensor, name) for name in ("matmul", "mm", "bmm", "mv", "addmm", "__matmul__", "__rmatmul__")),
    *(F.multi_head_attention_forward, F.bilinear, torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu),
}


class WeightWatch(TorchFunctionMode):
    """Inside the block, counts the operations that weights, or views of them, go into; a layer's call is only one way.

    Tied weights count once for each of their layers. Looking up embeddings is no product.

    Args:
        model: What is run.
        layers: The weights of its layers that go on tiles, by name.

    Attributes:
        used: How many operations each layer's weight went into.
        others: Other weights that were multiplied with and that no conversion's report can have, by name.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Tensor | None]) -> None:
        super().__init__()
        self.used: Counter[str] = Counter()
        self.others: dict[str, LayerEntry] = {}
        self._layers: dict[int, list[str]] = {}
        for name, weight in layers.items():
            if weight is not None and weight.numel():
                self._layers.setdefault(_place(weight), []).append(name)
        reported = matrix_parameters(model)
        for _, found in unregistered(model):
            reported += [found] if isinstance(found, nn.Parameter) else matrix_parameters(found)
        self._reported = {_place(parameter) for parameter in reported}
        self._named = {_place(tensor): (name, kind, tensor) for name, kind, tensor in _tensors_of(model)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            given = [part for value in (*args, *kwargs.values()) for part in _flat(value)]
            places = {_place(part) for part in given} & self._layers.keys()
            if places and isinstance(result, Tensor) and func is not F.embedding and _place(result) not in places:
                self.used.update(name for place in places for name in self._layers[place])
            self._note_others(func, args, kwargs, given)
        return result

    def _note_others(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], given: list[Tensor]) -> None:
        for part in given:
            if isinstance(part, nn.Parameter) and _place(part) not in self._named:
                self._named[_place(part)] = f"weight of shape {tuple(part.shape)}", "Parameter", part
        if func in OPERATIONS:
            given = _flat(args[1] if len(args) > 1 else kwargs.get("weight"))
        elif func not in _PRODUCTS:
            return
        for place in map(_place, given):
            if place in self._named and place not in self._layers and place not in self._reported:
                name, kind, tensor = self._named[place]
                is_matrix = tensor.dim() >= 2 and (tensor.numel() > max(tensor.shape) or func in OPERATIONS)
                if is_matrix and (func in OPERATIONS or isinstance(tensor, nn.Parameter)):
                    reason = UNREGISTERED if name.startswith("weight of shape") else _MULTIPLIED
                    self.others[name] = LayerEntry(name=name, kind=kind, n_weights=tensor.numel(), reason=reason)


def _tensors_of(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yield what a model multiplies with that it holds itself: parameters, buffers, and tensors set as attributes."""
    for prefix, module in model.named_modules():
        plain = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        for kind, tensors in (("Tensor", plain), ("buffer", module._buffers), ("Parameter", module._parameters)):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.numel():
                    yield f"{prefix}.{name}".lstrip("."), kind, tensor


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [part for part in value if isinstance(part, Tensor)] if isinstance(value, (list, tuple)) else []


def _place(tensor: Tensor) -> int:
    """Return what a tensor and its views have in common, and no other tensor alive has.

    Sparse tensors, those on the meta device and some wrapped ones have no memory that views could share.
    """
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except RuntimeError:
        return id(tensor)
