"""What was measured: records, their statistics, and the files they are kept in. No torch, no drawing."""

from aihwkit_nabn.results.log import RecordLog
from aihwkit_nabn.results.record import DIGITAL, UNCALIBRATED, UNVERIFIED, Record
from aihwkit_nabn.results.result import Cell, Results
from aihwkit_nabn.results.statistics import Estimate, estimate, paired_difference, recovered_share

__all__ = [
    "DIGITAL",
    "UNCALIBRATED",
    "UNVERIFIED",
    "Cell",
    "Estimate",
    "Record",
    "RecordLog",
    "Results",
    "estimate",
    "paired_difference",
    "recovered_share",
]
