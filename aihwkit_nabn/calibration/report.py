"""What a calibration found and did."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.nn.calibration_state import CalibrationSnapshot, freeze_calibration, unfold_all

# A channel's variance, in parts of the layer's, below which it is not told from none.
_LEAST_VARIANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class LayerShift:
    """How far one layer's distributions are from where they should be, before and after.

    Args:
        name: The layer.
        kind: ``"BatchNorm"`` (its input against its statistics) or ``"analog layer"`` (its output against the
            reference's).
        n_values: Values per channel that were seen.
        mean_before: Root mean square over channels of the mean's shift, in target standard deviations.
        mean_after: The same with the calibration in force.
        spread_before: Root mean square over channels of ``ln(std / target std)``; 0 where the spreads agree.
        spread_after: The same with the calibration in force.
    """

    name: str
    kind: str
    n_values: int
    mean_before: float
    mean_after: float
    spread_before: float
    spread_after: float

    @classmethod
    def between(
        cls, name: str, kind: str, before: Moments, before_target: Moments, after: Moments, after_target: Moments
    ) -> LayerShift:
        """Compare moments with their targets, without and with the calibration."""
        mean_before, spread_before = distance(before, before_target)
        mean_after, spread_after = distance(after, after_target)
        return cls(
            name=name,
            kind=kind,
            n_values=before.count,
            mean_before=mean_before,
            mean_after=mean_after,
            spread_before=spread_before,
            spread_after=spread_after,
        )


def distance(got: Moments, target: Moments) -> tuple[float, float]:
    """Return the shift of the mean (in target standard deviations) and of ``ln std``, root mean square over channels.

    Standard deviations below a tenth of the layer's count as a tenth: of channels that hardly vary, neither is known
    better, and divided by their own they would drown all others. Channels whose target does not vary are left out.
    """
    live = (target.var > 0) & (got.var > 0)
    if not bool(live.any()):
        return 0.0, 0.0
    least = _LEAST_VARIANCE * target.var[live].mean()
    target_var, got_var = target.var[live].clamp(min=least), got.var[live].clamp(min=least)
    shift = (got.mean - target.mean)[live] / target_var.sqrt()
    spread = 0.5 * torch.log(got_var / target_var)
    return float(shift.square().mean().sqrt()), float(spread.square().mean().sqrt())


@dataclass(frozen=True, kw_only=True)
class CorrectionCost:
    """What the low-rank corrections of a chip's layers cost.

    Args:
        share: Share of the network's multiplications that they take, 0 to 1.
        n_numbers: Numbers that the chip stores for them.
        ranks: Rank of each layer that is corrected, by name; a gain of a group's mean counts as rank 1.
    """

    share: float
    n_numbers: int
    ranks: dict[str, int]

    def __str__(self) -> str:
        return (
            f"corrections cost {100 * self.share:.1f} percent of the network's multiplications and store "
            f"{self.n_numbers:,} numbers"
        )


@dataclass(kw_only=True)
class CalibrationReport:
    """Returned by `calibrate`.

    Args:
        method: Name of the method.
        n_samples: Samples it saw.
        n_batches: Batches it saw.
        seconds: Wall-clock time it took.
        layers: Shift of each layer before and after.
        n_passes: Forward passes of the chip over all of the batches, those begun again among them, those of
            step-by-step tuning not: one where no layer is called several times and all batches fit in memory, halted
            side by side.
        notes: What the method has to say, such as that tuning stayed at its start.
        verified: What is known of the chip without noise computing what the digital model does.
        taken: The method whose calibration the chip has now: what ``auto`` took, ``"none"`` for nothing; else `method`.
        corrections: What ``low_rank`` corrections cost; None where there are none.
        loss_before: What ``distill`` tunes, on the samples held out, where it starts: the squared error of the blocks'
            outputs in parts of their variance, plus the weighted divergence of the predictions if there is one. None
            for other methods, and where no samples are held out.
        loss_after: The same where it ends.
    """

    method: str
    n_samples: int
    n_batches: int
    seconds: float
    layers: list[LayerShift] = field(default_factory=list)
    n_passes: int = 1
    notes: list[str] = field(default_factory=list)
    verified: str = ""
    taken: str = ""
    corrections: CorrectionCost | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    _model: nn.Module = field(repr=False)
    _before: CalibrationSnapshot = field(repr=False)

    def undo(self) -> None:
        """Bring the model's calibration back to what it was before, bit for bit, also where it was folded meanwhile."""
        unfold_all(self._model)
        self._before.restore()

    def freeze(self) -> None:
        """Stop following the inputs (method ``online``); the statistics stay as they are."""
        freeze_calibration(self._model)

    def __str__(self) -> str:
        passes = f", {self.n_passes} passes over them" if self.n_passes > 1 else ""
        lines = [f"{self.method}: {self.n_samples} samples in {self.n_batches} batches{passes}, {self.seconds:.2f} s"]
        lines += self.notes
        if self.loss_before is not None and self.loss_after is not None:
            lines.append(f"loss on the samples held out: {self.loss_before:.3g} -> {self.loss_after:.3g}")
        ranks = {} if self.corrections is None else self.corrections.ranks
        if self.layers:
            width = max(len(layer.name) for layer in self.layers)
            lines.append(f"{'layer':<{width}}  mean shift [std]   ln(std ratio)" + "   rank" * bool(ranks))
            for layer in self.layers:
                lines.append(
                    f"{layer.name:<{width}}  {layer.mean_before:6.3f} -> {layer.mean_after:6.3f}  "
                    f"{layer.spread_before:6.3f} -> {layer.spread_after:6.3f}"
                    + (f"{ranks.get(layer.name, 0):>7}" if ranks else "")
                )
        lines += [self.verified] if self.verified else []
        return "\n".join(lines)
