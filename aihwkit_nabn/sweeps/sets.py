"""Calibration sets of a sweep: which images, how many, from where, and whether compressed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation.methods import AUGMENTED
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.sweeps.models import Bench, Images


@dataclass(frozen=True, kw_only=True)
class CalibrationChoice:
    """Which calibration images.

    Attributes:
        samples: How many.
        calibration: ``representative``, ``one_class`` or ``other_data``.
        images: ``"plain"`` or ``"augmented"``.
        jpeg: Quality, or None.
        clean_reference: Whether a batch is a pair, the clean images first.
        chip_seed: Chooses the class of ``one_class``.
        seed: Chooses the images.
        batch: Images per batch.
    """

    samples: int
    calibration: str
    images: str
    jpeg: int | None
    clean_reference: bool
    chip_seed: int
    seed: int
    batch: int


class CalibrationSet:
    """Batches that are made when they are first asked for.

    Args:
        bench: Where the images are.
        choice: Which.
    """

    def __init__(self, bench: Bench, choice: CalibrationChoice) -> None:
        self.bench, self.choice = bench, choice

    @cached_property
    def _batches(self) -> list[Any]:
        choice = self.choice
        source, indices = chosen_images(self.bench, choice.calibration, choice.samples, choice.chip_seed, choice.seed)
        seen = _read(source, indices, choice, choice.jpeg)
        chip = seen.split(choice.batch)
        if not choice.clean_reference:
            return list(chip)
        clean = _read(source, indices, choice, None).split(choice.batch)
        return list(zip(clean, chip, strict=True))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def chosen_images(bench: Bench, calibration: str, samples: int, chip_seed: int, seed: int) -> tuple[Images, list[int]]:
    """Return where calibration images come from, and their numbers.

    A smaller set is the beginning of a larger one. With ``one_class``, chip after chip has another class.

    Raises:
        NabnError: there are not so many images.
    """
    source = bench.other if calibration == "other_data" else bench.train
    candidates = torch.arange(len(source.labels))
    if calibration == "one_class":
        classes = source.labels.unique()
        candidates = candidates[source.labels == classes[chip_seed % len(classes)]]
    if samples > len(candidates):
        raise NabnError(
            f"samples must be at most {len(candidates)}, the number of images for calibration: {calibration} "
            f"(chip {chip_seed}), got {samples}"
        )
    order = torch.Generator().manual_seed(derive_seed(seed, "calibration images", calibration))
    return source, candidates[torch.randperm(len(candidates), generator=order)][:samples].tolist()


def _read(source: Images, indices: list[int], choice: CalibrationChoice, jpeg: int | None) -> Tensor:
    if choice.images == AUGMENTED:
        return source.augmented(indices, jpeg, choice.seed)
    return source.plain(indices, jpeg)
