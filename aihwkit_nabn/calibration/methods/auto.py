"""Try several methods, and take the one that agrees best with the reference on images that were held back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aihwkit_nabn.calibration.batches import SampleStore
from aihwkit_nabn.calibration.matching import BlockObjective, disagreement
from aihwkit_nabn.calibration.method import (
    CALIBRATION_METHODS,
    CalibrationMethod,
    build_method,
    register_calibration_method,
    takes_option,
)
from aihwkit_nabn.calibration.methods.low_rank import check_budget
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.chip.moment import ChipMoment
from aihwkit_nabn.errors import CalibrationError, NabnError, NotApplicableError, UnknownNameError, check_number
from aihwkit_nabn.nn.calibration_state import clear_calibration
from aihwkit_nabn.results import UNCALIBRATED

_BATCH = 16
# Fewest images that a method may learn from without a word.
_FEW = 4


@dataclass(frozen=True)
class _Tried:
    """How a candidate did: the disagreement on the images held back, or why there is none."""

    name: str
    loss: float = math.inf
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.loss:.3g}" if not self.reason else f"{self.name} not possible ({self.reason})"


@register_calibration_method("auto")
class Auto(CalibrationMethod):
    """The candidate whose chip agrees best with the reference on calibration images that it has not seen.

    Each candidate calibrates on part of the images; then the chip's block outputs are compared with the reference's on
    the rest, without labels: one minus their correlation, plus the squared differences of their standard deviations and
    means in parts of the reference's, at most 1, mean over the blocks. The best one calibrates once more, on all
    images. Doing nothing is a candidate, so a calibration that makes this chip worse is not taken. The report says
    which was taken, and how far off each was.

    A candidate that the network has no place for (``population`` without BatchNorm) is left out. Where the calibration
    set cannot be divided, being one batch of records, candidates are compared on what they have seen.

    Args:
        candidates: Names of methods, ``"none"`` for no calibration; a sequence, or a text with ``+`` between them.
        budget: Passed on to the candidates that take one (``low_rank``, ``distill``).
        held_out: Share of the samples that decides, in (0, 0.5].

    Source: ours.
    """

    summary = "tries several methods, or none, and takes what agrees best with the reference on images held back"
    needs_reference = True

    def __init__(
        self,
        candidates: str | Sequence[str] = (UNCALIBRATED, "population", "low_rank"),
        budget: float = 0.05,
        held_out: float = 0.25,
    ) -> None:
        meaning = "the share of the samples that decides"
        self.held_out = check_number("held_out", held_out, exclusive_minimum=0.0, maximum=0.5, meaning=meaning)
        self.budget = check_budget(budget)
        self.candidates = [(name, self._build(name)) for name in _names(candidates)]

    def _build(self, name: str) -> CalibrationMethod | None:
        if name == UNCALIBRATED:
            return None
        method = CALIBRATION_METHODS.get(name)
        if not _can_be_tried(method):
            raise NabnError(f"candidates must be methods that calibrate on images once, got {name!r}")
        return build_method(name, **({"budget": self.budget} if takes_option(method, "budget") else {}))

    def calibrate(self, session: CalibrationSession) -> None:
        """Try all, and take the best."""
        store = session.samples()
        learn, held = store.split(self.held_out)
        is_apart = bool(held)
        learn, held = (learn, held) if is_apart else (list(range(store.n)),) * 2
        moment = ChipMoment.take(session.model)
        judge = BlockObjective(session, store, 0.0, None, disagreement)
        groups = store.minibatches(held, _BATCH)
        tried = []
        for name, method in self.candidates:
            try:
                part = _part(session, store, learn)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the one that is taken says it
                    _apply(method, session, part, moment)
                session.n_passes += part.n_passes
                moment.restore()
                tried.append(_Tried(name, judge.mean(groups)))
            except NotApplicableError as error:
                tried.append(_Tried(name, reason=str(error).partition(";")[0]))
        possible = [(result.loss, number) for number, result in enumerate(tried) if math.isfinite(result.loss)]
        if not possible:
            raise CalibrationError(f"none of the candidates can calibrate this chip: {', '.join(map(str, tried))}")
        name, method = self.candidates[min(possible)[1]]
        _apply(method, session, session, moment)
        n_held = store.n_samples(held)
        apart = f"{n_held} image{'s' * (n_held > 1)} held back"
        what = apart if is_apart else "the calibration images, which cannot be divided"
        if store.n_samples(learn) < _FEW:
            session.notes.append(f"with fewer than {_FEW} images to learn from, the choice cannot be told from luck")
        scale = "0 (none) to 1 (no better than a constant)"
        losses = ", ".join(map(str, tried))
        session.notes += [f"took {name}", f"disagreement with the reference, {scale}, on {what}: {losses}"]
        session.taken = name


def _can_be_tried(method: type[CalibrationMethod]) -> bool:
    return method.needs_batches and not issubclass(method, Auto)


def _names(candidates: object) -> list[str]:
    names = candidates.split("+") if isinstance(candidates, str) else candidates
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise NabnError(f"candidates must be names of methods, or a text with '+' between them, got {candidates!r}")
    names = [name.strip() for name in names]
    known = [name for name in CALIBRATION_METHODS if _can_be_tried(CALIBRATION_METHODS.get(name))]
    for name in names:
        if name not in (UNCALIBRATED, *CALIBRATION_METHODS):  # others that are registered get an error that says more
            raise UnknownNameError("candidate", name, [UNCALIBRATED, *known])
    return list(dict.fromkeys(names))


def _apply(method: CalibrationMethod | None, session: CalibrationSession, part: CalibrationSession, at: Any) -> None:
    """Calibrate the chip, as it was at a moment, with a method on part of a session's samples."""
    clear_calibration(session.model)
    at.restore()
    if method is not None:
        method.calibrate(part)


def _part(session: CalibrationSession, store: SampleStore, index: list[int]) -> CalibrationSession:
    """Return a session with some of the samples, in batches about as large."""
    groups = store.minibatches(index, max(session.batch_sizes))
    return session.part([store.take(group) for group in groups], None if store.by_sample else index)
