"""Tune the alignments so that the outputs of the chip's blocks match the reference's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aihwkit_nabn.calibration.matching import BlockObjective, check_predictions
from aihwkit_nabn.calibration.method import CalibrationMethod, register_calibration_method
from aihwkit_nabn.calibration.methods.common_mode import CommonMode
from aihwkit_nabn.calibration.methods.low_rank import LowRank, check_budget
from aihwkit_nabn.calibration.methods.paired import Paired
from aihwkit_nabn.calibration.pair_moments import Pair
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import CalibrationError, UnknownNameError, check_count, check_number
from aihwkit_nabn.seeding import derive_seed

_State = dict[str, dict[str, Tensor]]
# Parts of an alignment that are tuned; the directions of a correction stay.
_TUNED = ("scale", "offset", "input_gain", "mixing")
_STARTS: dict[str, type[Paired]] = {"paired": Paired, "common_mode": CommonMode, "low_rank": LowRank}

_BATCH = 64
_STEP_VALUES = 2_500_000
# Stretches of steps between looks at the samples held out; a step size that fails falls by the factor.
_STRETCHES = 8
_BACK_OFF = 1 / 3
# Step sizes tried at the beginning, and steps with each.
_TRIED_SIZES = 4
_TRIED_STEPS = 4


@register_calibration_method("distill")
class Distill(CalibrationMethod):
    """Gradient descent on the scales, offsets, gains and corrections of a closed form; the weights stay.

    The loss needs no labels: the squared error of each block's output (`calibration.matching`) against the reference's
    on the same inputs, in parts of that output's variance. The divergence of the predictions can be added; measured on
    ResNet-20 it takes away from the gain, because a network is overconfident on the images it was trained on. A share
    of the samples is held out, and the best state on it is kept: the start where tuning does not help, which the report
    then says.

    The step size is found: a few steps are tried with the first one and with fractions of it, the best on the samples
    held out goes on, and whenever a stretch of steps ends higher than the best so far, the next begins there with a
    third of the step.

    Args:
        steps: Adam steps, those that try step sizes aside.
        batch_size: Samples per step, where the batches can be regrouped (tensors and tuples of tensors). Default: 64,
            or as many as hold 2.5 million values (16 images of 224 x 224), so that the graph of a step stays small.
        lr: First and largest step size: scales in parts of one, offsets in the reference's standard deviations. Falls
            to zero along a half cosine.
        prediction_weight: Weight of the Kullback-Leibler divergence between the predictions, for models that return
            logits ``[batch, classes, ...]``.
        held_out: Share of the samples that decides, in [0, 0.5]. 0 keeps the last state, and the first step size.
        start: The method whose alignments it begins with: ``low_rank``, ``common_mode`` or ``paired``.
        budget: Of ``low_rank``, as there.
        seed: Order of the samples.

    Source: ours; gamma/beta tuning of Bhattacharjee et al. 2023 (arXiv 2305.18416) made label-free.
    """

    summary = "starts from low_rank, then tunes its numbers so that the blocks' outputs match the reference's"
    needs_reference = True

    def __init__(
        self,
        steps: int = 80,
        batch_size: int | None = None,
        lr: float = 0.02,
        prediction_weight: float = 0.0,
        held_out: float = 0.125,
        start: str = "low_rank",
        budget: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.steps = check_count("steps", steps, minimum=1)
        self.batch_size = None if batch_size is None else check_count("batch_size", batch_size, minimum=1)
        self.lr = check_number("lr", lr, exclusive_minimum=0.0, meaning="the first step size")
        meaning = "the weight of the predictions' divergence"
        self.prediction_weight = check_number("prediction_weight", prediction_weight, minimum=0.0, meaning=meaning)
        meaning = "the share of the samples that decides"
        self.held_out = check_number("held_out", held_out, minimum=0.0, maximum=0.5, meaning=meaning)
        if start not in _STARTS:
            raise UnknownNameError("start", start, list(_STARTS))
        budget = check_budget(budget)
        self.start = _STARTS[start](**({"budget": budget} if start == "low_rank" else {}))
        self.seed = check_count("seed", seed)

    def calibrate(self, session: CalibrationSession) -> None:
        """Align, then tune."""
        if self.prediction_weight:
            check_predictions(session)
        pairs = self.start.align(session)
        store = session.samples()
        tuned = _TunedAlignments(session, pairs)
        size = self.batch_size or max(1, min(_BATCH, _STEP_VALUES // max(store.values_per_sample, 1)))
        objective = BlockObjective(session, store, self.prediction_weight, size)
        learn, held = store.split(self.held_out)
        if self.held_out and not held:
            session.notes.append("the calibration set cannot be divided, so nothing was tuned")
            return
        descent = _Descent(tuned, objective, (learn, held), size, self.seed)
        before = descent.best
        with _frozen(session.model), torch.enable_grad():
            descent.run(self.steps, self.lr, lambda done: session.step_done(done, self.steps))
        tuned.finish(descent.best_state)
        session.losses = (before, descent.best) if held else None
        if descent.stayed:
            session.notes.append("tuning found nothing better, so it stayed at its start")


class _Descent:
    """Adam on the moves, which goes back to the best state, with smaller steps, where it went up.

    Attributes:
        best: The least loss on the samples held out; infinity where none are.
        best_state: The best moves on them; the last ones where none are.
        stayed: Whether that is where it began.
    """

    def __init__(
        self,
        tuned: _TunedAlignments,
        objective: BlockObjective,
        split: tuple[list[int], list[int]],
        size: int,
        seed: int,
    ) -> None:
        self.tuned, self.objective, self.size = tuned, objective, size
        self.learn, held = split
        self.held = objective.store.minibatches(held, size) if held else []
        self.order = torch.Generator().manual_seed(derive_seed(seed, "distill"))
        self.groups: list[list[int]] = []
        self.best_state = tuned.state()
        self.stayed = True
        self.best = objective.mean(self.held) if self.held else math.inf

    def run(self, steps: int, lr: float, done: Callable[[int], None]) -> None:
        """Take so many steps; `done` is called after each stretch with those taken so far."""
        stretch = max(1, steps // _STRETCHES)
        if self.held:
            lr = self._best_step(lr, min(_TRIED_STEPS, steps))
        taken = 0
        while taken < steps:
            n = min(stretch, steps - taken)
            rates = [lr * 0.5 * (1 + math.cos(math.pi * (taken + i) / steps)) for i in range(n)]
            if not self._accept(self._descend(rates)):
                lr *= _BACK_OFF
            taken += n
            done(taken)

    def _best_step(self, lr: float, n: int) -> float:
        """Return the step size among a few whose first steps come out lowest on the samples held out."""
        order = self.order.get_state()
        losses = {}
        for rate in (lr * _BACK_OFF**k for k in range(_TRIED_SIZES)):
            self.order.set_state(order)
            self.groups = []
            losses[rate] = self._descend([rate] * n)
            self.tuned.load(self.best_state)
        self.order.set_state(order)
        self.groups = []
        return min(losses, key=lambda rate: losses[rate])

    def _descend(self, rates: list[float]) -> float:
        """Take one step with each rate, and return the loss on the samples held out, or that of the last step.

        Infinity where it broke down.
        """
        optimizer = torch.optim.Adam(self.tuned.parameters(), lr=rates[0])
        for rate in rates:
            optimizer.param_groups[0]["lr"] = rate
            self.tuned.write()
            loss = self.objective(self._next_group())
            if not bool(torch.isfinite(loss)):
                return math.inf
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.tuned.write()
        return self.objective.mean(self.held) if self.held else float(loss.detach())

    def _accept(self, loss: float) -> bool:
        """Take the state over if it is better than the best, else go back to that."""
        if loss < self.best or (not self.held and math.isfinite(loss)):
            self.best, self.best_state, self.stayed = loss, self.tuned.state(), False
            return True
        self.tuned.load(self.best_state)
        return False

    def _next_group(self) -> list[int]:
        if not self.groups:
            shuffled = [self.learn[i] for i in torch.randperm(len(self.learn), generator=self.order).tolist()]
            self.groups = self.objective.store.minibatches(shuffled, self.size)
        return self.groups.pop()


class _TunedAlignments:
    """The start's alignments, and the moves that are tuned.

    Scales times ``1 + a`` and offsets plus ``b`` standard deviations of the reference; the gains and the mixing of a
    correction plus moves in parts of their own root mean square.
    """

    def __init__(self, session: CalibrationSession, pairs: dict[str, Pair]) -> None:
        self.alignments = {name: session.alignments[name] for name in pairs}
        self.start: _State = {}
        self.units: _State = {}
        self.moves: _State = {}
        for name, alignment in self.alignments.items():
            start = {part: getattr(alignment, part) for part in _TUNED if getattr(alignment, part) is not None}
            if not {"scale", "offset"} <= start.keys():
                raise CalibrationError(f"layer {name!r} has no alignment to tune")
            self.start[name] = {part: value.clone() for part, value in start.items()}
            self.units[name] = {part: value.square().mean().sqrt() for part, value in start.items()}
            self.units[name]["scale"] = start["scale"].clone()
            self.units[name]["offset"] = pairs[name].digital.var.sqrt().to(start["offset"])
            self.moves[name] = {part: torch.zeros_like(value).requires_grad_() for part, value in start.items()}

    def parameters(self) -> list[Tensor]:
        return [move for moves in self.moves.values() for move in moves.values()]

    def write(self) -> None:
        """Put the values of the moment into the model, connected to what is tuned."""
        for name, alignment in self.alignments.items():
            for part, value in self._moved(name, self.moves[name]).items():
                setattr(alignment, part, value)

    def _moved(self, name: str, moves: dict[str, Tensor]) -> dict[str, Tensor]:
        return {part: value + moves[part] * self.units[name][part] for part, value in self.start[name].items()}

    def load(self, state: _State) -> None:
        """Go to an earlier `state`."""
        with torch.no_grad():
            for name, moves in self.moves.items():
                for part, move in moves.items():
                    move.copy_(state[name][part])

    def state(self) -> _State:
        return {
            name: {part: move.detach().clone() for part, move in moves.items()} for name, moves in self.moves.items()
        }

    def finish(self, state: _State) -> None:
        for name, alignment in self.alignments.items():
            alignment.set(directions=alignment.directions, **self._moved(name, state[name]))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the model takes a gradient inside the block."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
