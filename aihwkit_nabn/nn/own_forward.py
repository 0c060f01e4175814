"""Subclasses with their own forward pass around the plain operation: that operation lies on tiles."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from aihwkit.simulator.parameters.base import RPUConfigBase
from torch import Tensor, nn

from aihwkit_nabn.errors import ConversionError, NabnError
from aihwkit_nabn.nn.calls import replaced_forward, watched
from aihwkit_nabn.nn.carry_over import carry_everything, given_back
from aihwkit_nabn.nn.layers import NoiseAwareLayer
from aihwkit_nabn.nn.operation import LAYER_OPERATIONS, OperationCall, OwnForward
from aihwkit_nabn.nn.probe import first_difference
from aihwkit_nabn.nn.reparametrization import is_trainable, plain_copy
from aihwkit_nabn.simulator.product.tiles import tiles_of


class NoiseAwareOwnForward(NoiseAwareLayer):
    """A subclass of torch's convolutions or linear layer that has a forward pass of its own, its product on tiles.

    The subclass's forward pass runs as it is, and its call of the plain operation is the analog product, in that call's
    geometry. A weight that it computes from the layer's (weight standardisation) lies on the tiles as computed.

    Attributes:
        own_forward: The forward pass.
        weight_is_computed: Whether the tiles hold another weight than the digital layer.
        bias_in_product: Whether the forward pass gives the layer's bias to the operation.
        ANALOG_CHILDREN: Names of all children of the digital layer.
    """

    def __init__(self, module: Any, rpu_config: RPUConfigBase, own: OwnForward, call: OperationCall) -> None:
        with_bias = call.bias is not None
        super().__init__(module, rpu_config, call.linear_map, weight=call.weight, with_bias=with_bias)
        self.own_forward = own
        self.weight_is_computed = not torch.equal(call.weight, module.weight)
        self.bias_in_product = with_bias
        self.ANALOG_CHILDREN = tuple(module._modules)
        carry_everything(module, self, without=("weight", "bias"))
        if not with_bias and module.bias is not None:
            self._parameters["bias"] = module.bias

    @classmethod
    def from_digital(
        cls, module: Any, rpu_config: RPUConfigBase, tile_module_class: object = None
    ) -> NoiseAwareOwnForward:
        """Return the analog form of a layer with a forward pass of its own: weights copied, the rest shared.

        Its nearest base class of torch's says which operation is looked for. Other arguments as for the convolutions.

        Raises:
            ConversionError: trial inputs show that the forward pass does more with the weight than give it to the
                operation, or it fails on all of them; or an attribute has a name that is used here.
        """
        operation = next(LAYER_OPERATIONS[kind] for kind in type(module).__mro__ if kind in LAYER_OPERATIONS)
        own = OwnForward.of(module, operation)
        call = tried_call(module, own)
        plain = plain_copy(module)
        plain.weight.requires_grad_(is_trainable(module))
        return cls(plain, rpu_config, own, call)

    @classmethod
    def to_digital(cls, module: NoiseAwareOwnForward, realistic: bool = False) -> nn.Module:
        """Return a layer of the subclass with the weights the tiles hold now, drift factor and alignment folded in.

        Raises:
            ConversionError: the subclass computes its weight from another one, or the alignment's offset needs a bias
                and the forward pass adds none to the product.
        """
        own = module.own_forward
        if module.weight_is_computed:
            raise ConversionError(f"{own.kind.__name__} computes its weight, so it cannot hold the one on the tiles")
        weight, bias = module._folded()
        digital = given_back(module, own)
        free = module.bias_in_product or module.bias is None
        kept = bias if free else module.bias
        digital.register_parameter("weight", nn.Parameter(weight))
        digital.register_parameter("bias", None if kept is None else nn.Parameter(kept.detach().clone()))
        if bias is not None and not (free and tried_call(digital, own).bias is not None):
            raise ConversionError(
                f"{own.kind.__name__} adds no bias to the product, which the alignment's offset needs"
            )
        layer: nn.Module = digital.train(module.training)
        return layer

    @property
    def bias(self) -> Tensor | None:
        """The digital bias ``[out]``, wherever the forward pass adds it."""
        bias: Tensor | None = self.analog_module.bias if self.bias_in_product else self._parameters.get("bias")
        return bias

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the subclass's forward pass returns.

        Raises:
            NabnError: it uses the weight otherwise than in the trials of the conversion.
        """
        return self._run(self._product, args, kwargs)

    def _run(self, product: Callable[[OperationCall], Tensor], args: Any, kwargs: Mapping[str, Any]) -> Any:
        tile = tiles_of(self.analog_module)[0]
        weight = no_values(self.kernel_shape, tile.get_dtype(), tile.device)
        return self.own_forward.run(self, product, args, kwargs, weight=weight, bias=self.bias)

    def _product(self, call: OperationCall) -> Tensor:
        linear_map = call.linear_map
        if (call.bias is not None) != self.bias_in_product or linear_map.groups != self.linear_map.groups:
            raise NabnError(
                f"{self.own_forward.kind.__name__} calls the operation with another bias or in other groups than when "
                "it was converted"
            )
        return self._aligned_product(call.input, linear_map)


@contextmanager
def watched_products(
    layers: Mapping[str, NoiseAwareOwnForward],
    seen: Callable[[str, OperationCall, Tensor], None],
    reference: Mapping[str, nn.Module] | None = None,
) -> Iterator[None]:
    """Report every product inside the block, as name, call of the operation, output.

    With a `reference`, the digital originals by name, their products are reported instead.
    """

    def forward_of(name: str, layer: NoiseAwareOwnForward, digital: Any) -> Callable[..., Any]:
        def report(call: OperationCall) -> Tensor:
            product = layer._product(call) if digital is None else call.exactly()
            seen(name, call, product)
            return product

        def forward(*args: Any, **kwargs: Any) -> Any:
            if digital is None:
                return layer._run(report, args, kwargs)
            own = layer.own_forward
            return own.run(digital, report, args, kwargs, weight=digital.weight, bias=digital.bias)

        return forward

    with ExitStack() as stack:
        for name, layer in layers.items():
            digital = None if reference is None else reference[name]
            stack.enter_context(
                replaced_forward(layer if digital is None else digital, forward_of(name, layer, digital))
            )
        yield


@contextmanager
def watched_outputs(
    analog: Mapping[str, nn.Module], reference: Mapping[str, nn.Module], record: Callable[[str, Any], None]
) -> Iterator[None]:
    """Call ``record(name, output)`` for every output of the reference's layers, as the chip's alignments see it.

    That is the output of the operation on tiles, where a layer's forward pass goes on from there.
    """
    own = {name: layer for name, layer in analog.items() if isinstance(layer, NoiseAwareOwnForward)}
    own = {name: layer for name, layer in own.items() if name in reference}
    others = {name: layer for name, layer in reference.items() if name not in own}
    with (
        watched(others, lambda name, args, kwargs, output: record(name, output)),
        watched_products(own, lambda name, x, product: record(name, product), reference),
    ):
        yield


def tried_call(module: Any, own: OwnForward) -> OperationCall:
    """Return how a layer's forward pass calls the operation, tried on inputs of several sizes.

    The layer is not changed.

    Raises:
        ConversionError: it uses the weight for more than the operation, or it works on none of them.
    """
    twin: Any = copy.deepcopy(module).eval()
    weight, bias = twin.weight.detach(), getattr(twin, "bias", None)
    calls: list[OperationCall] = []

    def exactly(call: OperationCall) -> Tensor:
        calls.append(call)
        first = calls[0]
        if call.weight.shape != weight.shape:
            raise NabnError(
                f"its forward pass makes a weight of shape {tuple(call.weight.shape)} of {tuple(weight.shape)}"
            )
        if not torch.equal(call.weight, first.weight):
            raise NabnError("its forward pass computes a weight that depends on the input")
        if (call.bias is None) != (first.bias is None) or call.linear_map.groups != first.linear_map.groups:
            raise NabnError("its forward pass chooses bias or groups by the input")
        return call.exactly()

    def from_tiles(call: OperationCall) -> Tensor:
        matrix = call.linear_map.to_matrix(calls[0].weight)
        return call.linear_map.apply(call.input, matrix, call.bias)

    def caught(x: Tensor) -> Any:
        own.run(twin, exactly, (x,), {}, weight=weight, bias=bias, n_calls=1)
        blank = no_values(weight.shape, weight.dtype, weight.device)
        return own.run(twin, from_tiles, (x,), {}, weight=blank, bias=bias)

    reason = first_difference(module, lambda x: own.function(twin, x), caught)
    if reason:
        raise ConversionError(reason)
    return calls[0]


def no_values(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor that tells its shape, type and device; whatever is computed from it is NaN."""
    return torch.full((), math.nan, dtype=dtype, device=device).expand(tuple(shape))
