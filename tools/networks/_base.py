"""What a network of the set gives, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.registry import Registry

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
class Network:
    """A trained network with its images.

    Attributes:
        model: The digital model, in eval mode.
        eval_fn: As `aihwkit_nabn.evaluate` takes it; the first metric is the one in the table.
        calibration_batches: The sets ``"plain"`` and ``"augmented"``, of the same images.
        forward_fn: As `aihwkit_nabn.evaluate` takes it.
        reference_forward_fn: The same.
        setup: What decides, beside the model and the options, which numbers come out.
        around: Entered while it is measured.
    """

    model: nn.Module
    eval_fn: Callable[[nn.Module], Mapping[str, float]]
    calibration_batches: Mapping[str, Iterable[Any]]
    forward_fn: Callable[[nn.Module, Any], Any] | None = None
    reference_forward_fn: Callable[[nn.Module, Any], Any] | None = None
    setup: Mapping[str, Any] = field(default_factory=dict)
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True, kw_only=True)
class NetworkKind:
    """An entry of the set.

    Attributes:
        require: Called before anything is measured; raises a `NabnError` that says what is missing and where it comes
            from.
        load: Called when it is its turn.
    """

    require: Callable[[Options], None]
    load: Callable[[Options], Network]


NETWORKS: Registry[NetworkKind] = Registry("network")


def need_data(options: Options, *names: str) -> None:
    """Check that files or folders are there.

    Args:
        options: Says where the data are.
        names: Paths below the data root.

    Raises:
        NabnError: one is not.
    """
    for name in names:
        if not (options.data_root / name).exists():
            raise NabnError(f"data {str(options.data_root / name)!r} do not exist; --data-root names their folder")
