"""Noise-aware batch normalization and label-free calibration for networks on aihwkit's analog tiles."""

from aihwkit_nabn._version import __version__
from aihwkit_nabn.calibration import (
    CalibrationMethod,
    CalibrationReport,
    CalibrationSession,
    calibrate,
    register_calibration_method,
)
from aihwkit_nabn.chip import (
    calibration_disabled,
    clear_calibration,
    drift_chip,
    fold_calibration,
    freeze_calibration,
    parse_time,
    program_chip,
    set_read_noise_seed,
)
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn import (
    NoiseAwareBatchNorm1d,
    NoiseAwareBatchNorm2d,
    NoiseAwareBatchNorm3d,
    convert_to_noise_aware,
    register,
    unregister,
)
from aihwkit_nabn.noise import WeightNoiseModel, register_noise_model
from aihwkit_nabn.simulator import presets

__all__ = [
    "CalibrationMethod",
    "CalibrationReport",
    "CalibrationSession",
    "NabnError",
    "NoiseAwareBatchNorm1d",
    "NoiseAwareBatchNorm2d",
    "NoiseAwareBatchNorm3d",
    "WeightNoiseModel",
    "__version__",
    "calibrate",
    "calibration_disabled",
    "clear_calibration",
    "convert_to_noise_aware",
    "drift_chip",
    "fold_calibration",
    "freeze_calibration",
    "parse_time",
    "presets",
    "program_chip",
    "register",
    "register_calibration_method",
    "register_noise_model",
    "set_read_noise_seed",
    "unregister",
]
