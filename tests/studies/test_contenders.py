from __future__ import annotations

import pytest

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import Scenario
from aihwkit_nabn.simulator import build_preset
from aihwkit_nabn.studies.contenders import COMPENSATED, NoiseSetting, contenders, list_jobs, row_order


def settings() -> list[NoiseSetting]:
    additive = Scenario(name="additive", rpu_config=build_preset("gaussian", sigma=0.1), strength=0.1)
    pcm = [Scenario(name=f"pcm {t}", rpu_config=build_preset("pcm"), t_inference=t) for t in ("1h", "1y")]
    return [
        NoiseSetting(name="additive", scenarios=(additive,)),
        NoiseSetting(name="PCM", scenarios=tuple(pcm), trained_at="1d"),
    ]


def test_rows_and_jobs() -> None:
    listed = contenders(["population", "paired"], ["paired"], wrong=(0.25,))
    scenarios = [scenario for setting in settings() for scenario in setting.scenarios]
    assert row_order(listed, scenarios) == [
        "uncalibrated",
        COMPENSATED,
        "population",
        "paired",
        "HWA",
        "HWA, noise / 4",
        "HWA + paired",
    ]
    jobs = [(s.name, chip, c.key, c.compensated) for _, s, chip, c in list_jobs(settings(), [4, 5], listed)]
    assert jobs.count(("pcm 1h", 4, "", False)) == 1
    assert not any(name == "additive" and not compensated for name, _, _, compensated in jobs)
    assert len(jobs) == len(set(jobs)) == 2 * (3 + 2 * 4)


def test_bad_input_is_named() -> None:
    with pytest.raises(NabnError, match="different factors other than 1"):
        contenders([], [], wrong=(1.0,))
    with pytest.raises(NabnError, match="at least one Scenario"):
        NoiseSetting(name="empty", scenarios=())
