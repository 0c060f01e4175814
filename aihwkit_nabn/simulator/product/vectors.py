"""The analog product of a tile with vectors, one at a time where settings ask for it, and the tile that uses it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from aihwkit.exceptions import ConfigError
from aihwkit.simulator.parameters.enums import AnalogMVType, BoundManagementType, NoiseManagementType, WeightNoiseType
from aihwkit.simulator.parameters.io import IOParameters
from aihwkit.simulator.tiles.analog_mvm import AnalogMVM
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from torch import Tensor

from aihwkit_nabn import native
from aihwkit_nabn.drawing import current_generator
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.simulator.product.crossbar import (
    ADC_RANGE,
    NOISE,
    TileRow,
    analog_results,
    depends_on_vector,
    product_of_rows,
    readout_of,
    within_range,
)
from aihwkit_nabn.simulator.product.linear_map import LinearMap
from aihwkit_nabn.simulator.product.numbers import NumberStream
from aihwkit_nabn.simulator.product.physics.converters import input_converter, output_converter, static_input_scale
from aihwkit_nabn.simulator.product.physics.readout import read_out
from aihwkit_nabn.simulator.product.replication import repeated
from aihwkit_nabn.simulator.product.straight_through import straight_through_product

_VECTORS = LinearMap()
_OUTPUTS = "outputs_of_"  # before the name of an effect, a buffer
# IOParameters that aihwkit's torch tile refuses and this one does not model either.
_NOT_MODELLED = "out_nonlinearity slope_calibration v_offset_std r_series w_read_asymmetry_dtod".split()


def global_seed() -> int:
    """Return a seed drawn from torch's global generator."""
    return int(torch.randint(2**62, ()))


class CrossbarMVM(AnalogMVM):
    """aihwkit's product of vectors with a torch tile, with read noise and IR drop, each vector for itself.

    Differs from aihwkit's own in three respects: ``w_noise`` and ``ir_drop`` work, by the formulas of its compiled
    tiles; bound management repeats a product only for the vectors that exceeded the bound, so that no output depends on
    the rest of the batch; and ``out_noise_std`` spreads the noise by the fraction it names.
    """

    @classmethod
    def matmul(
        cls,
        weight: Tensor,
        input_: Tensor,
        io_pars: IOParameters,
        trans: bool = False,
        is_test: bool = False,
        **fwd_pars: Any,
    ) -> Tensor:
        """Return the analog product of inputs ``[..., in]``.

        The weight is ``[out, in]``, or ``[batch, out, in]`` where each sample has weights of its own; `fwd_pars` are
        what differs from output to output, as in `TileRow`, or None.
        """
        io = io_pars
        if trans:
            raise ConfigError("the transposed product of a tile is not simulated")
        if io.is_perfect or io.mv_type == AnalogMVType.IDEAL:
            return cls._matmul(weight, input_)
        if weight.dim() == 3:  # only in training, and not the rule: sample by sample
            pairs = zip(weight, input_, strict=True)
            return torch.stack([cls.matmul(w, x, io, is_test=is_test, **fwd_pars) for w, x in pairs])
        row = TileRow(
            columns=range(weight.shape[1]),
            weights=(weight,),
            scale=1.0,
            input_range=None,
            outputs={name: values for name, values in fwd_pars.items() if values is not None},
        )
        x = input_.reshape(-1, weight.shape[1])
        has_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if has_gradient and not native.is_recorded(x):
            out = _straight_through_vectors(x, row, io)
        else:
            out = vector_product(x, row, io)
        return out.reshape(*input_.shape[:-1], weight.shape[0])

    @classmethod
    def check_support(cls, io_pars: IOParameters) -> None:
        """Refuse what is not simulated.

        Raises:
            ConfigError: names the field.
        """
        if io_pars.is_perfect or io_pars.mv_type == AnalogMVType.IDEAL:
            return
        if io_pars.mv_type != AnalogMVType.ONE_PASS:
            raise ConfigError(f"forward.mv_type must be ONE_PASS or IDEAL, got {io_pars.mv_type.name}")
        if io_pars.bound_management == BoundManagementType.SHIFT:
            raise ConfigError("forward.bound_management SHIFT is not simulated")
        if io_pars.noise_management in (NoiseManagementType.AVERAGE_ABS_MAX, NoiseManagementType.ABS_MAX_NP_SUM):
            raise ConfigError(f"forward.noise_management {io_pars.noise_management.name} is not simulated")
        for name in _NOT_MODELLED:
            if getattr(io_pars, name, 0.0) > 0.0:
                raise ConfigError(f"forward.{name} is not simulated, got {getattr(io_pars, name):g}")
        if io_pars.w_noise > 0.0 and io_pars.w_noise_type == WeightNoiseType.NONE:
            raise ConfigError(f"forward.w_noise is {io_pars.w_noise:g}, but w_noise_type is NONE")
        for side in ("inp", "out"):
            if getattr(io_pars, f"{side}_res") > 0 and getattr(io_pars, f"{side}_bound") <= 0:
                raise ConfigError(f"forward.{side}_res needs a positive {side}_bound to refer to")


class CrossbarTile(TorchSimulatorTile):
    """aihwkit's torch tile with `CrossbarMVM` for its products.

    Attributes:
        output_bound: ``[out]`` range of each output's ADC, set from images where the configuration has
            ``output_range``; None otherwise: that of the settings.
    """

    _f_io: IOParameters
    output_bound: Tensor | None

    def __init__(self, x_size: int, d_size: int, rpu_config: Any, bias: bool = False) -> None:
        super().__init__(x_size, d_size, rpu_config, bias, analog_mvm=CrossbarMVM)
        io = rpu_config.forward
        if io.out_noise_std > 0:
            spread = 1.0 + io.out_noise_std * torch.randn(d_size, dtype=self.weight.dtype)
            self.out_noise_values = (io.out_noise * spread).abs()
        bound = torch.full((d_size,), io.out_bound, dtype=self.weight.dtype)
        self.register_buffer("output_bound", bound if getattr(rpu_config, "output_range", False) else None)
        self.draw_outputs()

    @torch.no_grad()
    def draw_outputs(self) -> None:
        """Draw the values that effects have for each output, with torch's global generator."""
        for effect in getattr(self._f_io, "effects", ()):
            values = effect.draw_outputs(self.d_size)
            if values is not None:
                self.register_buffer(_OUTPUTS + effect.name, values.to(self.weight))

    def output_values(self, io: IOParameters, ranges: bool = True) -> dict[str, Tensor]:
        """Return what differs from output to output, as in `TileRow`; without `ranges` all ADCs have the settings'.

        A range above the settings' is had by less gain, and the noise behind it weighs as much more; below, the noise
        in front of the ADC is amplified with the signal.
        """
        drawn = {name.removeprefix(_OUTPUTS): values for name, values in self._buffers.items() if _OUTPUTS in name}
        noise: Tensor | None = self.out_noise_values
        if self.output_bound is not None and ranges:
            drawn[ADC_RANGE] = self.output_bound / io.out_bound
            noise = drawn[ADC_RANGE].clamp(min=1.0) * (io.out_noise if noise is None else noise)
        return drawn if noise is None else {**drawn, NOISE: noise}

    def forward(
        self,
        x_input: Tensor,
        bias: bool = False,
        in_trans: bool = False,
        out_trans: bool = False,
        is_test: bool = False,
        non_blocking: bool = False,
    ) -> Tensor:
        """Return the product as aihwkit's torch tile does, with all values of this tile's outputs."""
        if in_trans or out_trans:
            raise ConfigError("the transposed product of a tile is not simulated")
        weight = self.weight if is_test else self.modify_weight(self.weight, self._modifier, x_input.shape[0])
        io = self._f_io
        return self._analog_mvm.matmul(weight, x_input, io, False, is_test=is_test, **self.output_values(io))


def vector_product(x: Tensor, row: TileRow, io: IOParameters) -> Tensor:
    """Return a tile row's outputs ``[n, out]`` for vectors ``[n, in]``, each scaled and bounded for itself.

    Random numbers come from torch's global generator.

    Raises:
        NabnError: torch records operations, and bound management repeats some of them.
    """
    if native.is_recorded(x):
        return _recorded_vector_product(x, row, io)
    x, row = all_copies(x, row)
    generator = None if x.device.type == "cpu" else current_generator(x.device)
    if not depends_on_vector(io):
        return product_of_rows(x, [row], io, _VECTORS, bias=None, seed=global_seed, generator=generator)
    x = within_range(x, row.input_range)
    scale, static = _vector_scale(x, io), _static(io)
    plain = dataclasses.replace(row, input_range=None, scale=1.0)
    adc, step = output_converter(io), input_converter(io).step
    managed = io.bound_management != BoundManagementType.NONE and math.isfinite(adc.bound)
    limit = adc.bound * io.out_scale * (1.0 + 1e-6)
    out = x.new_empty(x.shape[0], row.out_size)
    active, factor = torch.arange(x.shape[0], device=x.device), 1.0
    numbers = NumberStream(global_seed)
    while True:
        # Bound management: what exceeded the bound is multiplied once more, at half the input.
        divisor = scale[active] * factor
        results = analog_results(
            x[active] / divisor, plain, static, _VECTORS, readout_of(plain, static, clamp=not managed)
        )
        values = read_out(*results, channel_dim=-1, numbers=numbers, generator=generator)
        if not managed:
            out = values * divisor
            break
        out[active] = values.clamp(-adc.bound * io.out_scale, adc.bound * io.out_scale) * divisor
        beyond = ((values.abs() if io.bm_test_negative_bound else values) > limit).any(-1)
        if factor > io.max_bm_factor or (step > 0 and factor > io.max_bm_res / step) or not bool(beyond.any()):
            break
        active, factor = active[beyond], 2.0 * factor
    gain = row.scale * (row.input_range or 1.0)
    return out.mul_(gain)


def all_copies(x: Tensor, row: TileRow) -> tuple[Tensor, TileRow]:
    """Return the vectors ``[n, copies * in]`` for each row of the tile, every one with converters of its own."""
    if row.copies == 1:
        return x, row
    return repeated(x, row.copies), dataclasses.replace(row, columns=range(row.n_rows), copies=1)


def _recorded_vector_product(x: Tensor, row: TileRow, io: IOParameters) -> Tensor:
    if io.bound_management != BoundManagementType.NONE:
        raise NabnError(
            f"forward.bound_management={io.bound_management.name} repeats products whose results are too large, which "
            "torch cannot trace, compile, export or transform; use bound_management NONE"
        )
    x, row = all_copies(within_range(x, row.input_range), row)
    out = _straight_through_vectors(x, dataclasses.replace(row, input_range=None, scale=1.0), io)
    return out * (row.scale if row.input_range is None else row.scale * row.input_range)


def _straight_through_vectors(x: Tensor, row: TileRow, io: IOParameters) -> Tensor:
    scale = _vector_scale(x.detach(), io)
    return straight_through_product(x / scale, [row], _static(io), _VECTORS, bias=None) * scale


def _vector_scale(x: Tensor, io: IOParameters) -> Tensor:
    """Return what noise management divides each vector by, ``[n, 1]``."""
    fixed = static_input_scale(io)
    if fixed is not None:
        return x.new_full((x.shape[0], 1), fixed)
    values = x.abs() if io.noise_management == NoiseManagementType.ABS_MAX else x
    scale = values.amax(-1, keepdim=True)
    if io.nm_thres > 0.0:
        scale = scale.clamp(max=io.nm_thres)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _static(io: IOParameters) -> IOParameters:
    """Return the settings that are left once the vectors are scaled."""
    return dataclasses.replace(io, noise_management=NoiseManagementType.NONE, bound_management=BoundManagementType.NONE)
