"""Normalizations with their own forward pass around torch's function: that function becomes noise-aware."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from aihwkit_nabn.errors import ConversionError, NabnError
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm
from aihwkit_nabn.nn.carry_over import carry_everything, given_back
from aihwkit_nabn.nn.operation import ABOUT_THE_TENSOR, OwnForward, name_of, tensors_in
from aihwkit_nabn.nn.probe import first_difference, trial_shapes

# Both normalise with running statistics in the same way; the name of the argument that says not to.
_FUNCTIONS: dict[Callable[..., Tensor], str] = {F.batch_norm: "training", F.instance_norm: "use_input_stats"}
_PARAMETERS = ("weight", "bias")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

# What the running statistics are replaced in: input, weight, bias, eps.
Normalized = Callable[[Tensor, "Tensor | None", "Tensor | None", float], Tensor]


class NoiseAwareNormalization(NoiseAwareBatchNorm):
    """A normalization with trained running statistics and a forward pass of its own, noise-aware.

    InstanceNorm with ``track_running_stats=True``, BatchNorm with an activation inside, and others that give their
    `running_mean` and `running_var` ``[channels]`` to torch's function: in eval mode the forward pass runs as it is,
    and that function normalises with the statistics in force. In training mode it is the layer's own.

    Attributes:
        own_forward: The forward pass.
        ANALOG_CHILDREN: Names of the digital layer's children.
    """

    own_forward: OwnForward
    ANALOG_CHILDREN: tuple[str, ...]

    @classmethod
    def from_digital(
        cls, module: Any, rpu_config: object = None, tile_module_class: object = None
    ) -> NoiseAwareNormalization:
        """Return the noise-aware form of a layer; statistics and parameters are copied, everything else shared.

        Raises:
            ConversionError: trial inputs show that its forward pass uses the running statistics otherwise, or it fails
                on all of them; or an attribute has a name that is used here.
        """
        own = OwnForward.of(module, F.batch_norm)
        _try(module, own)
        new: Any = super().from_digital(module)
        new.own_forward = own
        new.ANALOG_CHILDREN = tuple(module._modules)
        for name in _STATISTICS:
            if name not in module._buffers:
                setattr(new, name, None)
        carry_everything(module, new, without=(*_PARAMETERS, *_STATISTICS))
        converted: NoiseAwareNormalization = new
        return converted

    @classmethod
    def to_digital(cls, module: NoiseAwareBatchNorm, realistic: bool = False) -> nn.Module:
        """Return a layer of the original's class with the statistics in force (calibrated ones where there are any)."""
        own: OwnForward = module.own_forward  # type: ignore[assignment]
        new = given_back(module, own)
        for name in _PARAMETERS:
            new.register_parameter(name, copy.deepcopy(module._parameters[name]))
        for name in _STATISTICS:
            new.register_buffer(name, copy.deepcopy(module._buffers[name]))
        if module.calibrated_mean is not None and module.calibrated_var is not None and module.calibration_enabled:
            new.running_mean, new.running_var = module.calibrated_mean.clone(), module.calibrated_var.clone()
        digital: nn.Module = new.train(module.training)
        return digital

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer's own forward pass returns."""
        if self.training or self.running_mean is None or self.running_var is None:
            return self.own_forward.function(self.own_forward.seen(self, self.weight, self.bias), *args, **kwargs)
        return _run(self.own_forward, self, self._normalized, args, kwargs)


def has_running_statistics(module: nn.Module) -> bool:
    """Whether a module holds trained statistics as torch's normalizations do."""
    mean, var = (module._buffers.get(name) for name in _STATISTICS[:2])
    return mean is not None and var is not None and mean.shape == var.shape and mean.dim() == 1


def _try(module: nn.Module, own: OwnForward) -> None:
    twin = copy.deepcopy(module).eval()

    def exactly(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        return F.batch_norm(x, twin.running_mean, twin.running_var, weight, bias, False, 0.0, eps)  # type: ignore[arg-type]

    def caught(x: Tensor) -> Any:
        return _run(own, twin, exactly, (x,), {}, n_calls=1)

    shapes = trial_shapes(module)
    if not isinstance(module, _NormBase):  # may take any rank, or only one
        shapes = [(*shapes[0][:2], *(3,) * rank) for rank in range(4)]
    reason = first_difference(module, lambda x: own.function(twin, x), caught, shapes)
    if reason:
        raise ConversionError(reason)


def _run(
    own: OwnForward,
    module: Any,
    normalized: Normalized,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    n_calls: int = 0,
) -> Any:
    layer = own.seen(module, *(getattr(module, name, None) for name in _PARAMETERS))
    caught = _Caught(module.running_mean, module.running_var, normalized)
    with caught:
        output = own.function(layer, *args, **kwargs)
    if caught.n_calls < n_calls:
        raise NabnError("its forward pass never gives its running statistics to a function of torch's that normalises")
    return output


class _Caught(TorchFunctionMode):
    """Inside the block, torch's normalization with these statistics is `normalized`."""

    def __init__(self, mean: Tensor, var: Tensor, normalized: Normalized) -> None:
        super().__init__()
        self.mean, self.var, self.normalized = mean, var, normalized
        self.n_calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling():  # a tensor is not the same object there; torch goes on uncompiled
            raise NabnError("a normalization with a forward pass of its own cannot be compiled")
        if func in ABOUT_THE_TENSOR or not any(t is self.mean or t is self.var for t in tensors_in(args, kwargs)):
            return func(*args, **kwargs)
        if func not in _FUNCTIONS:
            raise NabnError(f"its forward pass gives its running statistics to {name_of(func)}")
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        if given["running_mean"] is not self.mean or given["running_var"] is not self.var or given[_FUNCTIONS[func]]:
            raise NabnError(f"its forward pass normalises with other statistics than its own ({name_of(func)})")
        self.n_calls += 1
        return self.normalized(given["input"], given["weight"], given["bias"], given["eps"])
