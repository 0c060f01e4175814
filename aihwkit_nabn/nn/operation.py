"""Running a layer's forward pass with the calls of its plain operation intercepted.

Many subclasses of torch's layers prepare the input, call the plain operation, and go on with its output. To put that
operation on tiles, the forward pass runs as it is, and only this call is caught.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.simulator.product.linear_map import LinearMap, TransposedMap

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")

# Arguments by position, and the spatial dimensions.
OPERATIONS: dict[Callable[..., Tensor], tuple[tuple[str, ...], int]] = {
    F.linear: (_CONV[:3], 0),
    F.conv1d: (_CONV, 1),
    F.conv2d: (_CONV, 2),
    F.conv3d: (_CONV, 3),
    F.conv_transpose1d: (_TRANSPOSED, 1),
    F.conv_transpose2d: (_TRANSPOSED, 2),
    F.conv_transpose3d: (_TRANSPOSED, 3),
}

# What each of torch's layers calls.
LAYER_OPERATIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: F.linear,
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}

_GETTERS = ("shape", "dtype", "device", "ndim", "requires_grad", "is_leaf", "is_cuda", "layout", "itemsize", "names")
_METHODS = ("size", "dim", "ndimension", "numel", "nelement", "element_size", "is_floating_point", "is_complex")
_MORE_METHODS = ("stride", "is_contiguous", "get_device", "__len__")
# What these tell does not depend on the values.
ABOUT_THE_TENSOR: set[Any] = {
    *(getattr(Tensor, name).__get__ for name in _GETTERS),
    *(getattr(Tensor, name) for name in (*_METHODS, *_MORE_METHODS)),
    *(torch.numel, torch.is_floating_point, torch.is_complex, torch.is_tensor),
    *(getattr(Tensor, f"new_{name}") for name in ("empty", "zeros", "ones", "full", "tensor")),
    *(getattr(torch, f"{name}_like") for name in ("empty", "zeros", "ones", "full", "rand", "randn")),
}
# These take the shape or type of what follows the first argument.
_LIKE: set[Any] = {getattr(Tensor, name) for name in ("to", "type_as", "expand_as", "view_as", "reshape_as")}


@dataclass(frozen=True, kw_only=True)
class OperationCall:
    """One call of a layer's plain operation.

    Args:
        operation: Which function of torch.
        input: Its input, prepared.
        weight: The weight it was given: the layer's, or what the forward pass made of it.
        bias: ``[out]``, the layer's own bias as it is, or None.
        geometry: The other arguments by name.
    """

    operation: Callable[..., Tensor]
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    geometry: Mapping[str, Any] = field(default_factory=dict)

    @property
    def linear_map(self) -> LinearMap:
        """How this call applies the weight."""
        names, n = OPERATIONS[self.operation]
        if n == 0:
            return LinearMap()
        geometry = {name: _each(self.geometry.get(name, default), n) for name, default in _DEFAULTS.items()}
        geometry |= {"spatial_dims": n, "kernel_size": tuple(self.weight.shape[2:])}
        geometry["groups"] = int(self.geometry.get("groups", 1))
        if "output_padding" in names:
            return TransposedMap(**geometry)
        del geometry["output_padding"]
        return LinearMap(**geometry)

    def exactly(self) -> Tensor:
        """Return what torch's own operation gives."""
        return self.operation(self.input, self.weight, self.bias, **self.geometry)


_DEFAULTS = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}


def _each(value: Any, n: int) -> Any:
    if isinstance(value, str):
        return value
    values = tuple(int(v) for v in value) if isinstance(value, Sequence) else (int(value),)
    return values * n if len(values) == 1 else values


@dataclass(frozen=True)
class OwnForward:
    """The forward pass of a layer's class, and the operation in it that can lie on tiles.

    Args:
        kind: The class of the layer.
        function: Called with an object of that class and the arguments.
        operation: One of `OPERATIONS`.
    """

    kind: type[nn.Module]
    function: Callable[..., Any]
    operation: Callable[..., Tensor]

    @classmethod
    def of(cls, module: nn.Module, operation: Callable[..., Tensor]) -> OwnForward:
        """Return the forward pass of a digital layer, and what is to be caught in it.

        Raises:
            NabnError: it cannot be run on another object than the layer.
        """
        kind: type[nn.Module] = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
        function = module.__dict__.get("forward", kind.forward)
        if isinstance(function, types.MethodType) and function.__self__ is module:
            function = function.__func__
        elif "forward" in module.__dict__:
            raise NabnError("its forward pass is a function set on this one layer, not a method that gets the layer")
        if kind.__call__ is not nn.Module.__call__:
            raise NabnError("its class has a __call__ of its own, which goes past its forward pass")
        return cls(kind, function, operation)

    def run(
        self,
        module: nn.Module,
        product: Callable[[OperationCall], Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        weight: Tensor,
        bias: Tensor | None,
        n_calls: int = 0,
    ) -> Any:
        """Return what the forward pass makes of the arguments, with `product` in place of the operation.

        Args:
            module: Whose attributes, children, parameters and buffers the forward pass finds, and sets.
            product: What the operation's call on the layer's weight is handed to.
            args: Of the forward pass.
            kwargs: Of the forward pass.
            weight: What it finds as the layer's weight. What it computes from it is taken for a weight, too.
            bias: What it finds as the layer's bias. A call that gets another one is handed over without; it is added
                afterwards.
            n_calls: How often the operation must be called at least.

        Raises:
            NabnError: the weight is used for something else, or the calls differ in geometry.
        """
        layer = self.seen(module, weight, bias)
        caught = _Caught(self.operation, product, weight, bias)
        with caught:
            output = self.function(layer, *args, **kwargs)
        if any(caught.is_derived(value) for value in tree_leaves(output)):
            raise NabnError(f"its forward pass uses the weight for more than {name_of(self.operation)}")
        if caught.bias_given and caught.bias_elsewhere:
            raise NabnError(f"its forward pass uses the bias for more than {name_of(self.operation)}")
        if len(caught.maps) < n_calls:
            raise NabnError(f"its forward pass never gives the layer's weight to {name_of(self.operation)}")
        return output

    def seen(self, module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
        """Return an object of the layer's class with the attributes of `module`, but this weight and bias."""
        layer = object.__new__(_seen_as(self.kind))  # type: ignore[arg-type]
        for name, value in (("__dict__", module.__dict__), ("_own_weight", weight), ("_own_bias", bias)):
            object.__setattr__(layer, name, value)
        return layer


@functools.cache
def _seen_as(kind: type[nn.Module]) -> type[nn.Module]:
    """A class like `kind`, so that ``super()`` works, whose objects hold weight and bias beside their attributes.

    An object of it lives for one call only and shares the attributes of the module it stands for.
    """
    own = {
        "__slots__": ("_own_bias", "_own_weight"),
        "__module__": kind.__module__,
        "weight": property(lambda layer: layer._own_weight),
        "bias": property(lambda layer: layer._own_bias),
    }
    return type(kind.__name__, (kind,), own)


class _Caught(TorchFunctionMode):
    """Inside the block, the operation with a weight of the layer is the product; other uses of it are followed."""

    def __init__(
        self,
        operation: Callable[..., Tensor],
        product: Callable[[OperationCall], Tensor],
        weight: Tensor,
        bias: Tensor | None,
    ) -> None:
        super().__init__()
        self.operation, self.product, self.bias = operation, product, bias
        self.derived = {id(weight): weight}  # holding them keeps the ids unique
        self.maps: list[LinearMap] = []
        self.bias_given = self.bias_elsewhere = False

    def is_derived(self, value: object) -> bool:
        return id(value) in self.derived

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_dynamo_compiling():  # tensors are other objects there; torch runs the layer as it is
            raise NabnError("a layer with a forward pass of its own cannot be compiled on tiles")
        kwargs = kwargs or {}
        given = list(tensors_in(args, kwargs))
        derived = [value for value in given if id(value) in self.derived]
        if derived and func is self.operation:
            return self._operate(args, kwargs, derived)
        output = func(*args, **kwargs)
        if func in ABOUT_THE_TENSOR:
            return output
        self.bias_elsewhere |= any(value is self.bias for value in given)
        if not derived or (func in _LIKE and not self.is_derived(args[0])):
            return output
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                self.derived[id(value)] = value
            elif value is not None:
                raise NabnError(f"its forward pass looks at values of the weight ({name_of(func)})")
        return output

    def _operate(self, args: Sequence[Any], kwargs: Mapping[str, Any], derived: list[Tensor]) -> Tensor:
        names, n = OPERATIONS[self.operation]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
        if len(derived) > 1 or not self.is_derived(weight):
            raise NabnError(f"its forward pass uses the weight as the input or bias of {name_of(self.operation)}")
        own = bias is self.bias
        self.bias_given |= own and bias is not None
        call = OperationCall(
            operation=self.operation, input=x, weight=weight, bias=bias if own else None, geometry=given
        )
        self.maps.append(call.linear_map)
        if self.maps[-1] != self.maps[0]:
            raise NabnError(
                f"its forward pass calls {name_of(self.operation)} with its weight twice, in different geometry"
            )
        product = self.product(call)
        return product if own or bias is None else product + bias.view(-1, *[1] * n)


def tensors_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among a call's arguments, those in lists too."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value, {})


def name_of(function: Callable[..., Any]) -> str:
    """Return a function's name as torch documents it."""
    return resolve_name(function) or str(getattr(function, "__name__", repr(function)))
