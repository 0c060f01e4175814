"""Noise in the weights of a plain digital network, as aihwkit's tiles have it in training, for other training loops."""

from __future__ import annotations

from typing import Any

import torch
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from torch import Tensor, nn

from aihwkit_nabn.nn import ConversionReport
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.results.placement import Exclude
from aihwkit_nabn.simulator.product.linear_map import LinearMap
from aihwkit_nabn.training.digital import convert_for_training
from aihwkit_nabn.training.noise import TrainingNoise

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class WeightNoise:
    """Draws noise into the weights that would lie on tiles, takes it out again, and clips them.

    Between `add` and `remove` the forward and the backward pass see noisy weights; the optimizer's step belongs after
    `remove`. So the gradient passes the noise as if it were a constant, which is what aihwkit's torch tile does with
    its weight modifier. `clip` belongs after the step.

    Args:
        model: The digital network; its parameters are changed in place.
        noise: What is drawn.
        clip_sigma: Weights are clipped at this many standard deviations of their layer; None: never.
        columnwise: Whether the chip scales each output's weights to its range, so that "the largest weight" is each
            output's own.
        exclude: Names of modules that stay digital, as `convert_to_noise_aware` takes them.

    Attributes:
        report: What would lie on tiles and what not.

    Raises:
        ConversionError: nothing would lie on tiles, or an excluded name is not there.
    """

    def __init__(
        self,
        model: nn.Module,
        noise: TrainingNoise,
        *,
        clip_sigma: float | None = None,
        columnwise: bool = False,
        exclude: Exclude = (),
    ) -> None:
        self.model, self.noise, self.clip_sigma, self.columnwise = model, noise, clip_sigma, columnwise
        config = TorchInferenceRPUConfig(drift_compensation=None)
        config.forward.is_perfect = True
        analog: Any = convert_for_training(model, config, exclude)
        self.report: ConversionReport = analog.conversion_report
        self.maps: dict[str, LinearMap] = {
            name: layer.linear_map
            for name, layer in named_analog_layers(analog).items()
            if isinstance(layer, NoiseAwareLayer)
        }
        self._clean: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, generator: torch.Generator | None = None) -> None:
        """Draw noise into all weights; does nothing where noise is in them already.

        Args:
            generator: Where from, on the weights' device; None: torch's global one.
        """
        if self._clean or self.noise.std == 0:
            return
        for name, linear_map in self.maps.items():
            _, weight = self._parameter(name)
            matrix = linear_map.to_matrix(weight)
            unit = torch.randn(matrix.shape, generator=generator, dtype=matrix.dtype, device=matrix.device)
            scale = matrix if self.noise.kind == "multiplicative" else self._largest(matrix)
            self._clean[name] = weight.clone()
            weight.copy_(linear_map.to_weight(matrix + self.noise.std * scale * unit))

    @torch.no_grad()
    def remove(self) -> None:
        """Give all weights back what they were, bit for bit; does nothing where there is no noise in them."""
        while self._clean:
            name, clean = self._clean.popitem()
            self._parameter(name)[1].copy_(clean)

    @torch.no_grad()
    def clip(self) -> None:
        """Clip the weights that are trained, at the layer's standard deviation times `clip_sigma`."""
        if self.clip_sigma is None:
            return
        for name, linear_map in self.maps.items():
            parameter, weight = self._parameter(name)
            if not parameter.requires_grad or weight.numel() < 2:
                continue
            matrix = linear_map.to_matrix(weight)
            scale = self._largest(matrix) if self.columnwise else matrix.new_ones(())
            scaled = matrix / scale.clamp_min(torch.finfo(matrix.dtype).tiny)
            limit = self.clip_sigma * scaled.std() * scale
            weight.copy_(linear_map.to_weight(torch.minimum(torch.maximum(matrix, -limit), limit)))

    def _largest(self, matrix: Tensor) -> Tensor:
        size = matrix.abs()
        return size.amax(1, keepdim=True) if self.columnwise else size.max()

    def _parameter(self, name: str) -> tuple[nn.Parameter, Tensor]:
        """Return the parameter that holds a layer's weight, and the weight without its history: the memory itself.

        Looked up anew each time, since hooks may exchange it.
        """
        owner, _, last = name.rpartition(".")
        parent: Any = self.model.get_submodule(owner)
        if not (isinstance(parent, nn.MultiheadAttention) and last in _PROJECTIONS):
            layer: Any = self.model.get_submodule(name)
            return layer.weight, layer.weight.data
        if parent._qkv_same_embed_dim:
            return parent.in_proj_weight, parent.in_proj_weight.data.chunk(3)[_PROJECTIONS.index(last)]
        parameter: nn.Parameter = getattr(parent, f"{last}_weight")
        return parameter, parameter.data
