"""`nabn compare`: calibration without labels against hardware-aware training with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from aihwkit_nabn.training.comparison import NoiseSetting

CALIBRATION_IMAGES = 256
CALIBRATION_BATCH = 64
TEST_BATCH = 150
TRAINING_BATCH = 64
# Chosen on the validation split: 1.5 standard deviations, where the recipe of aihwkit's notebook has 2, helped training
# most; more epochs did not.
LEARNING_RATE, CLIP_SIGMA = 0.1, 1.5
FASTER = {"distill": {"steps": 30}}
TIMES = (("1s", "1 second"), ("1h", "1 hour"), ("1d", "1 day"), ("1y", "1 year"), ("10y", "10 years"))
TRAINED_AT = "1d"


def noise_settings(
    strengths: Iterable[float], times: Iterable[tuple[str, str]], trained_at: str = TRAINED_AT
) -> list[NoiseSetting]:
    """Return additive noise of these strengths, each a setting of its own, and PCM at these times, one setting.

    Args:
        strengths: Fractions of the layer's largest weight.
        times: Each time after programming, and how tables write it.
        trained_at: The time whose noise a network for PCM is trained at.
    """
    from aihwkit_nabn.evaluation import Scenario
    from aihwkit_nabn.simulator import build_preset
    from aihwkit_nabn.training.comparison import NoiseSetting

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


def command(
    out: Annotated[Path, typer.Option(help="Folder for table, plot, numbers and trained networks.")] = Path(
        "nabn_results/compare"
    ),
    chips: Annotated[int, typer.Option(min=1, help="Chips per noise setting.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first chip, and of the training.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each hardware-aware training.")] = 20,
    methods: Annotated[
        str, typer.Option(help="Calibration methods, separated by commas; all for every one.")
    ] = "population,paired,distill",
    quick: Annotated[bool, typer.Option("--quick", help="Two noise settings instead of four.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run in --out stopped.")] = False,
) -> None:
    """Compare calibration with aihwkit's hardware-aware training, and both together, on the embedded digits."""
    from rich.console import Console
    from torch import Tensor

    from aihwkit_nabn.commands._compare import Bench, Comparison
    from aihwkit_nabn.commands._evaluation import AUGMENTED, PLAIN, check_out, method_specs, show_result, split_names
    from aihwkit_nabn.commands.demo import one_thread
    from aihwkit_nabn.data.classification import accuracy_on, image_batches
    from aihwkit_nabn.data.digits import load_demo_model, load_digits, shift_images
    from aihwkit_nabn.evaluation import MethodSpec
    from aihwkit_nabn.reporting import print_price
    from aihwkit_nabn.seeding import derive_seed
    from aihwkit_nabn.training import TrainedModel, TrainingNoise, train_hardware_aware
    from aihwkit_nabn.training.comparison import contenders

    specs = [
        MethodSpec(spec.method, batches=spec.batches, options=FASTER.get(spec.method, {}))
        for spec in method_specs(split_names(methods))
    ]
    after = [spec for spec in specs if spec.method in ("none", "paired", "distill")]
    settings = noise_settings((0.10,) if quick else (0.02, 0.06, 0.10), TIMES[2:4] if quick else TIMES)
    listed = contenders(specs, after)
    console = Console()
    model, train, test = load_demo_model(), load_digits("train"), load_digits("test")
    images = train.shuffled(seed).first(CALIBRATION_IMAGES).images

    def shifted(epoch: int) -> list[tuple[Tensor, Tensor]]:
        data = train.shuffled(derive_seed(seed, "training order", epoch))
        moved = shift_images(data.images, seed=derive_seed(seed, "training shift", epoch))
        return list(zip(moved.split(TRAINING_BATCH), data.labels.split(TRAINING_BATCH), strict=True))

    recipe: dict[str, Any] = {"epochs": epochs, "learning_rate": LEARNING_RATE, "clip_sigma": CLIP_SIGMA, "seed": seed}

    def trained(noise: TrainingNoise, rpu_config: Any) -> TrainedModel:
        return train_hardware_aware(model, shifted, noise=noise, rpu_config=rpu_config, **recipe)

    bench = Bench(
        model=model,
        eval_fn=accuracy_on(test, batch_size=TEST_BATCH),
        calibration_batches={
            PLAIN: image_batches(images, CALIBRATION_BATCH),
            AUGMENTED: image_batches(shift_images(images, seed=derive_seed(seed, "shift")), CALIBRATION_BATCH),
        },
        train=trained,
        recipe=recipe,
    )
    console.print(
        f"A network that reads handwritten digits goes on {chips} simulated analog chips per noise setting: as it "
        f"came, calibrated with {len(images)} images without labels, and after hardware-aware training (HWA) with all "
        f"{len(train)} training images and their labels, at the right noise and at wrong ones. Accuracy is measured on "
        f"{len(test)} other images, always on the same chips.",
        highlight=False,
    )
    comparison = Comparison(
        bench, settings, listed, out=check_out(out), setup={"seed": seed, "methods": methods}, resume=resume
    )
    with one_thread():
        result = comparison.run(console, [seed + index for index in range(chips)])
    print_price(result, console)
    show_result(console, result, out)
