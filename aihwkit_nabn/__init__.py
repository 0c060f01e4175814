"""Noise-aware batch normalization and label-free calibration for networks on aihwkit's analog tiles."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aihwkit_nabn._version import __version__

if TYPE_CHECKING:
    from aihwkit_nabn.calibration import (
        CalibrationMethod,
        CalibrationReport,
        CalibrationSession,
        calibrate,
        calibrate_input_ranges,
        register_calibration_method,
    )
    from aihwkit_nabn.chip import (
        chip_info,
        drift_chip,
        load_chip,
        program_chip,
        save_chip,
        set_read_noise_seed,
    )
    from aihwkit_nabn.errors import NabnError
    from aihwkit_nabn.evaluation import EvaluationResult, MethodSpec, Scenario, evaluate
    from aihwkit_nabn.nn import (
        NoiseAwareBatchNorm1d,
        NoiseAwareBatchNorm2d,
        NoiseAwareBatchNorm3d,
        calibration_disabled,
        clear_calibration,
        convert_to_noise_aware,
        fold_calibration,
        freeze_calibration,
        register,
        unregister,
    )
    from aihwkit_nabn.noise import WeightNoiseModel, register_noise_model
    from aihwkit_nabn.simulator import presets
    from aihwkit_nabn.times import parse_time
    from aihwkit_nabn.training import TrainedModel, TrainingNoise, matched_noise, train_hardware_aware
    from aihwkit_nabn.workloads import Workload, load_workload

# Loaded when first used: torch and aihwkit take seconds, which `nabn --help` need not wait for.
_HOME = {
    name: home
    for home, names in {
        "calibration": "CalibrationMethod CalibrationReport CalibrationSession calibrate calibrate_input_ranges "
        "register_calibration_method",
        "chip": "chip_info drift_chip load_chip program_chip save_chip set_read_noise_seed",
        "errors": "NabnError",
        "evaluation": "EvaluationResult MethodSpec Scenario evaluate",
        "nn": "NoiseAwareBatchNorm1d NoiseAwareBatchNorm2d NoiseAwareBatchNorm3d calibration_disabled "
        "clear_calibration convert_to_noise_aware fold_calibration freeze_calibration register unregister",
        "noise": "WeightNoiseModel register_noise_model",
        "simulator": "presets",
        "times": "parse_time",
        "training": "TrainedModel TrainingNoise matched_noise train_hardware_aware",
        "workloads": "Workload load_workload",
    }.items()
    for name in names.split()
}

__all__ = [
    "CalibrationMethod",
    "CalibrationReport",
    "CalibrationSession",
    "EvaluationResult",
    "MethodSpec",
    "NabnError",
    "NoiseAwareBatchNorm1d",
    "NoiseAwareBatchNorm2d",
    "NoiseAwareBatchNorm3d",
    "Scenario",
    "TrainedModel",
    "TrainingNoise",
    "WeightNoiseModel",
    "Workload",
    "__version__",
    "calibrate",
    "calibrate_input_ranges",
    "calibration_disabled",
    "chip_info",
    "clear_calibration",
    "convert_to_noise_aware",
    "drift_chip",
    "evaluate",
    "fold_calibration",
    "freeze_calibration",
    "load_chip",
    "load_workload",
    "matched_noise",
    "parse_time",
    "presets",
    "program_chip",
    "register",
    "register_calibration_method",
    "register_noise_model",
    "save_chip",
    "set_read_noise_seed",
    "train_hardware_aware",
    "unregister",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
