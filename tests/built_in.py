"""The names this package registers itself, also where other tests have registered their own beside them."""

from __future__ import annotations

from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.noise import NOISE_MODELS

NOISE_NAMES = [name for name in NOISE_MODELS.names() if NOISE_MODELS.get(name).__module__.startswith("aihwkit_nabn.")]
METHOD_NAMES = [
    name for name in CALIBRATION_METHODS.names() if CALIBRATION_METHODS.get(name).__module__.startswith("aihwkit_nabn.")
]
