"""Sweeps: models x noise x strength x time x chips x methods x calibration images x input shift, and streams."""

from aihwkit_nabn.sweeps.executors import EXECUTORS
from aihwkit_nabn.sweeps.jobs import Job, Task, all_jobs, tasks_of
from aihwkit_nabn.sweeps.results import results_of
from aihwkit_nabn.sweeps.run import Progress, run_sweep
from aihwkit_nabn.sweeps.spec import SweepSpec, parse_spec, read_spec, read_yaml

__all__ = [
    "EXECUTORS",
    "Job",
    "Progress",
    "SweepSpec",
    "Task",
    "all_jobs",
    "parse_spec",
    "read_spec",
    "read_yaml",
    "results_of",
    "run_sweep",
    "tasks_of",
]
