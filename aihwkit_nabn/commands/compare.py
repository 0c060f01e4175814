"""`nabn compare`: calibration without labels against hardware-aware training with them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aihwkit_nabn.commands import _options as opt
from aihwkit_nabn.errors import NabnError

if TYPE_CHECKING:
    from aihwkit_nabn.evaluation import MethodSpec
    from aihwkit_nabn.studies.contenders import Contender, NoiseSetting

DIGITS = "digits"
# Of the digits, chosen on the validation split: 1.5 standard deviations, where the recipe of aihwkit's notebook has 2,
# helped training most; more epochs did not.
DIGITS_RECIPE = {"epochs": 20, "learning_rate": 0.1, "clip_sigma": 1.5}
OTHERS_RECIPE = {"epochs": 5, "learning_rate": 0.01, "clip_sigma": 2.5}
DIGITS_METHODS, OTHERS_METHODS = "population,paired,distill", "population,paired"
AFTER_TRAINING = ("none", "population", "paired", "common_mode", "low_rank", "auto", "distill")
TIMES = (("1s", "1 second"), ("1h", "1 hour"), ("1d", "1 day"), ("1y", "1 year"), ("10y", "10 years"))
TRAINED_AT = "1d"


def noise_settings(
    strengths: Iterable[float], times: Iterable[tuple[str, str]], trained_at: str = TRAINED_AT
) -> list[NoiseSetting]:
    """Return additive noise of these strengths, each a setting of its own, and PCM at these times, one setting.

    Strengths are fractions of the layer's largest weight; each time stands with how tables write it.
    """
    from aihwkit_nabn.evaluation import Scenario
    from aihwkit_nabn.simulator import build_preset
    from aihwkit_nabn.studies.contenders import NoiseSetting

    settings = []
    for sigma in strengths:
        config = build_preset("gaussian", sigma=sigma, relative_to="max")
        name = f"additive {sigma:.2f}"
        scenario = Scenario(name=name, rpu_config=config, group="additive weight noise", strength=sigma)
        settings.append(NoiseSetting(name=name, scenarios=(scenario,)))
    pcm = tuple(
        Scenario(
            name=f"PCM, {text}", rpu_config=build_preset("pcm"), t_inference=time, group="phase-change memory (PCM)"
        )
        for time, text in times
    )
    if pcm:
        settings.append(NoiseSetting(name="PCM", scenarios=pcm, trained_at=trained_at))
    return settings


def settings_of_noise(noises: Sequence[str], times: Sequence[str], trained_at: str | None = None) -> list[NoiseSetting]:
    """Return one setting per noise, to be measured at these times, trained at the first of them by default.

    Raises:
        NabnError: a preset or a time is unknown, malformed, out of range or given twice.
    """
    from aihwkit_nabn.evaluation.scenario import scenarios_by_noise
    from aihwkit_nabn.simulator import parse_preset
    from aihwkit_nabn.studies.contenders import NoiseSetting
    from aihwkit_nabn.times import parse_time

    moment = parse_time(times[0] if trained_at is None else trained_at)
    configs = [(noise, parse_preset(noise)) for noise in noises]
    parts = scenarios_by_noise(configs, [parse_time(time) for time in times])
    names = [scenario.name for part in parts for scenario in part]
    for name in names:  # `evaluate` sees one at a time and would not notice
        if names.count(name) > 1:
            raise NabnError(f"noise and time must differ, got {name!r} twice")
    return [
        NoiseSetting(name=noise, scenarios=tuple(part), trained_at=moment)
        for noise, part in zip(noises, parts, strict=True)
    ]


def _listed(specs: Sequence[MethodSpec], wrong: Sequence[float]) -> list[Contender]:
    """Return what is compared: these methods, and after training those that can gain there."""
    from aihwkit_nabn.studies.contenders import contenders

    return contenders(specs, [spec for spec in specs if spec.method in AFTER_TRAINING], wrong)


def command(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="[TARGET]",
            help="FILE.py:FUNCTION of your own, timm:NAME, torchvision:NAME, transformers:FOLDER, a config of "
            "mmdetection or mmseg; "
            "default: the embedded digits.",
        ),
    ] = DIGITS,
    checkpoint: opt.Checkpoint = None,
    noise: Annotated[
        list[str] | None,
        typer.Option(help="Noise, e.g. pcm or gaussian:sigma=0.06; can be repeated; digits have a set of their own."),
    ] = None,
    time: Annotated[
        list[str] | None, typer.Option(help="Time after programming; can be repeated; default: 1d.")
    ] = None,
    trained_at: Annotated[
        str | None, typer.Option(help="Train for the noise at this time; default: the first --time.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for table, plot, numbers, trained networks; default: nabn_results/compare[_TARGET]."),
    ] = None,
    chips: opt.Chips = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first chip, the images and the training.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each hardware-aware training; default: 20 (digits) or 5.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=1e-9, help="Initial learning rate; default: 0.1 (digits), 0.01, or a tenth of the config's."),
    ] = None,
    clip_sigma: Annotated[
        float | None,
        typer.Option(min=0.1, help="Clip weights at this many standard deviations; default: 1.5 (digits) or 2.5."),
    ] = None,
    wrong: Annotated[
        str, typer.Option(help="Also train at wrong noise: factors of the right one, separated by commas.")
    ] = "0.25,2",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Calibration methods, separated by commas, with options: paired,distill:steps=20; or all; default: "
            f"{DIGITS_METHODS} (digits) or {OTHERS_METHODS}."
        ),
    ] = None,
    data: opt.Data = None,
    batch_size: opt.BatchSize = None,
    calibration_images: opt.CalibrationImages = 256,
    test_images: opt.TestImages = None,
    image_size: opt.ImageSize = None,
    ignore_index: opt.IgnoreIndex = None,
    crop_pct: opt.CropPct = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    interpolation: opt.Interpolation = None,
    model_arg: opt.ModelArg = None,
    take: opt.Take = None,
    loader_workers: opt.LoaderWorkers = None,
    device: opt.Device = None,
    cfg_options: opt.CfgOptions = None,
    extension: opt.Extension = None,
    quick: Annotated[bool, typer.Option("--quick", help="Digits: two noise settings instead of four.")] = False,
    jobs: opt.Jobs = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue an earlier run in --out, also with more noise, times and chips."),
    ] = False,
) -> None:
    """Compare calibration with aihwkit's hardware-aware training, and both together, on the same chips."""
    from rich.console import Console

    from aihwkit_nabn.commands._evaluation import (
        check_out,
        folder_name,
        numbers,
        show_result,
        split_names,
        without_impossible,
    )
    from aihwkit_nabn.commands._workload import describe, import_extensions, run_logged, workload_source
    from aihwkit_nabn.commands.demo import one_thread, with_fewer_steps
    from aihwkit_nabn.evaluation.methods import method_specs
    from aihwkit_nabn.reporting import print_price
    from aihwkit_nabn.studies.retraining import RetrainingStudy
    from aihwkit_nabn.training.recipe import Recipe
    from aihwkit_nabn.workloads import CalibrationRequest, is_config

    imports = import_extensions(extension)
    digits = target == DIGITS
    names = methods or (DIGITS_METHODS if digits else OTHERS_METHODS)
    specs = method_specs(split_names(names))
    specs = with_fewer_steps(specs) if digits else specs
    factors = numbers("wrong", wrong)
    listed = _listed(specs, factors)
    defaults = DIGITS_RECIPE if digits else OTHERS_RECIPE
    recipe = Recipe(
        epochs=int(epochs or defaults["epochs"]),
        learning_rate=learning_rate if is_config(target) else learning_rate or defaults["learning_rate"],
        clip_sigma=clip_sigma or defaults["clip_sigma"],
        seed=seed,
    )
    if digits and not noise:
        if time or trained_at:
            raise NabnError("--time and --trained-at go with --noise; without it the digits have a set of their own")
        settings = noise_settings((0.10,) if quick else (0.02, 0.06, 0.10), TIMES[2:4] if quick else TIMES)
    elif quick:
        raise NabnError("--quick is for the embedded digits' own set; give fewer --noise and --chips")
    elif not noise:
        raise NabnError("--noise is missing: what the chips do, e.g. --noise pcm or --noise gaussian:sigma=0.06")
    else:
        settings = settings_of_noise(noise, time or ["1d"], trained_at)
    folder = out or Path("nabn_results") / ("compare" if digits else f"compare_{folder_name(target)}")
    source = workload_source(target, ctx.params, folder)
    study = RetrainingStudy(
        source,
        settings,
        listed,
        chips=chips,
        request=CalibrationRequest(n=calibration_images, seed=seed, batch_size=batch_size),
        recipe=recipe,
        out=folder,
        resume=resume,
        imports=imports,
    )
    # Not the noises and times: more of them can be asked for later.
    setup: dict[str, Any] = {"seed": seed, "methods": names, "recipe": vars(recipe)}
    setup |= {"max_samples": calibration_images, "limit": test_images, "batch_size": batch_size}
    if noise:
        setup |= {"trained_at": trained_at or (time or ["1d"])[0]}
    if not digits:
        setup |= {"target": target, "weights": checkpoint, "cfg_options": cfg_options, "take": take}
        setup |= {"data": data, "image_size": image_size}
    if ignore_index is not None:
        setup |= {"ignore_index": ignore_index}
    console = Console(file=sys.stdout)  # this one also while mmengine's output goes elsewhere
    check_out(folder)
    describe(console, study.workload)
    study.listed = _listed(without_impossible(console, specs, study.workload, methods), factors)
    console.print(
        f"{chips} chips per noise setting, the same for every row: the network as it came; calibrated with up to "
        f"{calibration_images} unlabelled images; after hardware-aware training (HWA) with all training images and "
        "their labels, at the right noise and at wrong noise; and after both.",
        highlight=False,
    )
    scenarios = [scenario for setting in study.settings for scenario in setting.scenarios]
    with one_thread() if digits else contextlib.nullcontext():
        log = run_logged(study, console, folder / "records.jsonl", setup, ctx.params, scenarios)
        result = study.result(log)
    print_price(result, console)
    show_result(console, result, folder)
