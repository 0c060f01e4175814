"""Calibration batches: images of the config's train set, without labels, through the pipeline that suits the method."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseTTAModel
from mmengine.registry import DATASETS, DefaultScope
from torch import nn
from torch.utils.data import DataLoader, Subset

from aihwkit_nabn.errors import CalibrationError
from aihwkit_nabn.evaluation.methods import PLAIN
from aihwkit_nabn.openmmlab.config import pipelines_in, type_name
from aihwkit_nabn.openmmlab.passes import TESTED, calibration_pass, run_pass
from aihwkit_nabn.seeding import derive_seed, private_rng

# Transforms of a test pipeline that only the metric needs: calibration sees no label. Upstream's loaders of labels:
# LoadAnnotations, LoadPanopticAnnotations, LoadBiomedicalAnnotation, LoadDepthAnnotation, ...
_LABELS = re.compile(r"Load\w*Annotations?|LoadProposals|FilterAnnotations")


class CalibrationImages:
    """Batches as the model's `data_preprocessor` takes them; the same ones each time they are run through.

    Args:
        cfg: The config, with a ``train_dataloader``.
        name: ``"plain"`` for the test pipeline, ``"augmented"`` for the training pipeline.
        max_samples: Number of images, drawn without replacement; None takes all.
        batch_size: Images per batch; None: as the train set's loader has it.
        seed: Which images, in which order, with which augmentation.
        skips: Types of transforms to take out of the pipeline.

    Raises:
        CalibrationError: the config has no train set, its files are not there, or it has no transform to skip.
    """

    same_on_all_ranks = True  # every rank reads the same images, so there is nothing to gather

    def __init__(
        self,
        cfg: Any,
        name: str,
        max_samples: int | None,
        batch_size: int | None,
        seed: int,
        skips: Sequence[str] = (),
    ) -> None:
        loader = cfg.get("train_dataloader")
        if not loader or not loader.get("dataset"):
            raise CalibrationError("the config has no train_dataloader with a dataset to take calibration images from")
        dataset = copy.deepcopy(loader["dataset"])
        if name == PLAIN:
            dataset = with_test_pipeline(dataset, _test_pipeline(cfg))
        for kind in skips:
            _leave_out(dataset, kind)
        self.seed = derive_seed(seed, "calibration images", name)
        self.dataset = _build(dataset, cfg.get("default_scope"))
        total = len(self.dataset)
        n = total if max_samples is None else min(max_samples, total)
        order = np.random.default_rng(derive_seed(seed, "calibration images")).permutation(total)[:n]
        self.indices = [int(i) for i in order]
        self.batch_size = batch_size or loader.get("batch_size") or 1

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        loader = DataLoader(
            Subset(self.dataset, self.indices), batch_size=self.batch_size, collate_fn=pseudo_collate, num_workers=0
        )
        with private_rng(self.seed, torch_only=False):  # a loader draws a seed for its workers
            iterator = iter(loader)
        for number in range(len(self)):
            # Augmentation draws from the global generators: seeded per batch, whatever the model draws in between.
            with private_rng(derive_seed(self.seed, number), torch_only=False):
                batch = next(iterator)
            yield batch


class Twins(NamedTuple):
    """One batch twice: what the digital model sees, and what the chip sees."""

    reference: Any
    chip: Any


class TwinImages:
    """Calibration images of which the reference sees a twin: the same images, some transforms left out.

    Args:
        reference: What the digital model sees.
        chip: What the chip sees.
    """

    same_on_all_ranks = True

    def __init__(self, reference: CalibrationImages, chip: CalibrationImages) -> None:
        self.reference, self.chip = reference, chip

    def __len__(self) -> int:
        return len(self.chip)

    def __iter__(self) -> Iterator[Twins]:
        return map(Twins, self.reference, self.chip)


def calibration_images(
    cfg: Any, name: str, max_samples: int | None, batch_size: int | None, seed: int, skips: Sequence[str] = ()
) -> CalibrationImages | TwinImages:
    """Return calibration images, of which the reference sees a twin where there are transforms that it skips.

    Arguments and errors are those of `CalibrationImages`; `skips` are transforms that only the chip's images go
    through, such as ``CompressJPEG``.
    """
    images = CalibrationImages(cfg, name, max_samples, batch_size, seed)
    if not skips:
        return images
    return TwinImages(CalibrationImages(cfg, name, max_samples, batch_size, seed, skips), images)


def calibration_forward(model: nn.Module, batch: Any) -> Any:
    """Run a detector or segmentor on a calibration batch as it is tested; labels in the batch are not looked at.

    That is ``mode='predict'``. Its post-processing is left out, by ``mode='tensor'``, where that calls every layer as
    often: tried once per network, on the first batch, see `calibration_pass`. Several networks have no such pass
    (YOLACT, Sparse R-CNN, Mask2Former); in others it leaves layers out (PointRend) or takes an image whole that is
    tested in windows.

    Args:
        model: The network, or test-time augmentation around it.
        batch: As its `data_preprocessor` takes it.

    Returns:
        What that pass returns: data samples with predictions, or the heads' tensors.
    """
    # Test-time augmentation wraps the network, and itself has no forward pass.
    network: Any = model.module if isinstance(model, BaseTTAModel) else model
    data = network.data_preprocessor(batch.chip if isinstance(batch, Twins) else batch, False)
    return run_pass(network, data, calibration_pass(network, data))


def _images(network: Any, batch: Any) -> list[Any]:
    """Return a batch image by image, where that is how `calibration_forward` runs it."""
    if isinstance(batch, Twins):
        parts = [_images(network, half) for half in batch]
        return [Twins(*pair) for pair in zip(*parts, strict=True)]
    network = network.module if isinstance(network, BaseTTAModel) else network
    inputs, samples = (batch.get(key) if isinstance(batch, dict) else None for key in ("inputs", "data_samples"))
    if not (isinstance(inputs, list) and isinstance(samples, list) and len(inputs) == len(samples) > 1):
        return [batch]
    if calibration_pass(network, network.data_preprocessor(batch, False)) != TESTED:
        return [batch]
    pairs = zip(inputs, samples, strict=True)
    return [{**batch, "inputs": [image], "data_samples": [sample]} for image, sample in pairs]


calibration_forward.separate = _images  # type: ignore[attr-defined]


def reference_forward(model: nn.Module, batch: Any) -> Any:
    """Run the digital model on a calibration batch, on its own twin where there are two."""
    return calibration_forward(model, batch.reference if isinstance(batch, Twins) else batch)


def with_test_pipeline(dataset: Any, pipeline: list[Any]) -> Any:
    """Return a train set's config with `pipeline` in place of its own, mixing of several images taken out.

    Raises:
        CalibrationError: it is a wrapper whose inner sets cannot be told.
    """
    if "pipeline" in dataset and "dataset" not in dataset and "datasets" not in dataset:
        return {**dataset, "pipeline": pipeline, "test_mode": True}
    if "MultiImageMix" in type_name(dataset.get("type")):
        return with_test_pipeline(dataset["dataset"], pipeline)
    if "dataset" in dataset:
        return {**dataset, "dataset": with_test_pipeline(dataset["dataset"], pipeline)}
    if "datasets" in dataset:
        return {**dataset, "datasets": [with_test_pipeline(part, pipeline) for part in dataset["datasets"]]}
    return {**dataset, "pipeline": pipeline, "test_mode": True}


def _test_pipeline(cfg: Any) -> list[Any]:
    for key in ("test_dataloader", "val_dataloader"):
        dataset = (cfg.get(key) or {}).get("dataset") or {}
        while "pipeline" not in dataset and ("dataset" in dataset or "datasets" in dataset):
            dataset = dataset.get("dataset") or dataset["datasets"][0]
        steps = [type_name(step.get("type")) for step in dataset.get("pipeline") or ()]
        if steps and "TestTimeAug" not in steps:  # whose images come as lists of variants
            named = zip(steps, copy.deepcopy(dataset["pipeline"]), strict=True)
            return [step for name, step in named if not _LABELS.fullmatch(name)]
    raise CalibrationError("the config has no test_dataloader whose pipeline calibration images could go through")


def _leave_out(dataset: Any, kind: str) -> None:
    """Take the transforms of a type out of the pipelines of a data set's config."""
    pipelines = list(pipelines_in(dataset))
    names = [type_name(step.get("type")) for pipeline in pipelines for step in pipeline]
    if kind not in names:
        raise CalibrationError(
            f"reference_skips: {kind!r} is not a transform in the calibration images' pipeline, which has "
            f"{', '.join(dict.fromkeys(names)) or 'none'}"
        )
    for pipeline in pipelines:
        pipeline[:] = [step for step in pipeline if type_name(step.get("type")) != kind]


def _build(dataset: Any, scope: str | None) -> Any:
    try:
        with DefaultScope.overwrite_default_scope(scope):  # whichever config was built last
            built = DATASETS.build(dataset)
    except FileNotFoundError as error:
        missing = error.filename or error
        raise CalibrationError(
            f"calibration images come from train_dataloader.dataset, which does not exist: {missing}"
        ) from error
    if len(built) == 0:
        raise CalibrationError("calibration images come from train_dataloader.dataset, which is empty")
    return built
