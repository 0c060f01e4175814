"""Where a model is evaluated: a noise setting at a time after programming."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from aihwkit.simulator.parameters.base import RPUConfigBase

from aihwkit_nabn.errors import NabnError, check_number
from aihwkit_nabn.simulator.config.rpu_config import check_rpu_config
from aihwkit_nabn.times import format_time, parse_time


@dataclass(frozen=True)
class Scenario:
    """A noise setting at a time after programming.

    Args:
        name: How tables call it; unique within an evaluation.
        rpu_config: The aihwkit RPU config. A copy is kept, so changing the config later does not change the scenario.
        t_inference: Seconds after programming, >= 0, or text such as ``"1d"``, kept as seconds.
        group: Scenarios of one group share a panel of a plot.
        strength: Where the scenario stands on a plot's horizontal axis, e.g. the noise's standard deviation.

    Raises:
        NabnError: a field has a value that it cannot have.

    Example:
        >>> from aihwkit.simulator.configs import TorchInferenceRPUConfig
        >>> Scenario(name="PCM, 1 day", rpu_config=TorchInferenceRPUConfig(), t_inference="1d").t_inference
        86400.0
    """

    name: str
    rpu_config: RPUConfigBase = field(repr=False, hash=False)
    _: KW_ONLY
    t_inference: float | str = 0.0
    group: str | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        check_label("name", self.name)
        check_rpu_config(f"rpu_config of scenario {self.name!r}", self.rpu_config)
        if self.group is not None:
            check_label("group", self.group)
        time = parse_time(self.t_inference) if isinstance(self.t_inference, str) else self.t_inference
        # A frozen dataclass lets its own __post_init__ write only this way.
        object.__setattr__(self, "t_inference", check_number("t_inference", time, minimum=0.0))
        if self.strength is not None:
            object.__setattr__(self, "strength", check_number("strength", self.strength))
        object.__setattr__(self, "rpu_config", copy.deepcopy(self.rpu_config))


def check_label(field_name: str, value: object) -> str:
    """Return `value` if it is non-empty text on one line.

    Raises:
        NabnError: it is anything else.
    """
    if not isinstance(value, str) or not value.strip() or "\n" in value:
        raise NabnError(f"{field_name} must be non-empty text on one line, got {value!r}")
    return value


def scenarios_over_times(noises: Sequence[tuple[str, Any]], seconds: Sequence[float]) -> list[Scenario]:
    """Return all scenarios of `scenarios_by_noise`, one after the other."""
    return [scenario for scenarios in scenarios_by_noise(noises, seconds) for scenario in scenarios]


def scenarios_by_noise(noises: Sequence[tuple[str, Any]], seconds: Sequence[float]) -> list[list[Scenario]]:
    """Return each noise setting's scenarios, one per time, grouped so that a plot's curves belong together.

    A setting whose weights do not change with time is there once, at the first time.

    Args:
        noises: Each setting as ``NAME`` or ``NAME:OPTION=VALUE,...``, with its RPU config.
        seconds: Times after programming.

    Raises:
        NabnError: a time is out of range.
    """
    return [_over_times(noise, config, noises, seconds) for noise, config in noises]


def _over_times(noise: str, config: Any, noises: Sequence[tuple[str, Any]], seconds: Sequence[float]) -> list[Scenario]:
    model = config.noise_model
    times = seconds if getattr(model, "changes_with_time", True) else seconds[:1]
    # Several strengths of one model, at one time, are one curve; otherwise each setting is a curve over time.
    name, _, options = noise.partition(":")
    argument = getattr(model, "strength", None)
    alike = [other for other, _ in noises if other.partition(":")[0] == name]
    strength = getattr(model, argument, None) if argument and len(alike) > 1 and len(times) == 1 else None
    rest = [option for option in options.split(",") if option and option.partition("=")[0].strip() != argument]
    moves = getattr(model, "drifts", True) or len(times) > 1
    return [
        Scenario(
            name=f"{noise}, {format_time(time)}" if moves else noise,
            rpu_config=config,
            t_inference=time,
            group=noise if strength is None else ", ".join([name, *rest]),
            strength=strength,
        )
        for time in times
    ]


def config_key(rpu_config: RPUConfigBase) -> bytes:
    """Return bytes that are the same only for configs of the same content.

    Comparing configs with ``==`` would miss equal ones: aihwkit's drift compensation compares by identity.
    """
    try:
        return pickle.dumps(rpu_config)
    except Exception:  # whatever a config holds that cannot be pickled: then it is equal to itself alone
        return str(id(rpu_config)).encode()
