"""Studies: jobs that make records, with one log, one way to go on, and one pool of processes."""

from aihwkit_nabn.studies import _ray as _ray  # enters itself
from aihwkit_nabn.studies._base import EXECUTORS, Note, Study
from aihwkit_nabn.studies.run import Progress, run_study

__all__ = ["EXECUTORS", "Note", "Progress", "Study", "run_study"]
