"""Compare calibration with hardware-aware training on ResNet-20 and a CIFAR-10 subset.

Networks are trained once each and kept in ``OUT/trained``; measurements are kept record by record in
``OUT/records.jsonl``. An interrupted run goes on with ``--resume``; more chips can be added the same way.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from aihwkit_nabn.commands._compare import Bench, Comparison
from aihwkit_nabn.commands._evaluation import check_out, numbers, show_result, split_names
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.commands.compare import noise_settings
from aihwkit_nabn.data.cifar import crop_and_flip, load_cifar_subset, normalise
from aihwkit_nabn.data.classification import ImageSet, accuracy_on, image_batches
from aihwkit_nabn.data.resnet_cifar import load_resnet20
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation.methods import AUGMENTED, PLAIN, method_specs
from aihwkit_nabn.reporting import print_price
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.training import TrainedModel, TrainingNoise, train_hardware_aware
from aihwkit_nabn.training.comparison import contenders

FOLDER = "cifar10_subset"
IMAGES, WEIGHTS = "cifar10_subset.npz", "resnet20_cifar10.pth"
STRENGTHS = (0.02, 0.06, 0.10)
TIMES = (("1s", "1 second"), ("1h", "1 hour"), ("1d", "1 day"), ("1y", "1 year"), ("10y", "10 years"))
TRAINING_BATCH = 64
VALIDATION = 500  # training images kept apart with --validate

app = typer.Typer(name="compare_hwa", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    data_root: Annotated[Path, typer.Option(help=f"Folder that holds {FOLDER}/.")],
    out: Annotated[Path, typer.Option(help="Folder for records, networks, table, plot.")] = Path(
        "nabn_results/compare_cifar10"
    ),
    chips: Annotated[int, typer.Option(min=1)] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first chip, the images and the training.")] = 0,
    methods: Annotated[
        str, typer.Option(help="Separated by commas, for the network as it came.")
    ] = "population,paired",
    after: Annotated[str, typer.Option(help="The same, for the network after training.")] = "paired",
    strengths: Annotated[str, typer.Option(help="Additive noise, separated by commas; empty: none.")] = ",".join(
        map(str, STRENGTHS)
    ),
    pcm: Annotated[bool, typer.Option(help="Phase-change memory, 1 second to 10 years.")] = True,
    wrong: Annotated[str, typer.Option(help="Wrong noise: factors on the right one.")] = "0.25",
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    learning_rate: Annotated[float, typer.Option(min=1e-6)] = 0.01,
    clip_sigma: Annotated[float, typer.Option(min=0.1)] = 2.0,
    samples: Annotated[int, typer.Option(min=1, help="Calibration images.")] = 256,
    calibration_batch: Annotated[int, typer.Option(min=1, help="Calibration images per batch.")] = 64,
    test_batch: Annotated[int, typer.Option(min=1, help="Test images per batch.")] = 233,
    validate: Annotated[
        bool,
        typer.Option("--validate", help=f"Measure on {VALIDATION} training images kept apart: to choose settings."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run in --out stopped.")] = False,
) -> None:
    """Compare calibration with hardware-aware training on ResNet-20 and a CIFAR-10 subset, on the same chips."""
    settings = noise_settings(numbers("strengths", strengths), TIMES if pcm else ())
    if not settings:
        raise NabnError("there is no noise setting: give strengths, or leave out --no-pcm")
    listed = contenders(method_specs(split_names(methods)), method_specs(split_names(after)), numbers("wrong", wrong))
    train, test = load_cifar_subset(data_root / FOLDER / IMAGES)
    model = load_resnet20(data_root / FOLDER / WEIGHTS)
    if validate:
        shuffled = train.shuffled(derive_seed(seed, "validation"))
        count = min(VALIDATION, len(train) // 2)
        test, train = (
            ImageSet(images=shuffled.images[part], labels=shuffled.labels[part])
            for part in (slice(0, count), slice(count, None))
        )
    test = ImageSet(images=normalise(test.images), labels=test.labels)
    images = train.shuffled(derive_seed(seed, "calibration images")).first(samples).images
    sets = {PLAIN: images, AUGMENTED: crop_and_flip(images, seed=derive_seed(seed, "augmentation"))}
    recipe: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "clip_sigma": clip_sigma,
        "seed": seed,
    }

    def augmented(epoch: int) -> list[tuple[Tensor, Tensor]]:
        data = train.shuffled(derive_seed(seed, "training order", epoch))
        moved = normalise(crop_and_flip(data.images, seed=derive_seed(seed, "training augmentation", epoch)))
        return list(zip(moved.split(TRAINING_BATCH), data.labels.split(TRAINING_BATCH), strict=True))

    def trained(noise: TrainingNoise, rpu_config: Any) -> TrainedModel:
        return train_hardware_aware(model, augmented, noise=noise, rpu_config=rpu_config, **recipe)

    bench = Bench(
        model=model,
        eval_fn=accuracy_on(test, batch_size=test_batch),
        calibration_batches={name: image_batches(normalise(each), calibration_batch) for name, each in sets.items()},
        train=trained,
        recipe=recipe,
    )
    setup = {
        "seed": seed,
        "samples": samples,
        "calibration_batch": calibration_batch,
        "test_batch": test_batch,
        "validate": validate,
        "torch": str(torch.__version__),
    }
    console = Console()
    comparison = Comparison(bench, settings, listed, out=check_out(out), setup=setup, resume=resume)
    result = comparison.run(console, [seed + index for index in range(chips)])
    print_price(result, console)
    show_result(console, result, out)


if __name__ == "__main__":
    sys.exit(run(app))
