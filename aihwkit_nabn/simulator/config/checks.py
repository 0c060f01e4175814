"""Whether an argument is a configuration, and what to write where it is nearly one."""

from __future__ import annotations

from aihwkit.simulator.parameters.base import RPUConfigBase

from aihwkit_nabn.errors import NabnError


def check_rpu_config(field: str, value: object, error: type[NabnError] = NabnError) -> None:
    """Raise unless `value` is an aihwkit RPU configuration.

    Args:
        field: How messages call it.
        value: What was given.
        error: What is raised.

    Raises:
        NabnError: it is none; the message says how to make one of a preset's class or of its name.
    """
    if isinstance(value, RPUConfigBase):
        return
    if isinstance(value, type) and issubclass(value, RPUConfigBase):
        hint = f"the class {value.__name__}; call it: {value.__name__}()"
    elif isinstance(value, str):
        hint = f"{value!r}; aihwkit_nabn.presets.parse_preset({value!r}) makes one from text"
    else:
        hint = f"{type(value).__name__}; aihwkit_nabn.presets.PCMPreset() is one"
    raise error(f"{field} must be an aihwkit RPU configuration, got {hint}")
