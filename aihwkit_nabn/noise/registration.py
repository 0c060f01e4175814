"""The registry of noise models: what enters it is checked and run once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from aihwkit.inference.noise.base import BaseNoiseModel

from aihwkit_nabn.errors import NabnError, UnknownNameError, suggestion
from aihwkit_nabn.noise.base import WeightNoiseModel, argument_names
from aihwkit_nabn.registry import Registry
from aihwkit_nabn.seeding import private_rng

NoiseClass = TypeVar("NoiseClass", bound=type[BaseNoiseModel])


def _check_model(name: str, model_class: type[BaseNoiseModel]) -> None:
    """Refuse what cannot be a noise model, and run the rest once on a tiny tensor."""
    if not (isinstance(model_class, type) and issubclass(model_class, BaseNoiseModel)):
        raise NabnError(f"noise model {name!r} must be a class derived from WeightNoiseModel, got {model_class!r}")
    arguments = argument_names(model_class)
    strength = getattr(model_class, "strength", None)
    if strength not in arguments:
        raise NabnError(
            f"noise model {name!r}: the class attribute `strength` must name the constructor argument that switches "
            f"{model_class.__name__} off at 0, got {strength!r}{suggestion(strength, arguments)}; "
            f"allowed: {', '.join(arguments) or 'none, it has no argument'}"
        )
    for other in NOISE_MODELS.names():
        if other != name and NOISE_MODELS.get(other).__name__.lower() == model_class.__name__.lower():
            raise NabnError(f"noise model {name!r}: {other!r} has a class named {model_class.__name__} already")
    try:
        model = model_class()
    except Exception as error:
        raise NabnError(f"noise model {name!r}: {model_class.__name__}() failed without arguments: {error}") from error
    missing = [argument for argument in arguments if not hasattr(model, argument)]
    if missing and isinstance(model, WeightNoiseModel):
        raise NabnError(
            f"noise model {name!r}: {model_class.__name__} must store its argument {missing[0]!r} in self.{missing[0]}"
        )
    weights = torch.linspace(-1.0, 1.0, 6).reshape(2, 3)
    t_inference = float(getattr(model_class, "t_range_s", (1.0, math.inf))[0])
    try:
        with private_rng(0, torch_only=False):
            programmed, state = model.apply_programming_noise(weights.clone())
            drifted = model.apply_drift_noise(programmed, state, t_inference)
    except Exception as error:
        raise NabnError(f"noise model {name!r} failed on a tile of shape [2, 3]: {error}") from error
    for step, result in (("programming", programmed), ("drift", drifted)):
        got = (result.shape, result.dtype, result.device)
        if got != (weights.shape, weights.dtype, weights.device):
            raise NabnError(f"noise model {name!r}: {step} must keep shape, dtype and device, got {got}")
        if not bool(torch.isfinite(result).all()):
            raise NabnError(f"noise model {name!r}: {step} gave weights that are not finite")


NOISE_MODELS: Registry[type[BaseNoiseModel]] = Registry("noise model", check=_check_model)


def register_noise_model(name: str) -> Callable[[NoiseClass], NoiseClass]:
    """Return a class decorator that enters a noise model under `name`.

    The class is run once on a tiny tile with its default arguments, so that a mistake shows where it was made (helpers
    it calls must stand above it in the file). From then on the model has a preset and a place in the contract tests.

    Args:
        name: lower_snake_case name for configs and the command line.

    Raises:
        NabnError: the name is taken or malformed; or the class does not derive from aihwkit's ``BaseNoiseModel``,
            lacks `strength`, cannot be built without arguments, or fails on the tiny tile.
    """
    return NOISE_MODELS.register(name)  # type: ignore[return-value]


def plain_name(name: object) -> str:
    """Return a name as it is compared: case, dashes and underscores do not matter, nor ``preset`` at its end."""
    return str(name).lower().replace("_", "").replace("-", "").strip().removesuffix("preset")


def find_noise_model(name: object) -> str:
    """Return the registered name of a noise model.

    Args:
        name: The registered name (``"reram_wan"``), the class (``"ReRAMWan"``) or its preset (``"ReRAMWanPreset"``).

    Raises:
        UnknownNameError: there is none; the message suggests the nearest.
    """
    wanted = plain_name(name)
    for registered in NOISE_MODELS.names():
        if wanted in (plain_name(registered), plain_name(NOISE_MODELS.get(registered).__name__)):
            return registered
    raise UnknownNameError("noise model", name, NOISE_MODELS.names())


def build_noise_model(name: object, **options: Any) -> BaseNoiseModel:
    """Return a noise model by name, e.g. ``build_noise_model("gaussian", sigma=0.06)``.

    Raises:
        UnknownNameError: there is no such model.
        NabnError: an option is unknown or has a value that is not allowed.
    """
    model_class = NOISE_MODELS.get(find_noise_model(name))
    known = argument_names(model_class)
    for option in options:
        if option not in known:
            raise NabnError(
                f"{model_class.__name__} has no option {option!r}{suggestion(option, known)}; "
                f"allowed: {', '.join(known)}"
            )
    return model_class(**options)
