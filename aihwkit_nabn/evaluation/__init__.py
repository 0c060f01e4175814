"""Scenarios x chips x methods -> records -> statistics."""

from aihwkit_nabn.evaluation.record import Record
from aihwkit_nabn.evaluation.result import Cell, EvaluationResult
from aihwkit_nabn.evaluation.runner import evaluate
from aihwkit_nabn.evaluation.scenario import MethodSpec, Scenario
from aihwkit_nabn.evaluation.statistics import Estimate, estimate, paired_difference, recovered_share

__all__ = [
    "Cell",
    "Estimate",
    "EvaluationResult",
    "MethodSpec",
    "Record",
    "Scenario",
    "estimate",
    "evaluate",
    "paired_difference",
    "recovered_share",
]
