"""Scenarios x chips x methods -> results."""

from aihwkit_nabn.evaluation.result import EvaluationResult
from aihwkit_nabn.evaluation.runner import evaluate
from aihwkit_nabn.evaluation.scenario import MethodSpec, Scenario

__all__ = [
    "EvaluationResult",
    "MethodSpec",
    "Scenario",
    "evaluate",
]
