"""One programmed chip: programming, drift, seeds, noise that moves, chip files."""

from aihwkit_nabn.chip.chip_file import chip_info, load_chip, save_chip
from aihwkit_nabn.chip.programming import ChipState, chip_state, drift_chip, program_chip
from aihwkit_nabn.chip.read_noise import set_read_noise_seed
from aihwkit_nabn.times import format_time, parse_time

__all__ = [
    "ChipState",
    "chip_info",
    "chip_state",
    "drift_chip",
    "format_time",
    "load_chip",
    "parse_time",
    "program_chip",
    "save_chip",
    "set_read_noise_seed",
]
