"""Tune the alignments so that the chip's predictions and layer outputs match the reference's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aihwkit_nabn.calibration.batches import SampleStore, tensors_in
from aihwkit_nabn.calibration.method import CalibrationMethod, register_calibration_method
from aihwkit_nabn.calibration.methods.paired import Paired
from aihwkit_nabn.calibration.pairs import Pair, align_with_reference
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import CalibrationError, check_count, check_number
from aihwkit_nabn.seeding import derive_seed


@register_calibration_method("distill")
class Distill(CalibrationMethod):
    """From ``paired``, gradient descent on the per-channel scales and offsets alone; the weights on the chip stay as programmed.

    The loss needs no labels: Kullback-Leibler divergence of the chip's predictions from the reference's (for a tensor of
    logits ``[batch, classes, ...]``; other floating-point outputs are compared by their normalised squared error), plus
    the normalised squared error of the analog layers' aligned outputs. A share of the samples is held out; the best state
    on it is kept, which is ``paired`` itself where tuning does not help.

    Args:
        steps: Adam steps.
        batch_size: Samples per step, where the batches can be regrouped (tensors and tuples of tensors).
        lr: Step size, relative: scales in parts of one, offsets in the reference's standard deviations. Falls to zero along a
            half cosine.
        layer_weight: Weight of the layer outputs' error against the predictions'.
        temperature: Of the softmax in the divergence.
        held_out: Share of the samples that decides, in [0, 0.5].
        shrink: As in ``paired``.
        seed: Order of the samples.

    Source: ours; gamma/beta tuning of Bhattacharjee et al. 2023 (arXiv 2305.18416) made label-free.
    """

    summary = "paired, then scales and offsets tuned so that predictions and layer outputs match the reference's"
    needs_reference = True

    def __init__(
        self,
        steps: int = 80,
        batch_size: int = 64,
        lr: float = 0.01,
        layer_weight: float = 1.0,
        temperature: float = 1.0,
        held_out: float = 0.125,
        shrink: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.steps = check_count("steps", steps, minimum=1)
        self.batch_size = check_count("batch_size", batch_size, minimum=1)
        self.lr = check_number("lr", lr, exclusive_minimum=0.0)
        self.layer_weight = check_number("layer_weight", layer_weight, minimum=0.0)
        self.temperature = check_number("temperature", temperature, exclusive_minimum=0.0)
        self.held_out = check_number("held_out", held_out, minimum=0.0, maximum=0.5)
        self.start = Paired(shrink=shrink)
        self.shrink = shrink
        self.seed = check_count("seed", seed)

    def calibrate(self, session: CalibrationSession) -> None:
        """Align, then tune."""
        session.keep_batches = True
        pairs = align_with_reference(session, self.start.rule, wants_cross=self.start.shrink > 0)
        store = SampleStore(session.kept)
        learn, held = store.split(self.held_out)
        tuned = _TunedAlignments(session, pairs)
        objective = _Objective(session, pairs, self.layer_weight, self.temperature)
        optimizer = torch.optim.Adam(tuned.parameters(), lr=self.lr)
        order = torch.Generator().manual_seed(derive_seed(self.seed, "distill"))
        groups: list[list[int]] = []
        with _frozen(session.model), torch.enable_grad(), tuned.in_place():
            best, best_state = self._held_out_loss(objective, store, held), tuned.state()
            check_every = max(1, self.steps // 8)
            for step in range(self.steps):
                if not groups:
                    shuffled = [learn[i] for i in torch.randperm(len(learn), generator=order).tolist()]
                    groups = store.minibatches(shuffled, self.batch_size)
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))
                tuned.write()
                loss = objective(store.take(groups.pop()))
                if not bool(torch.isfinite(loss)):
                    break
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if held and ((step + 1) % check_every == 0 or step + 1 == self.steps):
                    tuned.write()
                    now = self._held_out_loss(objective, store, held)
                    if now < best:
                        best, best_state = now, tuned.state()
            if not held:
                best_state = tuned.state()
        tuned.finish(best_state)

    def _held_out_loss(self, objective: _Objective, store: SampleStore, held: list[int]) -> float:
        groups = store.minibatches(held, self.batch_size) if held else []
        with torch.no_grad():
            losses = [float(objective(store.take(group))) * len(group) for group in groups]
        return sum(losses) / max(len(held), 1)


class _TunedAlignments:
    """Scales and offsets as the start's, times ``1 + a`` and plus ``b`` standard deviations; a and b are what is tuned."""

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
            alignment.set(scale * (1 + a), offset + b * self.unit[name])


class _Objective:
    """The loss of the chip on one batch, against the reference on the same."""

    def __init__(
        self, session: CalibrationSession, pairs: dict[str, Pair], layer_weight: float, temperature: float
    ) -> None:
        self.session = session
        self.layer_weight = layer_weight
        self.temperature = temperature
        self.references = {name: layer for name, layer in session.reference_layers().items() if name in pairs}
        self.layers = {name: session.model.get_submodule(name) for name in self.references}
        self.variances = {
            name: pairs[name].digital.var.clamp(min=1e-12).to(session.dtypes[name]) for name in self.references
        }

    def __call__(self, batch: Any) -> Tensor:
        targets: dict[str, list[Tensor]] = {}
        outputs: dict[str, list[Tensor]] = {}
        with self.session.recording(self.references, lambda name, y: targets.setdefault(name, []).append(y.detach())):
            expected = self.session.run_reference(batch)
        with self.session.recording(self.layers, lambda name, y: outputs.setdefault(name, []).append(y)):
            got = self.session.run_analog(batch)
        loss = self._prediction_loss(got, expected)
        errors = [
            self._layer_error(name, y, target)
            for name, ys in outputs.items()
            for y, target in zip(ys, targets.get(name, []))
            if y.shape == target.shape and y.numel()
        ]
        if errors and self.layer_weight:
            loss = loss + self.layer_weight * torch.stack(errors).mean()
        if not loss.requires_grad and torch.is_grad_enabled():
            raise CalibrationError(
                "nothing to tune: the model's forward pass runs without gradients (torch.no_grad in forward_fn?)"
            )
        return loss

    def _layer_error(self, name: str, y: Tensor, target: Tensor) -> Tensor:
        channel_dim = self.session.alignments[name].channel_dim
        view = (-1,) + (1,) * (-channel_dim - 1)
        return ((y - target).square() / self.variances[name].view(view)).mean()

    def _prediction_loss(self, got: Any, expected: Any) -> Tensor:
        if isinstance(got, Tensor) and isinstance(expected, Tensor) and got.shape == expected.shape and got.dim() >= 2:
            t = self.temperature
            log_got, log_expected = F.log_softmax(got / t, 1), F.log_softmax(expected.detach() / t, 1)
            return F.kl_div(log_got, log_expected, reduction="none", log_target=True).sum(1).mean() * t * t
        terms = []
        for y, target in zip(tensors_in(got), tensors_in(expected)):
            if y.is_floating_point() and y.shape == target.shape and y.numel() and y.requires_grad:
                scale = target.detach().var(correction=0).clamp(min=1e-12)
                terms.append((y - target.detach()).square().mean() / scale)
        device = next(iter(self.session.devices.values()))
        return torch.stack(terms).mean() if terms else torch.zeros((), device=device)


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
