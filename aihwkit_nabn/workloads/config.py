"""Configs of mmdetection and mmsegmentation: ``FILE.py``, ``mmdet::FILE``, ``mmseg::FILE``."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from aihwkit_nabn.errors import NabnError, check_flag, missing_extra
from aihwkit_nabn.evaluation.plan import EvalFn
from aihwkit_nabn.workloads._base import (
    CHECKPOINT,
    SOURCES,
    WORKLOADS,
    CalibrationRequest,
    LoadSettings,
    Workload,
    WorkloadKind,
    check_source,
)
from aihwkit_nabn.workloads._checks import check_list, check_text

if TYPE_CHECKING:
    from mmengine.config import Config

    from aihwkit_nabn.training import TrainedModel, TrainingNoise
    from aihwkit_nabn.training.recipe import Recipe


def load(
    name: str,
    settings: LoadSettings,
    *,
    checkpoint: str,
    take: str | None = None,
    cfg_options: Sequence[str] = (),
    per_class: bool = False,
) -> Workload:
    """Return a config's model with its data and metrics, as the upstream ``test.py`` puts them together.

    What mmengine and the metrics print goes into ``output.txt`` of the work folder.

    Args:
        name: The config.
        settings: How much of the data.
        checkpoint: File with the weights.
        take: Which weights of a file that holds several, see `AnalogTestLoop`.
        cfg_options: ``KEY=VALUE`` texts that are merged into the config.
        per_class: Report mIoU and box mAP also class by class.

    Raises:
        NabnError: there is no such config, an option does not fit, or the checkpoint does not exist.
        MissingDependencyError: OpenMMLab's packages are not installed.
    """
    config = read_config(name, cfg_options)
    if settings.test_images is not None and config.get("test_dataloader"):  # without one `prepare` has its own word
        config.test_dataloader.dataset.indices = settings.test_images
    return config_workload(config, settings, checkpoint=checkpoint, take=take, per_class=per_class)


def config_workload(
    config: Config, settings: LoadSettings, *, checkpoint: str, take: str | None = None, per_class: bool = False
) -> Workload:
    """Return the workload of a config that has been read.

    Args:
        config: From `read_config`.
        settings: As for `load`, and so are the rest.
        checkpoint: File with the weights.
        take: Which weights of several.
        per_class: Whether metrics are told class by class.

    Raises:
        NabnError: the checkpoint does not exist, or the config cannot be built.
    """
    if "://" not in checkpoint and not Path(checkpoint).is_file():
        raise NabnError(f"checkpoint {checkpoint!r} does not exist")
    return _Config(config, settings, checkpoint, take, per_class).workload()


def read_config(name: str, cfg_options: Sequence[str] = ()) -> Config:
    """Return a config with ``KEY=VALUE`` texts merged into it.

    Raises:
        NabnError: there is no such config, it defines no model, or an option does not fit.
        MissingDependencyError: OpenMMLab's packages are not installed.
    """
    if importlib.util.find_spec("mmengine") is None:
        raise missing_extra("mmengine", "openmmlab")
    from aihwkit_nabn.openmmlab.config import load_config, parse_cfg_options
    from aihwkit_nabn.openmmlab.output import warnings_only

    with warnings_only():
        config = load_config(name, parse_cfg_options(list(cfg_options)))
    if not config.get("model"):
        raise NabnError(f"{name} defines no model, so it is no config; for a function in it write {name}:FUNCTION")
    return config


@dataclass(frozen=True)
class _Config:
    """A config with what the user said."""

    config: Config
    settings: LoadSettings
    checkpoint: str
    take: str | None
    per_class: bool

    def workload(self) -> Workload:
        from mmengine.dist import get_rank

        from aihwkit_nabn.openmmlab.batches import calibration_forward, reference_forward
        from aihwkit_nabn.openmmlab.examples import write_examples
        from aihwkit_nabn.openmmlab.hook import start_test
        from aihwkit_nabn.openmmlab.measure import evaluator_of
        from aihwkit_nabn.openmmlab.output import output_in
        from aihwkit_nabn.openmmlab.run import build_loop, data_setup, from_main_process, prepare

        given = self.settings
        work_dir = None if given.work_dir is None else str(given.work_dir)
        config = prepare(
            self.config, self.checkpoint, work_dir=work_dir, launcher=given.launcher, workers=given.loader_workers
        )
        logs = Path(config.work_dir)
        with output_in(logs), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mmsegmentation's, about defaults of losses that nothing here uses
            loop = build_loop(config, take=self.take)
            model = start_test(loop.runner)
        measure = evaluator_of(loop, fp16=loop.fp16, per_class=self.per_class)

        def eval_fn(candidate: nn.Module) -> dict[str, float]:
            with output_in(logs):
                return dict(measure(candidate))

        def examples(result: Any, arguments: Any, count: int, folder: Path) -> Path:
            return write_examples(result, model, arguments, loop.dataloader.dataset, count, folder)

        return Workload(
            model=model,
            eval_fn=eval_fn,
            calibration=self.calibration,
            forward_fn=calibration_forward,
            reference_forward_fn=reference_forward,
            check_recipe=self.check_recipe,
            train=lambda noise, rpu_config, recipe: self.trained(model, noise, rpu_config, recipe, logs),
            compressed=self.compressed,
            write_examples=examples,
            held_back=lambda count, request: self.held_back(count, request, logs),
            description=(
                f"{self.config.filename} with {self.checkpoint}: {len(loop.dataloader.dataset)} test images; what "
                f"mmengine prints is in {logs}/output.txt",
            ),
            facts={"test_images": len(loop.dataloader.dataset), "setup": {"fp16": loop.fp16, **data_setup(config)}},
            rank=get_rank(),
            broadcast=from_main_process,
        )

    def calibration(self, request: CalibrationRequest) -> Iterable[Any]:
        """Return images of the config's train set."""
        from aihwkit_nabn.openmmlab.batches import calibration_images

        check_source(request.source, SOURCES[:1])
        skips = request.reference_skips
        return calibration_images(self.config, request.images, request.n, request.batch_size, request.seed, skips)

    def held_back(self, count: int, request: CalibrationRequest, logs: Path) -> EvalFn | None:
        """As `Workload.held_back`."""
        from aihwkit_nabn.openmmlab.held_back import measured_on_train_set
        from aihwkit_nabn.openmmlab.output import output_in

        if request.n is None or not self.config.get("train_dataloader"):
            return None
        with output_in(logs):
            config = measured_on_train_set(self.config, count, request.n, request.seed)
        return None if config is None else replace(self, config=config).workload().eval_fn

    def check_recipe(self, recipe: Recipe) -> None:
        """As `Workload.check_recipe`."""
        from aihwkit_nabn.openmmlab.hwa import check_training

        check_training(self.config, recipe.learning_rate)

    def trained(
        self, model: nn.Module, noise: TrainingNoise, rpu_config: Any, recipe: Recipe, logs: Path
    ) -> TrainedModel:
        """Train with mmengine's own runner."""
        from aihwkit_nabn.openmmlab.hwa import train_config
        from aihwkit_nabn.openmmlab.output import output_in

        with output_in(logs):
            return train_config(
                self.config,
                self.checkpoint,
                model,
                noise=noise,
                rpu_config=rpu_config,
                recipe=recipe,
                work_dir=str(logs),
                workers=self.settings.loader_workers,
            )

    def compressed(self, quality: int) -> Workload:
        """Return the same on compressed images."""
        from aihwkit_nabn.openmmlab.jpeg import compress_inputs

        return replace(self, config=compress_inputs(self.config, quality)).workload()


def build(name: str, cfg_options: Sequence[str] = ()) -> nn.Module:
    """Return a config's network with random weights."""
    config = read_config(name, cfg_options)
    from aihwkit_nabn.openmmlab.config import build_digital

    return build_digital(config)


def _texts(field: str, value: object) -> list[str]:
    return list(check_list(field, value, check_text))


_IN_THE_CONFIG = {
    "data": "cfg_options test_dataloader.dataset.data_root=FOLDER and train_dataloader.dataset.data_root=FOLDER",
    "image_size": "the pipelines' own sizes, by cfg_options",
    "device": "CUDA_VISIBLE_DEVICES: mmengine takes the first GPU it sees",
}

WORKLOADS.register("config")(
    WorkloadKind(
        load=load,
        options={CHECKPOINT: check_text, "take": check_text, "cfg_options": _texts, "per_class": check_flag},
        required=(CHECKPOINT,),
        instead=_IN_THE_CONFIG,
        build=build,
    )
)
