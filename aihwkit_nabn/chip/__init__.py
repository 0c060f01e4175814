"""One programmed chip: programming, drift, seeds, and the calibration it carries."""

from aihwkit_nabn.chip.calibration_state import (
    CalibrationSnapshot,
    FoldHandle,
    calibration_disabled,
    clear_calibration,
    fold_calibration,
    freeze_calibration,
)
from aihwkit_nabn.chip.calibration_tensors import calibration_tensors, load_calibration_tensors
from aihwkit_nabn.chip.chip_file import chip_info, load_chip, save_chip
from aihwkit_nabn.chip.programming import ChipState, chip_state, drift_chip, program_chip
from aihwkit_nabn.chip.read_noise import set_read_noise_seed
from aihwkit_nabn.chip.times import format_time, parse_time

__all__ = [
    "CalibrationSnapshot",
    "ChipState",
    "FoldHandle",
    "calibration_disabled",
    "calibration_tensors",
    "chip_info",
    "chip_state",
    "clear_calibration",
    "drift_chip",
    "fold_calibration",
    "format_time",
    "freeze_calibration",
    "load_calibration_tensors",
    "load_chip",
    "parse_time",
    "program_chip",
    "save_chip",
    "set_read_noise_seed",
]
