"""Models in a sweep: workloads, each with a name of its own."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.results.placement import excluded_names
from aihwkit_nabn.workloads import LoadSettings, Workload, find_workload, load_workload
from aihwkit_nabn.workloads._checks import check_list, check_mapping, check_text, short

_COMMON = ("model", "name", "exclude")


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model of a sweep.

    Attributes:
        model: A workload, as `aihwkit_nabn.workloads.load_workload` takes it.
        name: How tables and folders call it.
        exclude: Names of modules that stay digital.
        options: What its kind takes, as pairs.
    """

    model: str
    name: str
    exclude: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def load(self, settings: LoadSettings) -> Workload:
        """Return the workload.

        Raises:
            NabnError: something it needs is missing or damaged.
        """
        return load_workload(self.model, settings, **dict(self.options))


def read_model(field: str, entry: object) -> ModelEntry:
    """Check an entry of ``models``: a name, or a mapping with ``model`` and the options of its kind.

    Raises:
        NabnError: anything in it that is not allowed.
    """
    given = {"model": entry} if isinstance(entry, str) else entry
    text = given.get("model") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(text, str) or not text.strip():
        raise NabnError(f"an entry of {field} must be a model's name or a mapping with model: NAME, got {short(entry)}")
    if "weights" in given and "checkpoint" not in given:
        text = "weights of a model is now called checkpoint; the old name works until 0.3"
        warnings.warn(text, FutureWarning, stacklevel=2)
        given = {"checkpoint" if key == "weights" else key: value for key, value in given.items()}
    model = check_text("model", text)
    kind, _ = find_workload(model)
    check_mapping(f"model {model!r}", given, [*_COMMON, *kind.options], kind.required)
    options = kind.checked(model, {key: value for key, value in given.items() if key not in _COMMON})
    default = model.rpartition("::")[2].rpartition("/")[2].removesuffix(".py").replace(".py:", "_").replace(":", "_")
    return ModelEntry(
        model=model,
        name=_check_folder_name(given.get("name", default)),
        exclude=excluded_names(check_list("exclude", given["exclude"], check_text)) if given.get("exclude") else (),
        options=tuple(sorted(options.items())),
    )


def _check_folder_name(value: object) -> str:
    name = check_text("name of a model", value)
    if not all(sign.isalnum() or sign in "-_." for sign in name) or name.startswith("."):
        raise NabnError(
            f"name of a model must be letters, digits, -, _ and ., for it names a folder, got {short(name)}"
        )
    return name
