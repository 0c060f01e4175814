from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.results import Record


@pytest.fixture
def make_result() -> Callable[..., EvaluationResult]:
    """Accuracy 90 digital; population always hurts by 3, the others bring back three quarters of the loss."""

    def make(
        scenarios: Sequence[tuple[str, float | None]] = (("quiet", 0.0), ("noisy", 0.06)),
        methods: Sequence[str] = ("none", "population", "paired"),
        *,
        chips: int = 4,
        metrics: Sequence[str] = ("accuracy",),
        settings: dict[str, Any] | None = None,
    ) -> EvaluationResult:
        random = np.random.default_rng(0)
        records = []
        for index, (scenario, strength) in enumerate(scenarios):
            for chip in range(chips):
                loss = 10.0 * index + random.uniform(0.5, 1.5)
                for method in methods:
                    gain = {"none": 0.0, "population": -3.0}.get(method, 0.75 * loss)
                    values = {name: 90.0 - loss + gain - number for number, name in enumerate(metrics)}
                    records.append(
                        Record(
                            scenario=scenario,
                            group="weight noise",
                            strength=strength,
                            t_inference=0.0,
                            method="uncalibrated" if method == "none" else method,
                            method_name=method,
                            chip_seed=chip,
                            metrics=values,
                            seconds_calibration=0.0 if method == "none" else 1.5,
                            seconds_evaluation=0.1,
                            n_calibration_samples=0 if method == "none" else 8,
                        )
                    )
        digital = {name: 90.0 - number for number, name in enumerate(metrics)}
        return EvaluationResult(records=records, digital=digital, settings=settings or {})

    return make
