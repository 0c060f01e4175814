"""The weight noise of hardware-aware training, and the strength that matches a noise setting."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from aihwkit.simulator.parameters.base import RPUConfigBase
from aihwkit.simulator.parameters.enums import WeightModifierType
from aihwkit.simulator.parameters.inference import WeightModifierParameter
from torch import nn

from aihwkit_nabn.chip import program_chip
from aihwkit_nabn.errors import NabnError, check_count, check_number, suggestion
from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.noise.gaussian import GaussianWeightNoise
from aihwkit_nabn.results.placement import Exclude
from aihwkit_nabn.seeding import check_seed
from aihwkit_nabn.simulator.product.tiles import tile_output_scale, tiles_of
from aihwkit_nabn.times import parse_time

KINDS = {"additive": WeightModifierType.ADD_NORMAL, "multiplicative": WeightModifierType.MULT_NORMAL}


@dataclass(frozen=True, kw_only=True)
class TrainingNoise:
    """Normal noise that is drawn into the weights anew for every training batch; aihwkit calls it weight modifier.

    Args:
        std: Standard deviation as a fraction of the tile's largest weight (additive) or of each weight
            (multiplicative), >= 0; 0 trains without noise.
        kind: ``"additive"`` (aihwkit's ``ADD_NORMAL``) or ``"multiplicative"`` (``MULT_NORMAL``).

    Raises:
        NabnError: a field has a value that it cannot have.

    Example:
        >>> TrainingNoise(std=0.06).scaled(0.25)
        TrainingNoise(std=0.015, kind='additive')
    """

    std: float
    kind: str = "additive"

    def __post_init__(self) -> None:
        object.__setattr__(self, "std", check_number("std", self.std, minimum=0.0))
        if self.kind not in KINDS:
            allowed = " or ".join(map(repr, KINDS))
            raise NabnError(f"kind must be {allowed}, got {self.kind!r}{suggestion(self.kind, KINDS)}")

    def scaled(self, factor: float) -> TrainingNoise:
        """Return the same kind of noise, `factor` (>= 0) times as strong."""
        return replace(self, std=self.std * check_number("factor", factor, minimum=0.0))

    def modifier(self) -> WeightModifierParameter:
        """Return the noise as aihwkit's parameters."""
        kind = KINDS[self.kind] if self.std > 0 else WeightModifierType.NONE
        return WeightModifierParameter(type=kind, std_dev=self.std, rel_to_actual_wmax=True)

    def __str__(self) -> str:
        return f"{self.kind} {self.std:.3g}"


def matched_noise(
    model: nn.Module,
    rpu_config: RPUConfigBase,
    t_inference: float | str = 0.0,
    *,
    chips: int = 3,
    seed: int = 0,
    exclude: Exclude = (),
) -> TrainingNoise:
    """Return the training noise that does to weights what a chip does to them: the "right" noise to train at.

    Gaussian weight noise relative to the layer's maximum or to each weight is taken as it is. For any other setting, a
    few chips are programmed, and the noise is additive: the root mean square of the weights' error, drift compensation
    included, as a fraction of each tile's largest weight, over all weights of the model.

    Args:
        model: The digital model.
        rpu_config: The noise setting.
        t_inference: Time after programming, in seconds or as text such as ``"1d"``.
        chips: Chips to measure, >= 1. They are not those of an evaluation that starts at `seed`.
        seed: Fixes which chips.
        exclude: Names of modules that stay digital.

    Raises:
        NabnError: an argument cannot work, as `convert_to_noise_aware` and `program_chip` have it.
    """
    check_count("chips", chips, minimum=1)
    check_seed("seed", seed)
    seconds = parse_time(t_inference)
    noise_model = getattr(rpu_config, "noise_model", None)
    if type(noise_model) is GaussianWeightNoise and not noise_model.relative_to_column:
        kind = "additive" if noise_model.relative_to == "max" else "multiplicative"
        return TrainingNoise(std=noise_model.sigma, kind=kind)
    analog = convert_to_noise_aware(model, rpu_config, exclude)
    layers = [layer for layer in named_analog_layers(analog).values() if isinstance(layer, NoiseAwareLayer)]
    tiles = [tile for layer in layers for tile in tiles_of(layer.analog_module)]
    targets = [tile.tile.get_weights().clone() for tile in tiles]
    total, count = 0.0, 0
    for index in range(chips):
        program_chip(analog, _OTHER_CHIPS + seed * chips + index, seconds)
        for tile, target in zip(tiles, targets, strict=True):
            weight = tile.tile.get_weights()
            factor, mapped = tile_output_scale(tile), tile.mapping_scales
            if factor is not None:  # what is left of it without the mapping is the drift compensation
                gain = factor if mapped is None else factor / mapped
                weight = weight * gain.detach().cpu().view(-1, 1)
            largest = float(target.abs().max())
            if largest > 0:
                total += float(((weight - target) / largest).double().square().sum())
                count += target.numel()
    return TrainingNoise(std=math.sqrt(total / count) if count else 0.0)


_OTHER_CHIPS = 1_000_003  # far from the small seeds that evaluations use, so that no measured chip is trained for
