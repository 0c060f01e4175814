"""How far the chip's block outputs are from the reference's, as a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aihwkit_nabn.calibration.batches import SampleStore, tensors_in
from aihwkit_nabn.calibration.points import matching_points
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import CalibrationError

# The reference's outputs on the whole set are kept if they take no more than this; otherwise it runs again each time.
_CACHE_BYTES = 2**30
# Least standard deviation of a block's output, in parts of its root mean square.
_ROUNDING = 1e-6
# The error of an output whose shape is another than the reference's, as behind a detector that finds something else:
# what a constant would have.
_MISSING = torch.tensor(1.0)

Signals = dict[str, list[Tensor]]


class BlockObjective:
    """Mean over points of ``mean((y - y_ref)^2) / var(y_ref)``, plus the weighted divergence of the predictions.

    Outputs of the reference that do not vary, such as those of a dead block, are left out.

    Args:
        session: Chip, reference and how they are run.
        store: The samples.
        prediction_weight: Weight of the Kullback-Leibler divergence; 0 leaves it out.
        batch_size: Samples per reference pass while filling the cache; None where it is called with the same few
            groups again and again, whose signals are kept as they come.
        cap: Most that one point may count; 1 is what a constant output would have. None: no limit.
    """

    def __init__(
        self,
        session: CalibrationSession,
        store: SampleStore,
        prediction_weight: float,
        batch_size: int | None,
        cap: float | None = None,
    ) -> None:
        self.cap = cap
        self.session = session
        self.store = store
        self.prediction_weight = prediction_weight
        if session.reference is None:
            raise CalibrationError("this method compares with the digital model; pass reference=model")
        names = matching_points(session.model)
        self.chip_points = {name: session.model.get_submodule(name) for name in names}
        self.reference_points = {name: session.reference.get_submodule(name) for name in names}
        self.cache = None if batch_size is None else self._fill_cache(batch_size)
        self._keeps_groups = batch_size is None
        self._groups: dict[tuple[int, ...], tuple[Signals, Any]] = {}
        self._n_bytes = 0

    def __call__(self, group: list[int]) -> Tensor:
        """Return the loss on one group of samples, with gradients where they are enabled."""
        batch = self.store.take(group)
        targets, expected = self._targets(group, batch)
        signals, got = _run(self.session, self.chip_points, batch, self._number(group), on_chip=True)
        errors = [
            error
            for name, ys in signals.items()
            for y, target in zip(ys, targets.get(name, []), strict=False)
            if (error := relative_error(y, target)) is not None
        ]
        if not errors:
            raise CalibrationError(
                "no block of the chip has an output that varies and can be compared with the reference's; name a "
                "method that does not need one: method='low_rank', 'paired' or 'population'"
            )
        losses = torch.stack([error.to(errors[0]) for error in errors])
        loss = losses.mean() if self.cap is None else losses.clamp(max=self.cap).mean()
        if self.prediction_weight:
            loss = loss + self.prediction_weight * _divergence(got, expected)
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise CalibrationError("the model's forward pass runs without gradients (torch.no_grad in forward_fn?)")
        return loss

    @torch.no_grad()
    def mean(self, groups: list[list[int]]) -> float:
        """Return the mean loss per sample over several groups; infinity over none."""
        total = sum(len(group) for group in groups)
        return sum(float(self(group)) * len(group) for group in groups) / total if total else float("inf")

    def _number(self, group: list[int]) -> int | None:
        """Return which of the session's batches a group is, for messages."""
        return None if self.store.by_sample else group[0]

    def _targets(self, group: list[int], batch: Any) -> tuple[Signals, Any]:
        if self.cache is None:
            key = tuple(group)
            if key not in self._groups:
                with torch.no_grad():
                    found = _run(self.session, self.reference_points, batch, self._number(group), on_chip=False)
                self._n_bytes += _bytes([y for ys in found[0].values() for y in ys])
                if not self._keeps_groups or self._n_bytes > _CACHE_BYTES:
                    return found
                self._groups[key] = found
            return self._groups[key]
        rows = torch.tensor(group)
        signals, prediction = self.cache
        chosen = {name: [y[rows.to(y.device)] for y in ys] for name, ys in signals.items()}
        return chosen, None if prediction is None else prediction[rows.to(prediction.device)]

    @torch.no_grad()
    def _fill_cache(self, batch_size: int) -> tuple[Signals, Tensor | None] | None:
        parts: list[tuple[Signals, Any]] = []
        for group in self.store.minibatches(list(range(self.store.n)), batch_size):
            batch = self.store.take(group)
            signals, prediction = _run(self.session, self.reference_points, batch, self._number(group), on_chip=False)
            tensors = [y for ys in signals.values() for y in ys]
            by_sample = self.store.by_sample and all(y.dim() and y.shape[0] == len(group) for y in tensors)
            n_bytes = _bytes(tensors) / len(group) * self.store.n
            if not by_sample or n_bytes > _CACHE_BYTES:
                return None
            parts.append((signals, prediction if isinstance(prediction, Tensor) else None))
        first, prediction = parts[0]
        joined: Signals = {}
        for name, ys in first.items():
            if any(len(other[name]) != len(ys) for other, _ in parts):
                return None
            joined[name] = [torch.cat([other[name][i] for other, _ in parts]) for i in range(len(ys))]
        predictions = None if prediction is None else torch.cat([p for _, p in parts])
        return joined, predictions


def _bytes(tensors: list[Tensor]) -> int:
    return sum(y.numel() * y.element_size() for y in tensors)


def _run(
    session: CalibrationSession, points: dict[str, nn.Module], batch: Any, number: int | None, *, on_chip: bool
) -> tuple[Signals, Any]:
    signals: Signals = {}

    def record(name: str, output: Any) -> None:
        signals.setdefault(name, []).extend(y for y in tensors_in(output) if y.is_floating_point())

    with session.recording(points, record):
        result = session.run_analog(batch, number) if on_chip else session.run_reference(batch, number)
    return signals, result


def relative_error(y: Tensor, target: Tensor) -> Tensor | None:
    """Return the mean squared difference in parts of the target's variance, None if there is none beyond rounding."""
    if target.numel() < 2:
        return None
    wide = target.double()  # squares of small numbers leave the range of single precision
    spread = wide.std(correction=0)
    if bool(spread <= _ROUNDING * wide.square().mean().sqrt()):  # never where it is NaN: that must be seen
        return None
    return ((y - target) / spread.to(target)).square().mean() if y.shape == target.shape else _MISSING


def check_predictions(session: CalibrationSession) -> None:
    """Raise unless the reference's predictions on the first batch can be compared.

    Raises:
        CalibrationError: they are not one tensor of logits.
    """
    prediction = session.run_reference(session.all_batches()[0], 0)
    with torch.no_grad():
        _divergence(prediction, prediction)


def _divergence(got: Any, expected: Any) -> Tensor:
    if not (
        isinstance(got, Tensor) and isinstance(expected, Tensor) and got.dim() >= 2 and got.shape == expected.shape
    ):
        raise CalibrationError(
            "prediction_weight needs a model that returns one tensor of logits [batch, classes, ...]"
        )
    log_got, log_expected = F.log_softmax(got, 1), F.log_softmax(expected, 1)
    return F.kl_div(log_got, log_expected, reduction="none", log_target=True).sum(1).mean()
