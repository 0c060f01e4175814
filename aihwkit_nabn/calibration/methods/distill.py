"""Tune the alignments so that the outputs of the chip's blocks match the reference's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aihwkit_nabn.calibration.batches import SampleStore
from aihwkit_nabn.calibration.matching import BlockObjective
from aihwkit_nabn.calibration.method import CalibrationMethod, register_calibration_method
from aihwkit_nabn.calibration.methods.common_mode import CommonMode
from aihwkit_nabn.calibration.methods.paired import Paired
from aihwkit_nabn.calibration.pairs import Pair
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import CalibrationError, check_count, check_flag, check_number
from aihwkit_nabn.seeding import derive_seed

_BATCH = 64
_STEP_VALUES = 2_500_000


@register_calibration_method("distill")
class Distill(CalibrationMethod):
    """From ``paired``, gradient descent on the per-channel scales and offsets; the weights stay as programmed.

    The loss needs no labels: the squared error of each block's output (`calibration.points`) against the reference's
    on the same inputs, in parts of that output's variance. The divergence of the predictions can be added; measured on
    ResNet-20 it takes away from the gain, because a network is overconfident on the images it was trained on. A share
    of the samples is held out, and the best state on it is kept: that of ``paired`` where tuning does not help.

    Args:
        steps: Adam steps.
        batch_size: Samples per step, where the batches can be regrouped (tensors and tuples of tensors). Default: 64,
            or as many as hold 2.5 million values (16 images of 224 x 224), so that the graph of a step stays small.
        lr: Step size: scales in parts of one, offsets in the reference's standard deviations. Falls to zero along a
            half cosine.
        prediction_weight: Weight of the Kullback-Leibler divergence between the predictions, for models that return
            logits ``[batch, classes, ...]``.
        held_out: Share of the samples that decides, in [0, 0.5].
        common_mode: Whether it starts from ``common_mode`` instead, whose input gains then stay.
        shrink: As in ``paired``.
        seed: Order of the samples.

    Source: ours; gamma/beta tuning of Bhattacharjee et al. 2023 (arXiv 2305.18416) made label-free.
    """

    summary = "paired, then scales and offsets tuned so that the blocks' outputs match the reference's"
    needs_reference = True

    def __init__(
        self,
        steps: int = 80,
        batch_size: int | None = None,
        lr: float = 0.02,
        prediction_weight: float = 0.0,
        held_out: float = 0.125,
        common_mode: bool = False,
        shrink: float | None = None,
        seed: int = 0,
    ) -> None:
        self.steps = check_count("steps", steps, minimum=1)
        self.batch_size = None if batch_size is None else check_count("batch_size", batch_size, minimum=1)
        self.lr = check_number("lr", lr, exclusive_minimum=0.0)
        self.prediction_weight = check_number("prediction_weight", prediction_weight, minimum=0.0)
        self.held_out = check_number("held_out", held_out, minimum=0.0, maximum=0.5)
        start = CommonMode if check_flag("common_mode", common_mode) else Paired
        self.start = start() if shrink is None else start(shrink=shrink)
        self.seed = check_count("seed", seed)

    def calibrate(self, session: CalibrationSession) -> None:
        """Align, then tune."""
        session.keep_batches = True
        pairs = self.start.align(session)
        store = SampleStore(session.kept)
        tuned = _TunedAlignments(session, pairs)
        size = self.batch_size or max(1, min(_BATCH, _STEP_VALUES // max(store.values_per_sample, 1)))
        objective = BlockObjective(session, store, self.prediction_weight, size)
        with _frozen(session.model), torch.enable_grad(), tuned.in_place():
            state = self._descend(session, tuned, objective, store.split(self.held_out), size)
        tuned.finish(state)

    def _descend(
        self,
        session: CalibrationSession,
        tuned: _TunedAlignments,
        objective: BlockObjective,
        split: tuple[list[int], list[int]],
        size: int,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the best state found; the start's where nothing is better on the samples held out."""
        (learn, held), store = split, objective.store
        optimizer = torch.optim.Adam(tuned.parameters(), lr=self.lr)
        order = torch.Generator().manual_seed(derive_seed(self.seed, "distill"))
        held_groups = store.minibatches(held, size)
        best, best_state = objective.mean(held_groups), tuned.state()
        check_every = max(1, self.steps // 8)
        groups: list[list[int]] = []
        for step in range(1, self.steps + 1):
            if not groups:
                shuffled = [learn[i] for i in torch.randperm(len(learn), generator=order).tolist()]
                groups = store.minibatches(shuffled, size)
            for group in optimizer.param_groups:
                group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / self.steps))
            tuned.write()
            loss = objective(groups.pop())
            if not bool(torch.isfinite(loss)):
                break
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            session.step_done(step, self.steps)
            if held and (step % check_every == 0 or step == self.steps):
                tuned.write()
                now = objective.mean(held_groups)
                if now < best:
                    best, best_state = now, tuned.state()
        return best_state if held else tuned.state()


class _TunedAlignments:
    """The start's scales times ``1 + a`` and offsets plus ``b`` standard deviations; a and b are what is tuned."""

    def __init__(self, session: CalibrationSession, pairs: dict[str, Pair]) -> None:
        self.alignments = {name: session.alignments[name] for name in pairs}
        self.start: dict[str, tuple[Tensor, Tensor]] = {}
        self.unit: dict[str, Tensor] = {}
        self.moves: dict[str, tuple[Tensor, Tensor]] = {}
        for name, alignment in self.alignments.items():
            scale, offset = alignment.scale, alignment.offset
            if scale is None or offset is None:
                raise CalibrationError(f"layer {name!r} has no alignment to tune")
            self.start[name] = (scale.clone(), offset.clone())
            self.unit[name] = pairs[name].digital.var.sqrt().to(scale)
            self.moves[name] = (torch.zeros_like(scale).requires_grad_(), torch.zeros_like(scale).requires_grad_())

    def parameters(self) -> list[Tensor]:
        return [move for moves in self.moves.values() for move in moves]

    def write(self) -> None:
        """Put the values of the moment into the model, connected to what is tuned."""
        for name, alignment in self.alignments.items():
            (scale, offset), (a, b) = self.start[name], self.moves[name]
            alignment.scale = scale * (1 + a)
            alignment.offset = offset + b * self.unit[name]

    def state(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in self.moves.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        try:
            yield
        finally:
            for name, alignment in self.alignments.items():
                alignment.scale, alignment.offset = self.start[name]

    def finish(self, state: dict[str, tuple[Tensor, Tensor]]) -> None:
        for name, alignment in self.alignments.items():
            (scale, offset), (a, b) = self.start[name], state[name]
            alignment.set(scale * (1 + a), offset + b * self.unit[name], alignment.input_gain)


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
