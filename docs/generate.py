"""Pages made from the code, so that they cannot fall behind it: noise models, methods, command line, API."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.cli import app
from aihwkit_nabn.noise import NOISE_MODELS
from aihwkit_nabn.simulator.config.presets import get_preset, preset_names

# Public names by what they are for; `API` has each of them once.
GROUPS = {
    "Analog models": ("convert_to_noise_aware", "register", "unregister", "NoiseAwareBatchNorm"),
    "Chips": ("program_chip", "drift_chip", "set_read_noise_seed", "parse_time", "save_chip", "load_chip", "chip_info"),
    "Calibration": ("calibr", "Calibr", "freeze_calibration", "fold_calibration", "clear_calibration"),
    "Evaluation": ("evaluate", "Scenario", "MethodSpec", "EvaluationResult", "Workload", "load_workload"),
    "Hardware-aware training": ("train_hardware_aware", "matched_noise", "TrainedModel", "TrainingNoise"),
    "Extending": ("register_noise_model", "WeightNoiseModel", "register_calibration_method"),
    "Errors": ("NabnError",),
}
OPENMMLAB = ("AnalogHook", "AnalogTestLoop", "HardwareAwareTrainingHook", "CompressJPEG")


def write_pages(folder: Path) -> None:
    """Write all pages, leaving those alone that would not change."""
    pages = {
        "noise_models.rst": noise_models(),
        "methods.rst": methods(),
        "api.rst": api(),
        "cli.md": command_line(),
    }
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def noise_models() -> str:
    """Return the page of noise models and presets, each with its docstring: formula, units, source."""
    parts = [
        _title("Noise settings", "="),
        "Every setting has a name for the command line (``--noise NAME:OPTION=VALUE``), a preset for Python "
        "(``nabn.presets``) and configs, and a file in ``configs/_base_/analog``. Settings are joined with ``+`` in "
        "the order in which they act: ``--noise pcm+stuck:p_off=0.01``. The option in bold is the strength that sweeps "
        "and plots go over: at 0 the setting does nothing.\n",
    ]
    for name in preset_names():
        preset = get_preset(name)
        model = NOISE_MODELS.get(name) if name in NOISE_MODELS.names() else preset
        strength = getattr(model, "strength", None)
        facts = f"Preset: ``nabn.presets.{preset.__name__}``. Command line: ``--noise {name}``."
        if strength:
            facts += f" Strength: **{strength}**."
        parts += [_title(name, "-"), facts + "\n", _directive("autoclass", _path(model))]
    parts += [
        _title("In every preset: what happens in the product", "-"),
        "Converters, read noise, output noise and IR drop are options of every preset, whatever its noise model:\n",
        _directive("autoclass", "aihwkit_nabn.simulator.config.noise_preset.NoisePreset"),
    ]
    return "\n".join(parts)


def methods() -> str:
    """Return the page of calibration methods, each with its docstring and what it needs."""
    parts = [
        _title("Calibration methods", "="),
        "mu and v are the mean and variance of a channel over the calibration set; *a* on the chip (analog), *d* in "
        "the digital network on the same images, *r* as trained. All are used as "
        "``nabn.calibrate(analog, images, method=NAME, OPTION=VALUE)``; none needs a label. What each costs and brings "
        "back is in :doc:`../results`, :doc:`../analog_cost` and :doc:`../retraining`.\n",
    ]
    for name in CALIBRATION_METHODS.names():
        method: Any = CALIBRATION_METHODS.get(name)
        needs = ["calibration images" if method.needs_batches else "no images"]
        if method.needs_reference:
            needs.append("the digital model (``reference=``)")
        if method.replaces_statistics:
            needs.append("images through the training augmentation, since it replaces trained statistics")
        facts = f"{method.summary[0].upper()}{method.summary[1:]}. Needs {', '.join(needs)}."
        parts += [_title(name, "-"), facts + "\n", _directive("autoclass", _path(method))]
    return "\n".join(parts)


def api() -> str:
    """Return the page of the public names, those of `aihwkit_nabn.openmmlab` last."""
    parts = [_title("API", "="), "Everything here is imported as ``import aihwkit_nabn as nabn``.\n"]
    for group, names in public_names().items():
        parts.append(_title(group, "-"))
        for name in names:
            thing = getattr(nabn, name)
            kind = "autoclass" if inspect.isclass(thing) else "autofunction"
            parts.append(_directive(kind, _path(thing), "members" if kind == "autoclass" else None))
    parts += [
        _title("OpenMMLab", "-"),
        "Registered by ``custom_imports = dict(imports=['aihwkit_nabn.openmmlab'])``.\n",
    ]
    parts += [_directive("autoclass", f"aihwkit_nabn.openmmlab.{name}") for name in OPENMMLAB]
    parts.append(_directive("autofunction", "aihwkit_nabn.openmmlab.settings.build_methods"))
    return "\n".join(parts)


def public_names() -> dict[str, list[str]]:
    """Return the names of ``aihwkit_nabn.__all__`` by group, each once."""
    left = [name for name in nabn.__all__ if not name.startswith("_") and name != "presets"]
    found: dict[str, list[str]] = {}
    for group in reversed(GROUPS):  # the narrow beginnings stand last
        found[group] = [name for name in left if name.startswith(GROUPS[group])]
        left = [name for name in left if name not in found[group]]
    if left:
        raise ValueError(f"docs/generate.py: public names without a group: {', '.join(left)}")
    return {group: found[group] for group in GROUPS}


def command_line() -> str:
    """Return the page of the commands, as Typer writes it, but with their whole first sentences."""
    command = typer.main.get_command(app)
    for each in command.commands.values():
        each.short_help = (each.help or "").partition("\n\n")[0].replace("\n", " ")
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="nabn", title="Command line")
    return str(text)


def _title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def _directive(kind: str, target: str, *options: str | None) -> str:
    return "\n".join([f".. {kind}:: {target}", *(f"   :{option}:" for option in options if option), ""])


def _path(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
