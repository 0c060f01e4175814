"""What a sweep is: a YAML file of version 1, checked as a whole before anything is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from aihwkit_nabn.calibration.method import DEFAULT_METHOD
from aihwkit_nabn.errors import NabnError, check_number
from aihwkit_nabn.evaluation.scenario import Scenario, scenarios_by_noise
from aihwkit_nabn.extension import import_extension
from aihwkit_nabn.results import UNCALIBRATED
from aihwkit_nabn.seeding import check_seed
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.studies.grid.methods import MethodEntry, TrackingEntry, read_method, read_tracking
from aihwkit_nabn.studies.grid.models import ModelEntry, read_model
from aihwkit_nabn.times import parse_time
from aihwkit_nabn.workloads import SOURCES
from aihwkit_nabn.workloads._checks import check_choice, check_list, check_mapping, check_positive, check_text, short

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """A stream of test images in time order, on chips whose noise moves.

    Attributes:
        images: Length of the stream; the test images are repeated in a new random order.
        window: Images per measurement of accuracy.
        batch: Images per forward pass, that is, per step of `online`.
        drift: First and last time after programming in seconds; windows lie between them in logarithmic steps. None:
            the chip stays at the sweep's ``time``.
        tracking: What is done on the way.
    """

    images: int
    window: int
    batch: int
    drift: tuple[float, float] | None
    tracking: tuple[TrackingEntry, ...]

    @property
    def ends(self) -> range:
        """Where the windows end, in images: each is a measurement."""
        return range(self.window, self.images + 1, self.window)


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A checked sweep.

    Attributes:
        version: Of the format.
        name: Name of the sweep, and of its folder.
        seed: Of the first chip and of the choice of images.
        chips: Chips per noise setting.
        models: What is put on chips.
        noise: Noise settings as the command line has them, strengths written out.
        time: Seconds after programming.
        methods: Calibration methods; the chip as programmed comes first.
        samples: Numbers of calibration images.
        calibration: Where they come from, of `SOURCES`.
        jpeg: Qualities at which test and calibration images are compressed; None: not at all.
        test_images: Number of test images; None: all.
        test_batch: Test images per forward pass; None: what suits each model.
        calibration_batch: Calibration images per forward pass; likewise.
        stream: A stream instead of single measurements, or None.
        imports: Python files or modules with noise models or methods of the user's own; every worker imports them.
    """

    version: int
    name: str
    seed: int
    chips: int
    models: tuple[ModelEntry, ...]
    noise: tuple[str, ...]
    time: tuple[float, ...]
    methods: tuple[MethodEntry, ...]
    samples: tuple[int, ...]
    calibration: tuple[str, ...]
    jpeg: tuple[int | None, ...]
    test_images: int | None
    test_batch: int | None
    calibration_batch: int | None
    stream: StreamSpec | None
    imports: tuple[str, ...] = ()

    def settings(self) -> list[tuple[str, Scenario]]:
        """Return noise settings with scenarios, one per time; of noise that does not change with time, the earliest."""
        parts = scenarios_by_noise([(noise, parse_preset(noise)) for noise in self.noise], sorted(self.time))
        return [(noise, scenario) for noise, part in zip(self.noise, parts, strict=True) for scenario in part]

    def scenarios(self) -> list[Scenario]:
        """Return the scenarios alone."""
        return [scenario for _, scenario in self.settings()]

    @property
    def chip_seeds(self) -> list[int]:
        """Seeds of the chips."""
        return [self.seed + index for index in range(self.chips)]


_KNOWN = ["import" if field.name == "imports" else field.name for field in fields(SweepSpec)]
_STREAM = [field.name for field in fields(StreamSpec)]
# What a stream has in its own words.
_NOT_WITH_STREAM = ("methods", "calibration", "jpeg")


def read_yaml(path: str | Path) -> Any:
    """Return what a YAML file holds, not yet checked.

    Raises:
        NabnError: the file cannot be read, is no YAML, or has a key twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is given twice, of which YAML would take the last."""

        def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            lines: dict[str, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if str(key.value) in lines:
                    where = f"line {line}, after line {lines[str(key.value)]}"
                    raise NabnError(f"sweep file {str(path)!r} has the key {key.value!r} twice: again in {where}")
                lines[str(key.value)] = line
            return node

    path = Path(path)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except NabnError:
        raise
    except FileNotFoundError as error:
        raise NabnError(f"sweep file {str(path)!r} does not exist") from error
    except OSError as error:
        raise NabnError(f"cannot read sweep file {str(path)!r}: {error.strerror or error}") from error
    except Exception as error:  # PyYAML lets ValueError, OverflowError, RecursionError and others through
        raise NabnError(f"sweep file {str(path)!r} is no YAML: {' '.join(str(error).split())}") from error


def parse_spec(content: object) -> SweepSpec:
    """Check what a sweep's file holds: mappings, lists, numbers and text, as YAML and JSON have them.

    Raises:
        NabnError: names the first value that is not allowed, and what is.
    """
    given = check_mapping("the sweep", content, _KNOWN, required=["version", "name", "models", "noise"])
    if type(given["version"]) is not int or given["version"] != VERSION:
        raise NabnError(f"version must be {VERSION}, the format this release reads, got {short(given['version'])}")
    if given.get("stream") is not None:
        for key in _NOT_WITH_STREAM:
            if key in given:
                raise NabnError(f"{key} does not go with stream: its tracking says what is done on the way")
    imports = check_list("import", given["import"], check_text) if given.get("import") else ()
    for source in imports:
        import_extension(source)
    noise = check_list("noise", _spread_strengths(given["noise"]), _check_noise)
    methods = check_list("methods", given.get("methods", [UNCALIBRATED, "population", DEFAULT_METHOD]), read_method)
    jpeg = check_list("jpeg", given.get("jpeg", [None]), _check_jpeg)
    _check_labels("methods", [entry.label for entry in methods])
    if any(entry.clean_reference for entry in methods) and not any(jpeg):
        raise NabnError("reference: clean is for compressed images, but jpeg names no quality")
    if not any(entry.method == UNCALIBRATED for entry in methods):
        methods = (read_method("methods", UNCALIBRATED), *methods)
    spec = SweepSpec(
        version=VERSION,
        name=_check_name(given["name"]),
        seed=check_seed("seed", given.get("seed", 0)),
        chips=check_positive("chips", given.get("chips", 5)),
        models=check_list("models", given["models"], read_model),
        noise=noise,
        time=check_list("time", given.get("time", 0.0), _check_time),
        methods=tuple(sorted(methods, key=lambda entry: entry.method != UNCALIBRATED)),
        samples=check_list("samples", given.get("samples", 256), check_positive),
        calibration=check_list(
            "calibration", given.get("calibration", SOURCES[0]), partial(check_choice, known=SOURCES)
        ),
        jpeg=jpeg,
        test_images=_optional("test_images", given),
        test_batch=_optional("test_batch", given),
        calibration_batch=_optional("calibration_batch", given),
        stream=None if given.get("stream") is None else _read_stream(given["stream"]),
        imports=imports,
    )
    _check_labels("models", [entry.name for entry in spec.models])
    _check_together(spec)
    return spec


def _check_together(spec: SweepSpec) -> None:
    drift = None if spec.stream is None else spec.stream.drift
    for scenario in spec.scenarios():  # a noise model may not know every time
        check = getattr(scenario.rpu_config.noise_model, "check_time", None)
        if check is None:
            continue
        for seconds in [scenario.t_inference] if drift is None else drift:
            try:
                check(seconds)
            except NabnError as error:
                raise NabnError(f"time of {scenario.name!r}: {error}") from error


def _optional(field: str, given: Mapping[str, Any]) -> int | None:
    return None if given.get(field) is None else check_positive(field, given[field])


def _read_stream(content: object) -> StreamSpec:
    given = check_mapping("stream", content, _STREAM, required=["images", "window", "tracking"])
    images = check_positive("images of stream", given["images"])
    window = check_positive("window of stream", given["window"])
    batch = check_positive("batch of stream", given.get("batch", min(window, 32)))
    if images % window:
        raise NabnError(f"images of stream must be a multiple of window = {window}, got {images}")
    if window % batch:
        raise NabnError(f"window of stream must be a multiple of batch = {batch}, got {window}")
    drift = None
    if given.get("drift") is not None:
        ends = check_mapping("drift of stream", given["drift"], ["from", "to"], required=["from", "to"])
        first, last = (_check_time(f"{end} of drift", ends[end]) for end in ("from", "to"))
        if not 0 < first < last:
            raise NabnError(f"drift of stream must go from a time > 0 to a later one, got {first:g} s to {last:g} s")
        drift = (first, last)
    tracking = check_list("tracking of stream", given["tracking"], partial(read_tracking, images=images, batch=batch))
    _check_labels("tracking of stream", [entry.label for entry in tracking])
    if not any(entry.method == UNCALIBRATED for entry in tracking):
        tracking = (read_tracking("tracking", UNCALIBRATED, images=images, batch=batch), *tracking)
    tracking = tuple(sorted(tracking, key=lambda entry: entry.method != UNCALIBRATED))
    return StreamSpec(images=images, window=window, batch=batch, drift=drift, tracking=tracking)


def _spread_strengths(noise: object) -> list[Any]:
    """Return the noise settings as texts, one for each strength."""
    spread: list[Any] = []
    for entry in noise if isinstance(noise, (list, tuple)) else [noise]:
        if not isinstance(entry, Mapping):
            spread.append(entry)
            continue
        given = check_mapping("an entry of noise", entry, ["preset", "strength"], required=["preset", "strength"])
        preset = check_text("preset of noise", given["preset"])
        model = parse_preset(preset).noise_model
        option = getattr(model, "strength", None)
        if "+" in preset or not isinstance(option, str):
            raise NabnError(f"strength needs a noise model with one strength, which {preset!r} is not")
        if f"{option}=" in preset.replace(" ", ""):
            raise NabnError(f"strength of {preset!r} is given twice: {option} is its strength")
        for strength in check_list("strength of noise", given["strength"], partial(check_number, minimum=0.0)):
            spread.append(f"{preset}{',' if ':' in preset else ':'}{option}={strength:g}")
    return spread


def _check_noise(field: str, value: object) -> str:
    text = check_text(field, value)
    parse_preset(text)
    return text


def _check_time(field: str, value: object) -> float:
    try:
        return parse_time(value)  # type: ignore[arg-type]
    except NabnError as error:
        raise NabnError(f"{field}: {error}") from error


def _check_jpeg(field: str, value: object) -> int | None:
    if value is None or value == UNCALIBRATED:
        return None
    if type(value) is not int or not 1 <= value <= 95:
        raise NabnError(f"{field} must be none or a quality from 1 to 95, got {short(value)}")
    return value


def _check_name(value: object) -> str:
    name = check_text("name", value)
    if not name.replace("-", "_").isidentifier() or not name.isascii():
        raise NabnError(f"name must be letters, digits, - and _, beginning with a letter, got {short(value)}")
    return name


def _check_labels(field: str, labels: list[str]) -> None:
    for label in labels:
        if labels.count(label) > 1:
            key = "name" if field == "models" else "label"
            raise NabnError(f"{field} has {label!r} twice; give each entry a {key} of its own")
