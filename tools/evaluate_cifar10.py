"""Evaluate a trained ResNet-20 on a CIFAR-10 subset: every calibration method, with plain and with augmented images.

Ten chips in eight noise settings, calibration on 256 training images, accuracy on all test images. Every measurement is
written to ``records.jsonl`` as it comes; ``--resume`` goes on from there.

Run: ``python tools/evaluate_cifar10.py --data-root ../shared/data``
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.commands._evaluation import check_out, show_result, split_names
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import UnknownNameError
from aihwkit_nabn.evaluation import MethodSpec, Scenario
from aihwkit_nabn.evaluation.methods import AUGMENTED, PLAIN, method_specs
from aihwkit_nabn.evaluation.settings import setup_of
from aihwkit_nabn.results import UNCALIBRATED, RecordLog
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings, load_workload
from aihwkit_nabn.workloads.cifar10 import FOLDER

_OTHER_PRESETS = {
    "hermes-1d": ("hermes", "1d"),
    "reram-wan-1d": ("reram_wan", "1d"),
    "reram-cmo-1d": ("reram_cmo", "1d"),
    "stuck": ("stuck", "0s"),
    "thermal": ("thermal", "0s"),
    "temperature": ("temperature", "0s"),
    "reference-current": ("reference_current", "0s"),
    "variational": ("variational", "0s"),
    "read-noise": ("gaussian:sigma=0,w_noise=0.0175", "0s"),
    "8-bit": ("gaussian:sigma=0,inp_bits=8,out_bits=8,out_noise=0.04", "0s"),
    "crossbar-1d": ("crossbar", "1d"),
    "crossbar-1y": ("crossbar", "1y"),
    "pcm+stuck-1d": ("pcm+stuck", "1d"),
}


def _gaussian(kind: str, sigma: float, relative_to: str) -> tuple[str, dict[str, Any]]:
    preset = f"gaussian:sigma={sigma},relative_to={relative_to}"
    return preset, {"name": f"{kind} {sigma:.2f}", "group": f"{kind} noise", "strength": sigma}


# The preset of each setting, and what else its scenario is made of.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"additive-{sigma:.2f}": _gaussian("additive", sigma, "max") for sigma in (0.02, 0.06, 0.10)},
    **{f"multiplicative-{sigma:.1f}": _gaussian("multiplicative", sigma, "weight") for sigma in (0.1, 0.3)},
    **{
        f"pcm-{time}": ("pcm", {"name": f"PCM, {text}", "t_inference": time, "group": "PCM"})
        for time, text in (("1h", "1 hour"), ("1d", "1 day"), ("1y", "1 year"))
    },
}
DEFAULT = tuple(SETTINGS)
SETTINGS |= {
    key: (preset, {"name": key, "t_inference": time, "group": key}) for key, (preset, time) in _OTHER_PRESETS.items()
}
PRESETS = ("additive-0.06", "multiplicative-0.3", "pcm-1d", *_OTHER_PRESETS)


def choose_scenarios(names: list[str]) -> list[Scenario]:
    """Return the scenarios of these settings; ``presets`` stands for one of every preset.

    Raises:
        UnknownNameError: there is no such setting.
    """
    for name in names:
        if name not in (*SETTINGS, "presets"):
            raise UnknownNameError("setting", name, [*SETTINGS, "presets"])
    keys = [key for name in names or DEFAULT for key in (PRESETS if name == "presets" else (name,))]
    chosen = [SETTINGS[key] for key in dict.fromkeys(keys)]
    return [Scenario(rpu_config=parse_preset(preset), **options) for preset, options in chosen]


def choose_methods(names: list[str]) -> list[MethodSpec]:
    """Return the methods, those that need calibration images once with plain and once with augmented ones."""
    specs = []
    for spec in method_specs(names or ["all"]):
        label = spec.label or spec.method
        if spec.method == UNCALIBRATED:
            specs.append(replace(spec, label="uncalibrated"))
        elif CALIBRATION_METHODS.get(spec.method).needs_batches:
            for images in (PLAIN, AUGMENTED):
                specs.append(replace(spec, batches=images, label=f"{label}, {images}"))
        else:
            specs.append(replace(spec, label=label))
    return specs


app = typer.Typer(name="evaluate_cifar10", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    data_root: Annotated[Path, typer.Option(help=f"Folder that holds {FOLDER}/.")],
    out: Annotated[Path, typer.Option(help="Folder for records, table, plot.")] = Path("nabn_results/cifar10"),
    chips: Annotated[int, typer.Option(min=1)] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first chip and of the choice of images.")] = 0,
    methods: Annotated[str, typer.Option(help="Comma-separated; default: every registered method.")] = "",
    settings: Annotated[str, typer.Option(help=f"Comma-separated; default: {','.join(DEFAULT)}. Also: presets.")] = "",
    calibration_images: Annotated[int, typer.Option(min=1, help="Unlabelled images, from the train set.")] = 256,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run in --out stopped.")] = False,
) -> None:
    """Evaluate ResNet-20 on a CIFAR-10 subset with every calibration method, plain and augmented images."""
    scenarios, specs = choose_scenarios(split_names(settings)), choose_methods(split_names(methods))
    workload = load_workload("cifar10", LoadSettings(seed=seed), data=str(data_root))
    request = CalibrationRequest(n=calibration_images, seed=seed)
    setup = setup_of(workload.model, seed=seed, calibration_images=calibration_images)
    with RecordLog(check_out(out) / "records.jsonl", setup, resume=resume) as log:
        result = workload.evaluate(scenarios, specs, request, chips=chips, record_file=log)
    show_result(Console(), result, out)


if __name__ == "__main__":
    sys.exit(run(app))
