"""What the evaluating commands and tools share: methods and scenarios from text, and showing the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aihwkit_nabn.errors import NabnError, UnknownNameError

if TYPE_CHECKING:
    from rich.console import Console

    from aihwkit_nabn.evaluation import EvaluationResult, MethodSpec, Scenario

ALL = "all"
PLAIN, AUGMENTED = "plain", "augmented"


def split_names(text: str) -> list[str]:
    """Return the names in a comma-separated text."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(option: str, text: str) -> list[float]:
    """Return the numbers of an option, separated by commas.

    Raises:
        NabnError: one of them is none.
    """
    try:
        return [float(part) for part in split_names(text)]
    except ValueError as error:
        raise NabnError(f"{option} must be numbers separated by commas, got {text!r}") from error


def folder_name(target: str) -> str:
    """Return what the folder of a target's results is called."""
    if target.endswith(".py"):
        return Path(target.rpartition("::")[2]).stem
    return target.replace(":", "_").replace("/", "_")


def method_specs(names: Sequence[str]) -> list[MethodSpec]:
    """Return the methods, each with the calibration set that suits it.

    Trained statistics contain the training augmentation, so methods that replace them calibrate on images that went
    through it (``"augmented"``). Methods that compare with the digital model on the same images take them as they are
    at test time (``"plain"``).

    Args:
        names: Registered names, options behind a colon: ``"distill:steps=20"``; an entry such as ``"lr=0.01"`` is one
            more option of the method before it, as a list separated by commas has it. ``"none"`` is the chip as
            programmed, ``"all"`` every registered method.

    Raises:
        NabnError: there are no names, or an option is malformed, unknown or has a value that is not allowed.
        UnknownNameError: a name is not registered.
    """
    from aihwkit_nabn.calibration import CALIBRATION_METHODS
    from aihwkit_nabn.calibration.method import build_method
    from aihwkit_nabn.evaluation import MethodSpec
    from aihwkit_nabn.evaluation.scenario import UNCALIBRATED
    from aihwkit_nabn.simulator.config.text import parse_value

    if not names:
        raise NabnError(f"methods must name at least one of {UNCALIBRATED}, {', '.join(CALIBRATION_METHODS.names())}")
    # Those that work on statistics first, then those that compare with the digital model.
    everything = sorted(CALIBRATION_METHODS.names(), key=lambda name: CALIBRATION_METHODS.get(name).needs_reference)
    specs = [MethodSpec(UNCALIBRATED)]
    for given, texts in _with_options(names):
        if given in (ALL, UNCALIBRATED) and texts:
            raise NabnError(f"method {given!r} takes no options, got {next(iter(texts))!r}")
        for name in everything if given == ALL else [given]:
            if name != UNCALIBRATED and name not in CALIBRATION_METHODS:
                raise UnknownNameError("calibration method", name, [UNCALIBRATED, ALL, *CALIBRATION_METHODS.names()])
            label = f"{name} ({', '.join('='.join(item) for item in texts.items())})" if texts else None
            if name == UNCALIBRATED or any((spec.method, spec.label) == (name, label) for spec in specs):
                continue
            options = {option: parse_value(option, text) for option, text in texts.items()}
            method = build_method(name, **options)  # refuses unknown options and values
            batches = (AUGMENTED if method.replaces_statistics else PLAIN) if method.needs_batches else None
            specs.append(MethodSpec(name, batches=batches, label=label, options=options))
    return specs


def _with_options(names: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Return each method's name with its options, still as text."""
    methods: list[tuple[str, dict[str, str]]] = []
    may_go_on = False
    for item in names:
        name, colon, option = (part.strip() for part in item.partition(":"))
        if may_go_on and not colon and "=" in item:
            option = item
        else:
            methods.append((name, {}))
            may_go_on = bool(colon)
        if may_go_on:
            key, equals, value = (part.strip() for part in option.partition("="))
            if not (key and equals and value):
                raise NabnError(f"malformed option {option!r} of method {methods[-1][0]!r}: expected NAME:OPTION=VALUE")
            if key in methods[-1][1]:
                raise NabnError(f"option {key!r} of method {methods[-1][0]!r} is given twice")
            methods[-1][1][key] = value
    return methods


def loop_methods(specs: Sequence[MethodSpec]) -> list[str | dict[str, Any]]:
    """Return the methods as `AnalogTestLoop` takes them."""
    return [
        {"method": spec.method, "label": spec.label, **spec.options} if spec.options else spec.method for spec in specs
    ]


def parse_scenarios(noises: Sequence[str], times: Sequence[str]) -> list[Scenario]:
    """Return one scenario per noise setting and time; of noise that does not change with time, one.

    Args:
        noises: Presets as `aihwkit_nabn.simulator.parse_preset` takes them.
        times: Times after programming, as `aihwkit_nabn.chip.parse_time` takes them.

    Raises:
        NabnError: a preset or a time is unknown, malformed, out of range or given twice.
    """
    from aihwkit_nabn.chip import parse_time
    from aihwkit_nabn.evaluation.scenario import scenarios_over_times
    from aihwkit_nabn.simulator import parse_preset

    return scenarios_over_times([(noise, parse_preset(noise)) for noise in noises], [parse_time(t) for t in times])


def show_result(console: Console, result: EvaluationResult, out: Path) -> None:
    """Print the table of the first metric, write the folder of files, and say where they are."""
    from aihwkit_nabn.reporting import print_table

    print_table(result, console)
    result.report(out)
    files = ", ".join(sorted(path.name for path in out.iterdir() if path.is_file()))
    console.print(f"Written to {out}/: {files}", style="bold", highlight=False, soft_wrap=True, markup=False)


def check_out(out: Path) -> Path:
    """Return `out` if a folder can be there: known before the work, not after it.

    Raises:
        NabnError: it is a file, or cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NabnError(f"out must be a folder that can be written, got {str(out)!r}: {error.strerror}") from error
    return out
