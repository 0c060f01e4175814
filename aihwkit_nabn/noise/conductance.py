"""What models of devices share: cells of several devices with finite levels, and the way to aihwkit's own models."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from torch import Tensor

from aihwkit_nabn.drawing import drawing_from
from aihwkit_nabn.errors import NabnError, check_count, check_number
from aihwkit_nabn.noise.base import Programmed, State, WeightNoiseModel, part_of
from aihwkit_nabn.seeding import derive_seed

#: Ten years in seconds, whether a year is counted as 365 or as 366 days.
TEN_YEARS_S = 10 * 366 * 86_400.0
#: What the options of cells are unless given; models then print, compare and are stored as if they had none.
_PLAIN_CELL = {"levels": None, "devices_per_weight": 1, "device_spread": 0.0}


class ConductanceNoise(WeightNoiseModel):
    """Base of the models whose noise is given in conductance; their options are these and those of the cells.

    As in aihwkit, the largest |weight| of each *tile* (not of the layer) is mapped to the largest conductance, at
    programming and again at drift, where the net weight is split anew over the devices of a pair. So tiling, and
    scaling each column, change the programming error; `layer_max` is not used. What is said of a device here holds for
    each of the pair; a pair's weight is the difference of the two.

    * Finite levels: the target is rounded to the nearest of `levels` conductances, equally spaced from the smallest
      (0 for a pair) to the largest. Rounding errors are uniform where weights are spread over many levels: of variance
      ``step^2 / 12``.
    * Several devices per weight, of equal significance: each is programmed to the same target, drifts and is read on
      its own, and the weight is their mean. Independent errors have 1/n of one device's variance.
    * Device-to-device spread beside the model's cycle-to-cycle spread: what a device conducts, at every time, is
      ``max(0, 1 + device_spread N)`` times what the model gives. N is fixed for a device of the chip: programming the
      chip again (``program_chip(model, seed, cycle=1)``) draws the model's noise anew and leaves N. The variance over
      chips is ``device_spread^2 g^2 + s^2 (1 + device_spread^2)``, s the model's spread.

    A subclass passes its further options on (``def __init__(self, ..., **options): super().__init__(**options)``) and
    either returns aihwkit's model from `device`, or writes `program_devices` and `drift_devices`; they are not called
    for empty tiles and at `noise_scale` 0, which leaves rounding and device-to-device spread.

    Args:
        noise_scale: Factor on the model's noise; 0 switches it off.
        levels: How many levels a device can be programmed to, at least 2; None: any conductance.
        devices_per_weight: How many devices (pairs, where the model has pairs) hold each weight.
        device_spread: Spread of the devices' conductances relative to their own, from device to device.

    Raises:
        NabnError: an option is out of range.
    """

    strength: ClassVar[str] = "noise_scale"
    t_range_s: ClassVar[tuple[float, float]] = (0.0, TEN_YEARS_S)
    drifts: ClassVar[bool] = True
    columnwise_mapping: ClassVar[bool] = True
    uses_layer_max: ClassVar[bool] = False
    levels: int | None = None
    devices_per_weight: int = 1
    device_spread: float = 0.0

    def __init__(
        self,
        noise_scale: float = 1.0,
        levels: int | None = None,
        devices_per_weight: int = 1,
        device_spread: float = 0.0,
    ) -> None:
        super().__init__()
        self.noise_scale = check_number("noise_scale", noise_scale, minimum=0.0)
        self.levels = None if levels is None else check_count("levels", levels, minimum=2)
        self.devices_per_weight = check_count("devices_per_weight", devices_per_weight, minimum=1)
        self.device_spread = check_number("device_spread", device_spread, minimum=0.0)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # A subclass that passes ``**options`` on has its parent's options behind its own: say so to whoever looks.
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            own = list(inspect.signature(cls.__init__).parameters.values())[1:]
            named = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
            if len(named) < len(own):
                taken = {parameter.name for parameter in named}
                inherited = inspect.signature(cls.__mro__[1]).parameters
                named += [parameter for name, parameter in inherited.items() if name not in taken]
            cls.__signature__ = inspect.Signature(named)

    def options(self) -> dict[str, Any]:
        """Return the constructor arguments by name; options of cells where they are not the plain ones."""
        given = super().options()
        return {name: value for name, value in given.items() if name not in _PLAIN_CELL or value != _PLAIN_CELL[name]}

    def device(self) -> BaseNoiseModel:
        """Return aihwkit's model with the arguments of this one."""
        raise NotImplementedError

    def program_devices(self, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, State]:
        """Return the weights as programmed, on one device per weight, and what `drift_devices` needs.

        Unless a subclass says otherwise aihwkit's model programs them, with one tensor of drift parameters per device
        of a pair. `weights` may be overwritten.
        """
        with drawing_from(generator), _quiet():
            programmed, parameters = self.device().apply_programming_noise(weights)
        return programmed, {f"device{index}": tensor for index, tensor in enumerate(parameters)}

    def drift_devices(self, programmed: Tensor, state: State, t_inference: float, generator: torch.Generator) -> Tensor:
        """Return the weights after drift and accumulated read noise, on one device per weight."""
        self.require_state(state, "device0")
        parameters = [state[f"device{index}"] for index in range(len(state))]
        with drawing_from(generator), _quiet():
            return self.device().apply_drift_noise(programmed, parameters, t_inference)

    def conductance_range(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which weights stand for no conductance, for the smallest a device is set to, and for the largest.

        All three are scalars. For a pair: 0, 0 and the largest |weight| of the tile.
        """
        largest = weights.abs().amax()
        return torch.zeros_like(largest), torch.zeros_like(largest), largest

    def program(self, weights: Tensor, w_max: Tensor, generator: torch.Generator) -> Programmed:
        """Return the weights as the cells hold them, with what their devices need to drift."""
        if weights.numel() == 0:
            return weights
        zero, lowest, largest = self.conductance_range(weights)
        if self.levels is not None and largest > lowest:
            step = (largest - lowest) / (self.levels - 1)
            weights = lowest + step * torch.round((weights - lowest) / step)
        if not self._has_cells():
            return weights if self.noise_scale == 0 else self.program_devices(weights, generator)
        state: State = {"gains": self._gains(weights, generator), "zero": zero} if self.device_spread else {}
        for index in range(self.devices_per_weight):
            device, own = weights.clone(), State()
            if self.noise_scale > 0:
                device, own = self.program_devices(device, generator)
            state |= {f"{index}.programmed": device, **{f"{index}.{name}": tensor for name, tensor in own.items()}}
        return self._mean([state[f"{index}.programmed"] for index in range(self.devices_per_weight)], state), state

    def drift(self, programmed: Tensor, state: State, t_inference: float, generator: torch.Generator) -> Tensor:
        """Return the weights the cells hold at `t_inference`."""
        if programmed.numel() == 0 or self.noise_scale == 0:
            return programmed
        if not self._has_cells():
            return self.drift_devices(programmed, state, t_inference, generator)
        self.require_state(state, "0.programmed")
        before, now = [], []
        for index in range(self.devices_per_weight):
            own = part_of(state, index)
            before.append(own.pop("programmed"))
            now.append(self.drift_devices(before[-1].clone(), own, t_inference, generator))
        # The difference is what other effects of a composition have done to the weights since.
        return self._mean(now, state) + (programmed - self._mean(before, state).to(programmed))

    def require_state(self, state: State, key: str) -> None:
        """Raise unless the tile was programmed by a model of this kind with its noise on."""
        if key not in state:
            raise NabnError(
                f"{type(self).__name__} cannot drift a tile that it did not program (no {key!r} among its drift "
                "parameters): program the chip again"
            )

    def _has_cells(self) -> bool:
        return self.devices_per_weight > 1 or self.device_spread > 0

    def _gains(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Return each device's own factor, ``[devices, 2, *shape]``, of the pair's positive and negative side."""
        if self.chip_seed is not None:
            seed = derive_seed(self.chip_seed, "device_spread", *self.tile)
            generator = torch.Generator().manual_seed(seed)
        shape = (self.devices_per_weight, 2, *weights.shape)
        unit = torch.randn(shape, generator=generator, dtype=weights.dtype)
        return (1.0 + self.device_spread * unit).clamp(min=0.0)

    def _mean(self, devices: list[Tensor], state: State) -> Tensor:
        if "gains" in state:
            zero, gains = state["zero"], state["gains"]
            devices = [
                zero + (device - zero) * torch.where(device >= zero, positive, negative)
                for device, (positive, negative) in zip(devices, gains, strict=True)
            ]
        return torch.stack(devices).mean(0)


class ScaledNoise(ConductanceNoise):
    """Base of the models in which programming noise, read noise and drift have a factor each, as in aihwkit.

    Args:
        noise_scale: Factor on all of them; 0 switches the model off.
        prog_noise_scale: Factor on the programming noise.
        read_noise_scale: Factor on the read noise.
        drift_scale: Factor on the drift.
        **options: Those of the cells.

    Raises:
        NabnError: a factor is negative or no finite number.
    """

    def __init__(
        self,
        noise_scale: float = 1.0,
        prog_noise_scale: float = 1.0,
        read_noise_scale: float = 1.0,
        drift_scale: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(noise_scale, **options)
        self.prog_noise_scale = check_number("prog_noise_scale", prog_noise_scale, minimum=0.0)
        self.read_noise_scale = check_number("read_noise_scale", read_noise_scale, minimum=0.0)
        self.drift_scale = check_number("drift_scale", drift_scale, minimum=0.0)

    def scales(self) -> dict[str, float]:
        """Return the three products with `noise_scale`, by the names of aihwkit's arguments."""
        names = ("prog_noise_scale", "read_noise_scale", "drift_scale")
        return {name: self.noise_scale * getattr(self, name) for name in names}


def split_pair(signed: Tensor) -> Tensor:
    """Return what each device of a pair holds, ``[2, *shape]``: the positive and the negative part."""
    return torch.stack([signed.clamp(min=0.0), (-signed).clamp(min=0.0)])


def join_pair(pair: Tensor) -> Tensor:
    """Return the difference of a pair's devices, which conduct at least nothing."""
    plus, minus = pair.clamp(min=0.0)
    return plus - minus


def unit_noise(pair: Tensor, generator: torch.Generator) -> Tensor:
    """Return a standard normal number per device of a pair, ``[2, *shape]``."""
    # In aihwkit's order.
    draws = [torch.randn(half.shape, generator=generator, dtype=half.dtype) for half in pair]
    return torch.stack(draws)


@contextmanager
def _quiet() -> Iterator[None]:
    # aihwkit 1.1.0's Hermes model indexes in a way torch warns about; the result is the right one.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence for multidimensional indexing")
        yield
