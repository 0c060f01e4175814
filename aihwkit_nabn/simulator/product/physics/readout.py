"""Read results out: disturbances, analog-to-digital conversion, digital scale; in C where that knows all effects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from aihwkit.simulator.parameters.enums import WeightNoiseType
from aihwkit.simulator.parameters.io import IOParameters
from torch import Tensor

from aihwkit_nabn import native
from aihwkit_nabn.simulator.product.blocks import as_rows, row_blocks, scratch_like
from aihwkit_nabn.simulator.product.numbers import NumberStream
from aihwkit_nabn.simulator.product.physics.asymmetry import Asymmetry
from aihwkit_nabn.simulator.product.physics.converters import Converter
from aihwkit_nabn.simulator.product.physics.effect import Flows, Reading, ReadoutEffect, add_in_place, disturbed
from aihwkit_nabn.simulator.product.physics.ir_drop import IRDrop
from aihwkit_nabn.simulator.product.physics.noise import Noise


def effects_of(io: IOParameters, noise: Tensor | float) -> tuple[ReadoutEffect, ...]:
    """Return what disturbs the results of tiles with these settings, in order; `noise` is that of their outputs."""
    if io.is_perfect:
        return ()
    found: list[ReadoutEffect] = []
    if io.ir_drop > 0.0:
        found.append(IRDrop(io.ir_drop, io.ir_drop_g_ratio))
    if io.out_asymmetry:
        found.append(Asymmetry(io.out_asymmetry))
    w_noise = 0.0 if io.w_noise_type == WeightNoiseType.NONE else io.w_noise
    if w_noise > 0.0 or isinstance(noise, Tensor) or noise > 0.0:
        found.append(Noise(w_noise, io.w_noise_type == WeightNoiseType.PCM_READ))
    return (*found, *getattr(io, "effects", ()))


@dataclass(frozen=True, kw_only=True)
class Readout:
    """How a tile row's analog results become numbers; whatever is per output is one number for all or ``[out]``.

    Args:
        adc: The converter. Results come in units of its levels.
        unit: What a level stands for, per output.
        noise: Standard deviation of the output noise in ADC levels, per output.
        gain: What a level is worth in the end, per output.
        effects: What disturbs results.
        outputs: The effects' own values, ``[out]`` each.
        clamp: Whether values beyond the ADC's bound are cut off.
    """

    adc: Converter
    noise: Tensor | float
    gain: Tensor | float
    unit: Tensor | float = 1.0
    effects: tuple[ReadoutEffect, ...] = ()
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    clamp: bool = True


def read_out(
    result: Tensor,
    readout: Readout,
    flows: Sequence[Flows],
    *,
    channel_dim: int,
    numbers: NumberStream,
    generator: torch.Generator | None = None,
    total: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the digital values of analog results, added to the `total` of the tile rows before.

    Args:
        result: ``[..., out, *spatial]`` in ADC levels; overwritten.
        readout: What to do.
        flows: What each effect has of the currents.
        channel_dim: Negative index of the outputs.
        numbers: Where random numbers come from on the CPU.
        generator: Where they come from on another device.
        total: Overwritten and returned, if given; must have come from here.
        bias: ``[out]`` to start the total with.
    """
    y, in_columns = as_rows(result, channel_dim)
    moves = in_columns and channel_dim != -1

    def laid(other: Tensor) -> Tensor:
        return (other.movedim(channel_dim, -1) if moves else other).reshape(y.shape)

    rows = _Rows(
        y=y,
        in_columns=in_columns,
        n_outputs=result.shape[channel_dim],
        readout=readout,
        flows=[tuple(map(laid, own)) for own in flows],
        total=None if total is None else laid(total),
        bias=bias,
    )
    if not rows.read_natively(numbers):
        rows.read_in_blocks(numbers, generator)
    out = y if rows.total is None else rows.total
    if moves:
        return out.view(result.movedim(channel_dim, -1).shape).movedim(-1, channel_dim)
    return out.view(result.shape)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """A readout in two dimensions; values per output lie along the rows, or along the columns."""

    y: Tensor
    in_columns: bool
    n_outputs: int
    readout: Readout
    flows: list[Flows]
    total: Tensor | None
    bias: Tensor | None

    def along(self, values: Any) -> Any:
        """Return ``[out]`` as one value for each row, or for each column; other values as they are."""
        if not isinstance(values, Tensor) or self.in_columns or self.y.shape[0] == self.n_outputs:
            return values
        return values.expand(self.y.shape[0] // max(self.n_outputs, 1), -1).reshape(-1)

    def read_natively(self, numbers: NumberStream) -> bool:
        """Let the C code read out; whether it could."""
        readout, adc = self.readout, self.readout.adc
        forms = [effect.compiled(own) for effect, own in zip(readout.effects, self.flows, strict=True)]
        if adc.stochastic or None in forms:
            return False
        fields = {name: value for form in forms if form for name, value in form.items()}
        draws = fields.pop("draws", False)
        job = native.Readout(
            y=self.y,
            total=self.total,
            noise=self.along(readout.noise),
            gain=self.along(readout.gain),
            bias=0.0 if self.bias is None else self.along(self.bias),
            by_column=self.in_columns,
            rounds=adc.step > 0.0,
            bound=adc.bound / adc.unit if readout.clamp else math.inf,
            **fields,
        )
        if not native.fits(*vars(job).values()):
            return False
        native.read_out(job, numbers.normal_source(self.y.numel()) if draws else None)
        return True

    def read_in_blocks(self, numbers: NumberStream, generator: torch.Generator | None) -> None:
        """Do the same with torch."""
        y, readout, adc, on_cpu = self.y, self.readout, self.readout.adc, self.y.device.type == "cpu"
        unit, noise, gain, bias = map(self.along, (readout.unit, readout.noise, readout.gain, self.bias))
        values = {name: self.along(value) for name, value in readout.outputs.items()}
        scratch: Tensor | None = None

        def random(like: Tensor, uniform: bool = False) -> Tensor:
            nonlocal scratch
            if not on_cpu:
                fresh = torch.empty_like(like)
                return fresh.uniform_(-0.5, 0.5, generator=generator) if uniform else fresh.normal_(generator=generator)
            scratch = scratch_like(like) if scratch is None else scratch
            target = scratch[: like.shape[0]]
            return numbers.uniform_(target) if uniform else numbers.normal_(target)

        if on_cpu:
            numbers.begin()
        for block in row_blocks((y.shape[0], y.shape[1])) if on_cpu else [slice(0, y.shape[0])]:

            def of(value: Any, block: slice = block) -> Any:
                return value if self.in_columns or not isinstance(value, Tensor) else value[block].unsqueeze(1)

            outputs = {name: of(value) for name, value in values.items()}
            at = Reading(unit=of(unit), noise=of(noise), outputs=outputs, normal=random, add=add_in_place)
            flows = [tuple(flow[block] for flow in own) for own in self.flows]
            levels, factor = y[block], of(gain)
            new = disturbed(levels, readout.effects, flows, at)
            adc.round_(new, lambda values: values.add_(random(values, True)))
            if readout.clamp:
                adc.clamp_(new)
            if self.total is not None:
                add_in_place(self.total[block], new, factor)
                continue
            if isinstance(factor, Tensor) or factor != 1.0:
                new.mul_(factor)
            if bias is not None:
                new.add_(of(bias))
            if new is not levels:
                levels.copy_(new)
