"""Sweeps: models x noise x strength x time x chips x methods x calibration images x image quality, and streams."""

from aihwkit_nabn.studies.grid.jobs import ChipJob, Measurement, all_measurements, chip_jobs
from aihwkit_nabn.studies.grid.results import results_of
from aihwkit_nabn.studies.grid.spec import SweepSpec, parse_spec, read_yaml
from aihwkit_nabn.studies.grid.study import GridStudy

__all__ = [
    "ChipJob",
    "GridStudy",
    "Measurement",
    "SweepSpec",
    "all_measurements",
    "chip_jobs",
    "parse_spec",
    "read_yaml",
    "results_of",
]
