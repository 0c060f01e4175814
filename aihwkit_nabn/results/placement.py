"""Which layers of a network stay digital, in a file; and names of such layers, given directly or by that file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aihwkit_nabn.errors import ConversionError, NabnError, is_finite_number
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
        layers: Names of all its modules that hold matrices.
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
    layers: tuple[str, ...]
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
        return cls(**values | {name: tuple(values[name]) for name in ("exclude", "layers")})

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
    "layers": _is_names,
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


class PlacedName(str):
    """A name out of a file, exact and no pattern; it carries the file along, which alone knows whose name it is.

    Attributes:
        file: The file.
        placement: What is in it.
    """

    file: str
    placement: Placement


def excluded_names(exclude: Exclude) -> tuple[str, ...]:
    """Return the names, or patterns of names, of the modules that stay digital; given those, return them.

    Every ``exclude`` is read here, at once: a file that changes later changes nothing. Whether a network has the
    modules is for its conversion to say.

    Args:
        exclude: Names and patterns; a `Path`, or a text that ends with ``.json``, is a file of a `Placement` and stands
            for the names in it.

    Raises:
        ConversionError: an entry is neither text nor a path.
        NabnError: a file cannot be read.
    """
    single = isinstance(exclude, (str, Path)) or not isinstance(exclude, Iterable)
    given: Iterable[Any] = (exclude,) if single else exclude  # type: ignore[assignment]
    names: list[str] = []
    for entry in given:
        if not isinstance(entry, (str, Path)):
            raise ConversionError(
                f"exclude must be names of modules, patterns of names, or files of nabn place, got {entry!r}"
            )
        if isinstance(entry, str) and (isinstance(entry, PlacedName) or not entry.endswith(SUFFIX)):
            names.append(entry)
            continue
        found = Placement.from_json(entry)
        for text in found.exclude:
            name = PlacedName(text)
            name.file, name.placement = str(entry), found
            names.append(name)
    return tuple(dict.fromkeys(names))
