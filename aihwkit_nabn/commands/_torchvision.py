"""What the commands do with a target that is a torchvision classifier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aihwkit_nabn.errors import NabnError

if TYPE_CHECKING:
    from aihwkit_nabn.targets import TargetOptions


def classifier_options(
    weights: str,
    *,
    data: Path | None,
    batch_size: int | None,
    workers: int | None,
    device: str | None,
    cfg_options: object,
    **options: Any,
) -> TargetOptions:
    """Return what the user said, with defaults where nothing was said.

    Args:
        weights: Checkpoint file, or ``"random"``.
        data: Folder of the images.
        batch_size: Images per batch; None: 32.
        workers: Processes that read images; None: 2.
        device: None: the CPU.
        cfg_options: What only configs have; must be empty.
        options: The rest, as `TargetOptions` has it.

    Raises:
        NabnError: the folder is missing, or an option is for configs only.
    """
    from aihwkit_nabn.targets import TargetOptions

    if cfg_options:
        raise NabnError("--cfg-options is for configs of mmdetection and mmsegmentation")
    if data is None:
        raise NabnError("--data FOLDER is missing: a folder with train/CLASS/images and val/CLASS/images")
    return TargetOptions(
        weights=weights,
        data=data,
        batch_size=batch_size or 32,
        workers=2 if workers is None else workers,
        device=device or "cpu",
        **options,
    )
