"""Models of a sweep: one file per kind, each entering itself in `MODELS`; and configs, which bring all of it along."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.sweeps.fields import check_list, check_mapping, check_text, short
from aihwkit_nabn.sweeps.models._base import MODELS, Bench, Images, ModelKind

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")

_COMMON = ("model", "name", "exclude")


def _texts(field: str, value: object) -> list[str]:
    return list(check_list(field, value, check_text))


_CONFIG_OPTIONS = {"checkpoint": check_text, "take": check_text, "cfg_options": _texts}


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model of a sweep.

    Attributes:
        model: ``digits``, ``cifar10``, ``torchvision:NAME``, or a config of mmdetection or mmsegmentation.
        name: How tables and folders call it.
        exclude: Names of modules that stay digital.
        options: What its kind takes, as pairs.
    """

    model: str
    name: str
    exclude: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def is_config(self) -> bool:
        """Whether it is a config rather than a kind in `MODELS`."""
        return is_config(self.model)

    def load(self) -> Bench:
        """Return the network with its images.

        Raises:
            NabnError: something it needs is missing or damaged.
        """
        kind, _, name = self.model.partition(":")
        return MODELS.get(kind).load(name, dict(self.options))


def is_config(model: str) -> bool:
    """Return whether a model means a config file."""
    return model.endswith(".py") or "::" in model


def read_model(field: str, entry: object) -> ModelEntry:
    """Check an entry of ``models``: a name, or a mapping with ``model`` and the options of its kind.

    Raises:
        NabnError: anything in it that is not allowed.
    """
    given = {"model": entry} if isinstance(entry, str) else entry
    text = given.get("model") if isinstance(given, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise NabnError(f"an entry of {field} must be a model's name or a mapping with model: NAME, got {short(entry)}")
    model = check_text("model", text)
    checks, required = _options_of(model)
    known = [*_COMMON, *checks]
    kept = check_mapping(f"model {model!r}", given, known, required)
    options = tuple(sorted((key, checks[key](f"{key} of {model}", kept[key])) for key in kept if key not in _COMMON))
    default = model.rpartition("::")[2].rpartition("/")[2].removesuffix(".py").replace(":", "_")
    return ModelEntry(
        model=model,
        name=_check_folder_name(kept.get("name", default)),
        exclude=check_list("exclude", kept["exclude"], check_text) if kept.get("exclude") else (),
        options=options,
    )


def _options_of(model: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    if is_config(model):
        return _CONFIG_OPTIONS, ("checkpoint",)
    kind, colon, name = model.partition(":")
    known = [*(f"{each}:NAME" if MODELS.get(each).named else each for each in MODELS), "a config file"]
    if kind not in MODELS:
        raise UnknownNameError("model", model, known)
    if MODELS.get(kind).named != bool(colon and name):
        form = f"{kind}:NAME" if MODELS.get(kind).named else kind
        raise NabnError(f"model {model!r} must be written {form}")
    return MODELS.get(kind).options, MODELS.get(kind).required


def _check_folder_name(value: object) -> str:
    name = check_text("name of a model", value)
    if not all(sign.isalnum() or sign in "-_." for sign in name) or name.startswith("."):
        raise NabnError(
            f"name of a model must be letters, digits, -, _ and ., for it names a folder, got {short(name)}"
        )
    return name


__all__ = ["MODELS", "Bench", "Images", "ModelEntry", "ModelKind", "is_config", "read_model"]
