"""Calibrating a chip without labels."""

from aihwkit_nabn.calibration import methods as _methods  # noqa: F401  (registers the methods)
from aihwkit_nabn.calibration.input_ranges import calibrate_input_ranges
from aihwkit_nabn.calibration.method import (
    CALIBRATION_METHODS,
    CalibrationMethod,
    build_method,
    register_calibration_method,
)
from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.report import CalibrationReport, CorrectionCost, LayerShift
from aihwkit_nabn.calibration.routine import calibrate
from aihwkit_nabn.calibration.session import CalibrationSession

__all__ = [
    "CALIBRATION_METHODS",
    "CalibrationMethod",
    "CalibrationReport",
    "CalibrationSession",
    "CorrectionCost",
    "LayerShift",
    "Moments",
    "build_method",
    "calibrate",
    "calibrate_input_ranges",
    "register_calibration_method",
]
