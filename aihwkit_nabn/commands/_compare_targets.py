"""What `nabn compare` compares, for each kind of target: a network, its images, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aihwkit_nabn.commands._compare import Bench
from aihwkit_nabn.evaluation.methods import AUGMENTED, PLAIN
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.training import TrainedModel, TrainingNoise, train_hardware_aware

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import Tensor

    from aihwkit_nabn.targets import TargetOptions

CALIBRATION_IMAGES, CALIBRATION_BATCH = 256, 64
TEST_BATCH = 150
TRAINING_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; see `train_hardware_aware`.

    Attributes:
        epochs: Passes over the training set.
        learning_rate: At the start; None: a tenth of what the config trains with.
        clip_sigma: Weights are clipped at so many standard deviations of their layer.
        seed: Of everything drawn.
    """

    epochs: int
    learning_rate: float | None
    clip_sigma: float
    seed: int


def digits_bench(recipe: Recipe) -> tuple[Bench, list[str]]:
    """Return the embedded digits, and lines that say what is compared."""
    from aihwkit_nabn.data.classification import accuracy_on, image_batches
    from aihwkit_nabn.data.digits import load_demo_model, load_digits, shift_images

    seed = recipe.seed
    model, train, test = load_demo_model(), load_digits("train"), load_digits("test")
    images = train.shuffled(seed).first(CALIBRATION_IMAGES).images

    def shifted(epoch: int) -> list[tuple[Tensor, Tensor]]:
        data = train.shuffled(derive_seed(seed, "training order", epoch))
        moved = shift_images(data.images, seed=derive_seed(seed, "training shift", epoch))
        return list(zip(moved.split(TRAINING_BATCH), data.labels.split(TRAINING_BATCH), strict=True))

    bench = Bench(
        model=model,
        eval_fn=accuracy_on(test, batch_size=TEST_BATCH),
        calibration_batches={
            PLAIN: image_batches(images, CALIBRATION_BATCH),
            AUGMENTED: image_batches(shift_images(images, seed=derive_seed(seed, "shift")), CALIBRATION_BATCH),
        },
        train=_trainer(model, shifted, recipe),
        recipe=dict(vars(recipe)),
    )
    lines = [
        f"A network that reads handwritten digits. Calibration takes {len(images)} images without labels, "
        f"hardware-aware training all {len(train)} training images with theirs, and accuracy is measured on "
        f"{len(test)} others."
    ]
    return bench, lines


def torchvision_bench(target: str, options: TargetOptions, recipe: Recipe) -> tuple[Bench, list[str]]:
    """Return a ``KIND:NAME`` target with its images, and lines that say what is compared.

    Raises:
        NabnError: as for `load_target`, or the target has no labels to train with.
    """
    from aihwkit_nabn.errors import NabnError
    from aihwkit_nabn.targets import load_target

    task = load_target(target, options)
    if task.training_batches is None:
        raise NabnError(f"target {target!r} gives no labelled images to train with")
    bench = Bench(
        model=task.model,
        eval_fn=task.eval_fn,
        calibration_batches=task.calibration_batches,
        forward_fn=task.forward_fn,
        train=_trainer(task.model, task.training_batches, recipe),
        recipe=dict(vars(recipe)),
    )
    return bench, [*task.description, "hardware-aware training with all training images and their labels"]


def openmmlab_bench(
    config: Config,
    checkpoint: str,
    recipe: Recipe,
    *,
    noises: Sequence[str],
    times: Sequence[str],
    methods: Sequence[str | dict[str, Any]],
    limit: int | None,
    max_samples: int,
    batch_size: int | None,
    workers: int | None,
    take: str | None,
    work_dir: Path,
) -> tuple[Bench, list[str]]:
    """Return a config's model with its data, and lines that say what is compared.

    Raises:
        NabnError: as for `prepare` and `check_training`.
    """
    from aihwkit_nabn.commands._openmmlab import measured_by_config
    from aihwkit_nabn.openmmlab.hwa import check_training, train_config
    from aihwkit_nabn.openmmlab.output import output_in
    from aihwkit_nabn.openmmlab.run import TestRun

    logs = work_dir / "logs"
    check_training(config, recipe.learning_rate)
    run = TestRun(
        checkpoint=checkpoint,
        noises=noises,
        times=times,
        methods=methods,
        seed=recipe.seed,
        max_samples=max_samples,
        batch_size=batch_size,
        workers=workers,
        take=take,
        work_dir=str(logs),
    )
    arguments = measured_by_config(config, run, limit=limit)
    model = arguments["model"]

    def train(noise: TrainingNoise, rpu_config: Any) -> TrainedModel:
        options: dict[str, Any] = {"workers": workers, "work_dir": str(logs), **vars(recipe)}
        with output_in(logs):
            return train_config(config, checkpoint, model, noise=noise, rpu_config=rpu_config, **options)

    lines = [
        f"{config.filename} with {checkpoint}: at most {max_samples} calibration images without labels; "
        "hardware-aware training with all training images and their labels; "
        f"what mmengine prints is in {logs}/output.txt"
    ]
    return Bench(train=train, recipe=dict(vars(recipe)), **arguments), lines


def _trainer(model: Any, batches: Callable[[int], Any], recipe: Recipe) -> Callable[[TrainingNoise, Any], TrainedModel]:
    def train(noise: TrainingNoise, rpu_config: Any) -> TrainedModel:
        options: dict[str, Any] = vars(recipe)
        return train_hardware_aware(model, batches, noise=noise, rpu_config=rpu_config, **options)

    return train
