"""The adapter between this package's noise models and aihwkit's device models, which work in conductance."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from torch import Tensor

from aihwkit_nabn.drawing import drawing_from
from aihwkit_nabn.errors import NabnError, check_number
from aihwkit_nabn.noise.base import WeightNoiseModel

#: Ten years in seconds, whether a year is counted as 365 or as 366 days.
TEN_YEARS_S = 10 * 366 * 86_400.0


class ConductanceNoise(WeightNoiseModel):
    """Base of the models that hand a tile to one of aihwkit's device models.

    As in aihwkit, the largest |weight| of each *tile* (not of the layer) is mapped to the largest conductance, at
    programming and again at drift, where the net weight is split anew over the devices of a pair. So tiling, and
    scaling each column, change the programming error; `layer_max` is not used.

    A subclass returns aihwkit's model from `device`; `noise_scale` 0 and empty tiles never reach it.
    """

    strength: ClassVar[str] = "noise_scale"
    t_range_s: ClassVar[tuple[float, float]] = (0.0, TEN_YEARS_S)
    drifts: ClassVar[bool] = True
    columnwise_mapping: ClassVar[bool] = True
    uses_layer_max: ClassVar[bool] = False
    noise_scale: float

    def device(self) -> BaseNoiseModel:
        """Return aihwkit's model with the arguments of this one."""
        raise NotImplementedError

    def program(
        self, weights: Tensor, w_max: Tensor, generator: torch.Generator
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the weights aihwkit's model programs, with one tensor of drift parameters per device of a cell."""
        if self.is_off(weights):
            return weights
        with drawing_from(generator), _quiet():
            programmed, parameters = self.device().apply_programming_noise(weights)
        return programmed, {f"device{index}": tensor for index, tensor in enumerate(parameters)}

    def drift(
        self, programmed: Tensor, state: dict[str, Tensor], t_inference: float, generator: torch.Generator
    ) -> Tensor:
        """Return the weights after drift and accumulated read noise as aihwkit's model gives them."""
        if self.is_off(programmed):
            return programmed
        self.require_state(state, "device0")
        parameters = [state[f"device{index}"] for index in range(len(state))]
        with drawing_from(generator), _quiet():
            return self.device().apply_drift_noise(programmed, parameters, t_inference)

    def is_off(self, weights: Tensor) -> bool:
        """Return whether there is nothing to do: no noise asked for, or no weights."""
        return self.noise_scale == 0 or weights.numel() == 0

    def require_state(self, state: dict[str, Tensor], key: str) -> None:
        """Raise unless the tile was programmed by a model of this kind with its noise on."""
        if key not in state:
            raise NabnError(
                f"{type(self).__name__} cannot drift a tile that it did not program (no {key!r} among its drift "
                "parameters): program the chip again"
            )


class ScaledNoise(ConductanceNoise):
    """Base of the models in which programming noise, read noise and drift have a factor each, as in aihwkit."""

    def set_scales(
        self, noise_scale: float, prog_noise_scale: float, read_noise_scale: float, drift_scale: float
    ) -> None:
        """Store the factors; `noise_scale` multiplies the others.

        Raises:
            NabnError: one is negative or no finite number.
        """
        self.noise_scale = check_number("noise_scale", noise_scale, minimum=0.0)
        self.prog_noise_scale = check_number("prog_noise_scale", prog_noise_scale, minimum=0.0)
        self.read_noise_scale = check_number("read_noise_scale", read_noise_scale, minimum=0.0)
        self.drift_scale = check_number("drift_scale", drift_scale, minimum=0.0)

    def scales(self) -> dict[str, float]:
        """Return the three products by the names of aihwkit's arguments."""
        names = ("prog_noise_scale", "read_noise_scale", "drift_scale")
        return {name: self.noise_scale * getattr(self, name) for name in names}


@contextmanager
def _quiet() -> Iterator[None]:
    # aihwkit 1.1.0's Hermes model indexes in a way torch warns about; the result is the right one.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence for multidimensional indexing")
        yield
