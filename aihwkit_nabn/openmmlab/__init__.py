"""OpenMMLab: analog chips under the upstream test and train tools of mmdetection and mmsegmentation.

Importing this registers `AnalogHook`, `AnalogTestLoop` and `HardwareAwareTrainingHook` in mmengine's registries, puts
mmcv's own layers on tiles, and lets torch's safe loading read mmengine's checkpoints; in a config:
``custom_imports = dict(imports=['aihwkit_nabn.openmmlab'])``.
"""

from __future__ import annotations

import importlib.util

from aihwkit_nabn.errors import MissingDependencyError, missing_extra

try:
    import mmengine  # noqa: F401
except ImportError as error:
    raise missing_extra("mmengine", "openmmlab") from error

from aihwkit_nabn.openmmlab.batches import CalibrationImages, calibration_forward
from aihwkit_nabn.openmmlab.hook import AnalogHook
from aihwkit_nabn.openmmlab.jpeg import CompressJPEG
from aihwkit_nabn.openmmlab.loop import AnalogTestLoop
from aihwkit_nabn.openmmlab.operators.finder import install as find_operators
from aihwkit_nabn.openmmlab.patches import allow_mmengine_checkpoints, find_mmseg_configs
from aihwkit_nabn.openmmlab.training import HardwareAwareTrainingHook

find_operators()  # where no .pth file did it
if importlib.util.find_spec("mmcv") is not None:
    try:
        import aihwkit_nabn.openmmlab.layers  # noqa: F401  # puts mmcv's deformable convolutions on tiles
    except ImportError as error:  # compiled operators that cannot be loaded
        raise MissingDependencyError(str(error)) from error

allow_mmengine_checkpoints()
find_mmseg_configs()

__all__ = [
    "AnalogHook",
    "AnalogTestLoop",
    "CalibrationImages",
    "CompressJPEG",
    "HardwareAwareTrainingHook",
    "allow_mmengine_checkpoints",
    "calibration_forward",
]
