"""Which layers of a network stay digital, in a file; and names of such layers, given directly or by that file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aihwkit_nabn.errors import NabnError, is_finite_number, suggestion
from aihwkit_nabn.files import parse_json, write_text

FORMAT = "aihwkit_nabn.placement"
VERSION = 1
SUFFIX = ".json"

Exclude = Iterable[str | Path] | str | Path
"""What stays digital: names of modules, patterns of names, files of a `Placement`."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which layers stay digital, how the choice was made, and what it costs.

    Attributes:
        exclude: Names of the digital network's modules that stay digital.
        network: The network it was found for: class and checksum of its weights.
        noise: The noise setting.
        t_inference: Seconds after programming.
        method: Registered name of the calibration method.
        options: Of the method.
        metric: What the loss is of, in its own unit.
        bound: The loss that was allowed.
        met: Whether a placement within the bound was found on the chips that it was searched on.
        loss: On chips that the search has not seen: mean, low and high (95%; None for one chip), number of chips.
        shares: Of the network's multiplications: ``layers``, those of the digital layers; ``corrections``.
    """

    exclude: tuple[str, ...]
    network: str
    noise: str
    t_inference: float
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    metric: str
    bound: float
    met: bool
    loss: Mapping[str, float | None]
    shares: Mapping[str, float]

    def to_json(self, path: str | Path) -> Path:
        """Write the file, replacing an old one in one step.

        Raises:
            NabnError: it cannot be written.
        """
        content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        write_text(Path(path), json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
        return Path(path)

    @classmethod
    def from_json(cls, path: str | Path) -> Placement:
        """Read what `to_json` wrote.

        Raises:
            NabnError: no such file, or one that is damaged, of something else, or of a newer version.
        """
        try:
            content = parse_json(Path(path).read_bytes())
        except FileNotFoundError as error:
            raise NabnError(f"no placement file {path}; `nabn place` writes one") from error
        except OSError as error:
            raise NabnError(f"cannot read the placement file {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise NabnError(f"{path} is damaged, or no placement file: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise NabnError(f"{path} is no placement file of this package: its format is not {FORMAT!r}")
        version = content.get("version")
        if version != VERSION:
            raise NabnError(f"{path} has version {version!r} of the format; this release reads version {VERSION}")
        values: dict[str, Any] = {entry.name: content.get(entry.name) for entry in dataclasses.fields(cls)}
        for name, value in values.items():
            if not _WELL_FORMED[name](value):
                raise NabnError(f"{path} is damaged: {name} must not be {value!r}")
        return cls(**values | {"exclude": tuple(values["exclude"])})

    @property
    def made_with(self) -> str:
        """The method with its options, as text."""
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.method}:{options}" if options else self.method


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _is_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(number is None or is_finite_number(number) for number in value.values())


_WELL_FORMED = {
    "exclude": _is_names,
    "network": _is_text,
    "noise": _is_text,
    "t_inference": is_finite_number,
    "method": _is_text,
    "options": lambda value: isinstance(value, dict),
    "metric": _is_text,
    "bound": is_finite_number,
    "met": lambda value: isinstance(value, bool),
    "loss": _is_numbers,
    "shares": _is_numbers,
}


def excluded_names(exclude: Exclude, known: Collection[str] | None = None) -> tuple[str, ...]:
    """Return the names, or patterns of names, of the modules that stay digital.

    Args:
        exclude: Names and patterns; a `Path`, or a text that ends with ``.json``, is a file of a `Placement` and stands
            for the names in it.
        known: The names that the model has, which those in a file must be among; None: not known yet.

    Raises:
        NabnError: a file cannot be read, or names modules that the model lacks.
    """
    given = (exclude,) if isinstance(exclude, (str, Path)) else tuple(exclude)
    names: list[str] = []
    for entry in given:
        if not is_placement(entry):
            names.append(entry)  # type: ignore[arg-type]  # what is no text, the conversion refuses
            continue
        found = Placement.from_json(entry)
        for name in found.exclude:
            if known is not None and name not in known:
                raise NabnError(
                    f"the placement {entry} is of another network ({found.network}): it keeps {name!r} digital, which "
                    f"this model lacks{suggestion(name, known)}"
                )
        names += found.exclude
    return tuple(dict.fromkeys(names))


def is_placement(entry: object) -> bool:
    """Whether an entry of ``exclude`` is a file, not a name."""
    return isinstance(entry, Path) or (isinstance(entry, str) and entry.endswith(SUFFIX))
