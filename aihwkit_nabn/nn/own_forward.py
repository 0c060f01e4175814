"""Layers whose class has a forward pass of its own around the plain operation: that operation on tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from aihwkit.simulator.parameters.base import RPUConfigBase
from torch import Tensor, nn

from aihwkit_nabn.errors import ConversionError, NabnError
from aihwkit_nabn.nn.calls import replaced_forward, watched
from aihwkit_nabn.nn.carry_over import carry_everything, given_back
from aihwkit_nabn.nn.layers import NoiseAwareLayer
from aihwkit_nabn.nn.operation import LAYER_OPERATIONS, OperationCall, OwnForward
from aihwkit_nabn.nn.reparametrization import is_trainable, plain_copy
from aihwkit_nabn.nn.weight_use import WeightUse, no_values, use_of_weight
from aihwkit_nabn.simulator.product.dispatch import analog_product
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

    def __init__(self, module: Any, rpu_config: RPUConfigBase, own: OwnForward, use: WeightUse) -> None:
        super().__init__(module, rpu_config, use.linear_map, weight=use.weight, with_bias=use.with_bias)
        self.own_forward = own
        self.weight_is_computed = use.is_computed
        self.bias_in_product = use.with_bias
        self.ANALOG_CHILDREN = tuple(module._modules)
        carry_everything(module, self, without=("weight", "bias"))
        if not use.with_bias and module.bias is not None:
            self._parameters["bias"] = module.bias

    @classmethod
    def from_digital(
        cls, module: Any, rpu_config: RPUConfigBase, tile_module_class: object = None
    ) -> NoiseAwareOwnForward:
        """Return the analog form of a layer with a forward pass of its own: weights copied, the rest shared.

        Args:
            module: The layer; its nearest base class of torch's says which operation is looked for.
            rpu_config: Configuration of the tiles; taken over as it is.
            tile_module_class: Not used: the layer always holds a tile array. Part of aihwkit's signature.

        Raises:
            ConversionError: trial inputs show that the forward pass does more with the weight than give it to the
                operation, or it fails on all of them; or an attribute has a name that is used here.
        """
        operation = next(LAYER_OPERATIONS[kind] for kind in type(module).__mro__ if kind in LAYER_OPERATIONS)
        own = OwnForward.of(module, operation)
        use = use_of_weight(module, own)
        plain = plain_copy(module)
        plain.weight.requires_grad_(is_trainable(module))
        return cls(plain, rpu_config, own, use)

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
        if bias is not None and not (free and use_of_weight(digital, own).with_bias):
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
        product = analog_product(call.input, self.analog_module, linear_map, self.read_noise, exact=self.exact)
        return self._aligned(product, call.input, linear_map)


@contextmanager
def watched_products(
    layers: Mapping[str, NoiseAwareOwnForward],
    seen: Callable[[str, OperationCall, Tensor], None],
    reference: Mapping[str, nn.Module] | None = None,
) -> Iterator[None]:
    """Report every product inside the block, as name, call of the operation, output.

    Args:
        layers: The analog layers by name.
        seen: What is called.
        reference: Their digital originals by name: theirs are reported then.
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

    Args:
        analog: The chip's layers by name.
        reference: The digital ones.
        record: What is called.
    """
    own = {name: layer for name, layer in analog.items() if isinstance(layer, NoiseAwareOwnForward)}
    own = {name: layer for name, layer in own.items() if name in reference}
    others = {name: layer for name, layer in reference.items() if name not in own}
    with (
        watched(others, lambda name, args, kwargs, output: record(name, output)),
        watched_products(own, lambda name, x, product: record(name, product), reference),
    ):
        yield
