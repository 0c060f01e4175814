"""How far the outputs of the chip's blocks are from the reference's: as a loss, or to choose by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from aihwkit_nabn.calibration.batches import SampleStore, tensors_in
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import CalibrationError
from aihwkit_nabn.nn.layers import named_analog_layers

# The reference's outputs on the whole set are kept if they take no more than this; otherwise it runs again each time.
_CACHE_BYTES = 2**30
# Least standard deviation of a block's output, in parts of its root mean square.
_ROUNDING = 1e-6
# The error of an output whose shape is another than the reference's, as behind a detector that finds something else:
# what a constant would have.
_MISSING = torch.tensor(1.0)

# A block holds at most this many analog layers; larger modules are whole stages, necks or heads.
_LARGEST_BLOCK = 8
# What these return is found in the image: other boxes, in another order, on another chip.
_FINDING = (RegionProposalNetwork, RoIHeads)

Signals = dict[str, list[Tensor]]
Measure = Callable[[Tensor, Tensor], Tensor]


def squared_error(y: Tensor, target: Tensor) -> Tensor:
    """Return ``mean((y - target)^2) / var(target)``; a constant would have 1."""
    spread = target.double().std(correction=0)
    return ((y - target) / spread.to(target)).square().mean()


def relative_error(y: Tensor, target: Tensor, measure: Measure = squared_error) -> Tensor | None:
    """Return how far an output is off, 1 where its shape is another; None for a target that varies by rounding only."""
    if target.numel() < 2:
        return None
    wide = target.double()  # squares of small numbers leave the range of single precision
    if bool(wide.std(correction=0) <= _ROUNDING * wide.square().mean().sqrt()):  # never where it is NaN: must be seen
        return None
    return measure(y, target) if y.shape == target.shape else _MISSING


def disagreement(y: Tensor, target: Tensor) -> Tensor:
    """Return ``1 - r + (s - 1)^2 + d^2``, at most 1.

    r is the correlation of the two, s the ratio of their standard deviations, d the difference of their means in
    standard deviations of the target. The squared error is ``2 s (1 - r) + (s - 1)^2 + d^2``: where r is low, it
    favours outputs of too little spread, which the rest of the network was not trained on (for the same reason,
    hydrology replaced it: Gupta et al. 2009, doi 10.1016/j.jhydrol.2009.08.003).
    """
    got, wanted = y.double(), target.double()
    bias = got.mean() - wanted.mean()
    got, wanted = got - got.mean(), wanted - wanted.mean()
    spread, spread_wanted = got.square().mean().sqrt(), wanted.square().mean().sqrt()
    product = (got / spread * (wanted / spread_wanted)).mean()
    correlation = product.where(spread != 0, 0.0)  # a constant tells nothing
    found = 1 - correlation + (spread / spread_wanted - 1).square() + (bias / spread_wanted).square()
    return found.clamp(min=0.0, max=1.0)


def matching_points(model: nn.Module) -> list[str]:
    """Return the names of the modules whose outputs stand for the network's inner signals.

    Blocks: modules of a class of their own (not a plain Sequential or list) with a few analog layers inside and not
    within another block: a residual block, a ConvModule, a transformer layer. Analog layers outside every block are
    points themselves, so that each analog layer acts on at least one point. Behind normalization, shortcut and
    activation a block's output tells what the rest of the network sees, which the layers' raw outputs do not.
    """
    return list(_points_in(model, "", set(named_analog_layers(model))))


def _points_in(module: nn.Module, name: str, layers: set[str]) -> Iterator[str]:
    inside = sum(layer.startswith(f"{name}.") for layer in layers) if name else len(layers)
    plain = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict, *_FINDING))
    if name in layers or (name and not plain and 0 < inside <= _LARGEST_BLOCK):
        yield name
    elif inside:
        for child_name, child in module.named_children():
            yield from _points_in(child, f"{name}.{child_name}" if name else child_name, layers)


class BlockObjective:
    """Mean over points of a measure of ``(y, y_ref)``, plus the weighted divergence of the predictions.

    The measure is `squared_error`, which has gradients, or `disagreement`. Outputs of the reference that do not vary,
    such as those of a dead block, are left out. The divergence is that of Kullback and Leibler; weight 0 leaves it out.

    The reference's outputs are gathered at the beginning, `batch_size` samples at a time. None: they are kept as they
    come, for an objective that is called with the same few groups again and again.
    """

    def __init__(
        self,
        session: CalibrationSession,
        store: SampleStore,
        prediction_weight: float,
        batch_size: int | None,
        measure: Measure = squared_error,
    ) -> None:
        self.session, self.store = session, store
        self.prediction_weight, self.measure = prediction_weight, measure
        names, reference = matching_points(session.model), session.digital_model()
        self.chip_points = {name: session.model.get_submodule(name) for name in names}
        self.reference_points = {name: reference.get_submodule(name) for name in names}
        self._keeps_groups = batch_size is None
        self.cache = None if batch_size is None else self._fill_cache(batch_size)
        self._groups: dict[tuple[int, ...], tuple[Signals, Any]] = {}
        self._n_bytes = 0

    def __call__(self, group: list[int]) -> Tensor:
        """Return the loss on one group of samples, with gradients where they are enabled."""
        batch = self.store.take(group)
        targets, expected = self._targets(group, batch)
        signals, got = self._run(self.chip_points, batch, group)
        errors = [
            error
            for name, ys in signals.items()
            for y, target in zip(ys, targets.get(name, []), strict=False)
            if (error := relative_error(y, target, self.measure)) is not None
        ]
        if not errors:
            raise CalibrationError(
                "no block of the chip has an output that varies and can be compared with the reference's; name a "
                "method that does not need one: method='low_rank', 'paired' or 'population'"
            )
        loss = torch.stack([error.to(errors[0]) for error in errors]).mean()
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

    def _targets(self, group: list[int], batch: Any) -> tuple[Signals, Any]:
        if self.cache is None:
            key = tuple(group)
            found = self._groups.get(key) or self._run(self.reference_points, batch, group)
            if self._keeps_groups and key not in self._groups:
                self._n_bytes += _bytes(found[0])
                if self._n_bytes <= _CACHE_BYTES:
                    self._groups[key] = found
            return found
        rows = torch.tensor(group)
        signals, prediction = self.cache
        chosen = {name: [y[rows.to(y.device)] for y in ys] for name, ys in signals.items()}
        return chosen, None if prediction is None else prediction[rows.to(prediction.device)]

    def _run(self, points: dict[str, nn.Module], batch: Any, group: list[int]) -> tuple[Signals, Any]:
        """Return the outputs of points, on the chip or on the reference, and the prediction."""
        signals: Signals = {}

        def record(name: str, output: Any) -> None:
            signals.setdefault(name, []).extend(y for y in tensors_in(output) if y.is_floating_point())

        number = None if self.store.by_sample else group[0]  # of the session's batches, for messages
        run = self.session.run_analog if points is self.chip_points else self.session.run_reference
        with self.session.recording(points, record):
            prediction = run(batch, number)
        return signals, prediction

    def _fill_cache(self, batch_size: int) -> tuple[Signals, Tensor | None] | None:
        if not self.store.by_sample:
            return None
        parts: list[tuple[Signals, Any]] = []
        for group in self.store.minibatches(list(range(self.store.n)), batch_size):
            batch = self.store.take(group)
            signals, prediction = self._run(self.reference_points, batch, group)
            by_sample = all(y.dim() and y.shape[0] == len(group) for ys in signals.values() for y in ys)
            if not by_sample or _bytes(signals) / len(group) * self.store.n > _CACHE_BYTES:
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


def _bytes(signals: Signals) -> int:
    return sum(y.nbytes for ys in signals.values() for y in ys)


def check_predictions(session: CalibrationSession) -> None:
    """Raise `CalibrationError` unless the reference's predictions on the first batch are one tensor of logits."""
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
