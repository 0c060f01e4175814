"""Weight-noise models: what a chip's devices do to the weights when they are programmed and as they age."""

from __future__ import annotations

import importlib
import pkgutil

from aihwkit_nabn.noise.base import WeightNoiseModel, argument_names
from aihwkit_nabn.noise.registration import NOISE_MODELS, register_noise_model

# Every file of this folder registers its models when imported, so that a new one needs no entry here.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from aihwkit_nabn.noise.composed import ComposedNoise  # noqa: E402  # needs the registry filled

__all__ = ["NOISE_MODELS", "ComposedNoise", "WeightNoiseModel", "argument_names", "register_noise_model"]
