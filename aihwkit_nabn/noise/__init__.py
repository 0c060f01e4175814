"""Weight-noise models: what a chip's devices do to the weights when they are programmed and as they age."""

from __future__ import annotations

import importlib
import pkgutil

from aihwkit_nabn.noise.base import NOISE_MODELS, WeightNoiseModel, argument_names, register_noise_model

# Every file of this folder registers its models when imported, so that a new one needs no entry here.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["NOISE_MODELS", "WeightNoiseModel", "argument_names", "register_noise_model"]
