"""What a network of the set offers, and the options it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.registry import Registry
from aihwkit_nabn.workloads import CalibrationRequest, Workload

SPLITS = ("test", "train")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where things are and which images are taken.

    Attributes:
        data_root: Folder of the data sets.
        checkpoints: Folder of the detectors and segmentors that were trained from `configs/real/`.
        out: Folder of the results, and of what is made along the way.
        seed: Chooses the images.
        test_images: How many images to measure on; None: all.
        split: ``"test"`` for images that nothing is chosen on; ``"train"`` for others, disjoint from the calibration
            images, to choose options of methods on.
    """

    data_root: Path
    checkpoints: Path
    out: Path
    seed: int = 0
    test_images: int | None = None
    split: str = "test"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise NabnError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")


@dataclass(frozen=True, kw_only=True)
class NetworkKind:
    """An entry of the set.

    Attributes:
        require: Called before anything is measured; raises a `NabnError` that says what is missing and where it comes
            from.
        load: Called when it is its turn; returns the trained network with its images.
        request: Which calibration images; the seed is that of the options.
    """

    require: Callable[[Options], None]
    load: Callable[[Options], Workload]
    request: CalibrationRequest


NETWORKS: Registry[NetworkKind] = Registry("network")


def need_data(options: Options, *names: str) -> None:
    """Check that files or folders below the data root are there.

    Raises:
        NabnError: one is not.
    """
    for name in names:
        if not (options.data_root / name).exists():
            raise NabnError(f"data {str(options.data_root / name)!r} do not exist; --data-root names their folder")
