"""What every weight-noise model shares: the physics a subclass writes, and the shell aihwkit's tiles call."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from torch import Tensor

from aihwkit_nabn.drawing import current_generator, drawing_from
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.seeding import derive_seed

#: Named tensors a noise model keeps with a programmed tile.
State = dict[str, Tensor]
#: What `WeightNoiseModel.program` may return: the weights, alone or with the state that drift needs.
Programmed = Tensor | tuple[Tensor, State]


class WeightNoiseModel(BaseNoiseModel):
    """Noise on the weights of one tile: drawn once by programming, then moving with time.

    A subclass writes `program`, and `drift` if its devices change with time. It stores each constructor argument under
    the argument's own name, so that models can be printed and compared. The rest of the class is the shell through
    which any aihwkit tile uses the model: ``program_analog_weights`` and ``drift_analog_weights`` work as they are and
    obey ``torch.manual_seed``.

    Attributes:
        strength: Name of the constructor argument at whose value 0 the model changes nothing at all, while its other
            arguments are at their defaults.
        t_range_s: Shortest and longest time after programming, in seconds, at which the model may be asked.
        drifts: Whether the devices change with time, so that presets add a drift compensation.
        columnwise_mapping: Whether presets scale each output column to the conductance range. True suits models whose
            noise is given in conductance, False those whose noise is relative to the weights.
        varies: Whether the noise moves from one forward pass to the next; see `aihwkit_nabn.noise.runtime`.
        uses_layer_max: Whether whoever programs a layer has to set `layer_max`.
        cycle_to_cycle: Whether programming the same chip again draws the model's noise anew. False: what it draws
            belongs to the chip, as faults do.
        main_option: Name of the constructor argument whose value may stand alone on the command line, ``NAME:VALUE``.
        reads_file: Whether an option may name a file, so that its text does not say what the model is.
        relative_to_column: Whether `w_max` is that of each output's weights on the tile, ``[out, 1]``, rather than the
            layer's: what noise is relative to where each column is programmed at full range.
        layer_max: Maximum |weight| of the whole layer in the tile's units, a scalar or ``[out, 1]``, set by whoever
            programs a layer that was split over tiles. None: the maximum of the tile itself.
        chip_seed: Seed of the chip, set by whoever programs it, for what all its tiles have in common. None: the tile
            stands alone.
        tile: Which tile of the chip this is, set likewise: the layer's name and the tile's.
        cycle: How often the chip was programmed before, set likewise; see `program_chip`.
    """

    strength: ClassVar[str]
    t_range_s: ClassVar[tuple[float, float]] = (0.0, math.inf)
    drifts: ClassVar[bool] = False
    columnwise_mapping: ClassVar[bool] = False
    varies: ClassVar[bool] = False
    uses_layer_max: ClassVar[bool] = True
    cycle_to_cycle: ClassVar[bool] = True
    relative_to_column: ClassVar[bool] = False
    main_option: ClassVar[str | None] = None
    reads_file: ClassVar[bool] = False
    layer_max: Tensor | None = None
    chip_seed: int | None = None
    tile: tuple[str, ...] = ()
    cycle: int = 0

    def program(self, weights: Tensor, w_max: Tensor, generator: torch.Generator) -> Programmed:
        """Return the weights as the devices hold them right after programming.

        Args:
            weights: ``[out, in]`` target weights of one tile on the CPU, in the tile's units. May be overwritten.
            w_max: Maximum |weight| of the whole layer, or of each output (`relative_to_column`), in the same units,
                broadcastable to `weights`.
            generator: Source of all randomness.

        Returns:
            The programmed weights, alone or with named tensors that `drift` needs later.
        """
        raise NotImplementedError

    def program_cycle(self, weights: Tensor, w_max: Tensor, generator: torch.Generator) -> tuple[Tensor, State]:
        """Return what `program` gives in this programming cycle of the chip, with the state, empty if there is none."""
        if self.cycle and self.cycle_to_cycle:
            # First as in the first cycle: what others draw after this from the same generator stays the chip's own.
            self.program(weights.clone(), w_max, generator)
            seed = derive_seed(self.chip_seed or 0, "cycle", self.cycle, *self.tile)
            generator = torch.Generator().manual_seed(seed)
        with drawing_from(generator) if self.cycle else nullcontext():
            result = self.program(weights, w_max, generator)
        return result if isinstance(result, tuple) else (result, {})

    def drift(self, programmed: Tensor, state: State, t_inference: float, generator: torch.Generator) -> Tensor:
        """Return the weights `t_inference` seconds after programming; unchanged unless a subclass says otherwise.

        Args:
            programmed: What `program` returned. May be overwritten.
            state: The tensors `program` returned with it; must be left as they are.
            t_inference: Seconds since programming, within `t_range_s`.
            generator: Source of all randomness.
        """
        return programmed

    @property
    def changes_with_time(self) -> bool:
        """Whether weights can differ from one time after programming to the next: whether there is a `drift`."""
        return type(self).drift is not WeightNoiseModel.drift

    def check_time(self, t_inference: object) -> float:
        """Return `t_inference` as a float if the model may be asked at that time.

        Raises:
            NabnError: it is no number, not finite, negative, or outside `t_range_s`.
        """
        low, high = self.t_range_s
        is_number = isinstance(t_inference, numbers.Real) and not isinstance(t_inference, bool)
        seconds = float(t_inference) if is_number else math.nan  # type: ignore[arg-type]
        if not (math.isfinite(seconds) and low <= seconds <= high):
            allowed = f"{low:g} to {high:g} seconds" if math.isfinite(high) else f"at least {low:g} seconds"
            raise NabnError(f"t_inference must be {allowed} for {type(self).__name__}, got {t_inference!r}")
        return seconds

    def options(self) -> dict[str, Any]:
        """Return the constructor arguments of this instance by name."""
        return {name: getattr(self, name) for name in argument_names(type(self))}

    @torch.no_grad()
    def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Any]]:
        """Program one tile; the entry aihwkit's ``program_weights`` calls.

        Args:
            weights: ``[out, in]`` target weights in the tile's units, left unchanged.

        Returns:
            The programmed weights (shape, dtype and device of `weights`) and the list aihwkit hands back to
            `apply_drift_noise`: one dictionary of tensors.
        """
        work = _work_copy(weights)
        # Where torch.randn_like draws from too, not a copy: a model that uses it then moves the same stream on.
        programmed, state = self.program_cycle(work, self._w_max(work), current_generator())
        return self._like(programmed, weights, "program"), [state]

    @torch.no_grad()
    def apply_drift_noise(
        self, weights: Tensor, drift_noise_parameters: Sequence[Any] | None, t_inference: float
    ) -> Tensor:
        """Move one programmed tile to `t_inference`; the entry aihwkit's ``drift_weights`` calls.

        Args:
            weights: The weights `apply_programming_noise` returned, left unchanged.
            drift_noise_parameters: The list it returned with them.
            t_inference: Seconds since programming.

        Raises:
            NabnError: `t_inference` is outside the model's range.
        """
        seconds = self.check_time(t_inference)
        kept = drift_noise_parameters[0] if drift_noise_parameters else {}
        state = {name: tensor.cpu() for name, tensor in kept.items()}
        return self._like(self.drift(_work_copy(weights), state, seconds, current_generator()), weights, "drift")

    @torch.no_grad()
    def apply_noise(self, weights: Tensor, t_inference: float) -> Tensor:
        """Return freshly programmed weights at `t_inference` seconds; at 0 as programmed.

        Raises:
            NabnError: `t_inference` is outside the model's range.
        """
        seconds = self.check_time(t_inference)
        programmed, state = self.apply_programming_noise(weights)
        return self.apply_drift_noise(programmed, state, seconds) if seconds > 0 else programmed

    def _w_max(self, work: Tensor) -> Tensor:
        if self.relative_to_column and work.numel():
            return work.abs().amax(tuple(range(1, work.dim())), keepdim=True) if work.dim() > 1 else work.abs()
        if self.layer_max is None:
            return torch.stack(work.aminmax()).abs().amax() if work.numel() else work.new_zeros(())
        w_max = torch.as_tensor(self.layer_max).detach().to(work)
        # By hand: torch.broadcast_shapes imports sympy, which takes seconds.
        pairs = zip(reversed(w_max.shape), reversed(work.shape), strict=False)
        if w_max.dim() > work.dim() or any(size not in (1, full) for size, full in pairs):
            raise NabnError(
                f"layer_max must be a scalar or [out, 1] for a tile of shape {list(work.shape)}, "
                f"got shape {list(w_max.shape)}"
            )
        return w_max

    def _like(self, result: object, weights: Tensor, method: str) -> Tensor:
        name = f"{type(self).__name__}.{method}"
        if not isinstance(result, Tensor):
            raise NabnError(f"{name} must return a tensor, got {type(result).__name__}")
        if result.shape != weights.shape:
            raise NabnError(f"{name} must keep the shape {list(weights.shape)}, got {list(result.shape)}")
        if result.dtype != _work_dtype(weights):
            raise NabnError(f"{name} must keep the dtype {_work_dtype(weights)}, got {result.dtype}")
        return result.to(device=weights.device, dtype=weights.dtype)

    def __eq__(self, other: object) -> bool:
        # By constructor arguments: layer_max belongs to the tile, and comparing tensors would be ambiguous.
        return type(self) is type(other) and self.options() == other.options()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return WeightNoiseModel.__str__(self)

    def __str__(self, exclude_keys: list[str] | None = None, keys: list[str] | None = None) -> str:
        shown = {
            name: value
            for name, value in self.options().items()
            if name not in (exclude_keys or ()) and (keys is None or name in keys)
        }
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def argument_names(model_class: type) -> list[str]:
    """Return the names of a noise model's constructor arguments, in order."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(inspect.signature(model_class).parameters.values())
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def part_of(state: State, index: int) -> State:
    """Return the tensors of a state that are named ``INDEX.NAME``, by their names."""
    prefix = f"{index}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _work_dtype(weights: Tensor) -> torch.dtype:
    # Half-precision weights are computed in single precision: noise of a few percent would be rounded visibly.
    return torch.float64 if weights.dtype == torch.float64 else torch.float32


def _work_copy(weights: Tensor) -> Tensor:
    return weights.detach().to(device="cpu", dtype=_work_dtype(weights), copy=True)
