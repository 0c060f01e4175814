"""Scenarios x chips x methods -> results."""

from aihwkit_nabn.evaluation.methods import MethodSpec
from aihwkit_nabn.evaluation.runner import EvaluationResult, evaluate
from aihwkit_nabn.evaluation.scenario import Scenario

__all__ = [
    "EvaluationResult",
    "MethodSpec",
    "Scenario",
    "evaluate",
]
