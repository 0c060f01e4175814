"""Detectors and segmentors: models, loaders and evaluators as mmengine's runner builds them from a config."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from aihwkit_nabn.data.image_folder import choose
from aihwkit_nabn.errors import NabnError, missing_extra
from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings, Workload
from networks._base import NETWORKS, NetworkKind, Options, need_data

if TYPE_CHECKING:
    from mmengine.config import Config

REQUEST = CalibrationRequest(n=64, batch_size=16)
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "real"


def require_packages(scope: str) -> None:
    """Check that mmdetection or mmsegmentation and what it needs are installed.

    Raises:
        MissingDependencyError: one is not.
    """
    for package in ("mmengine", "mmcv", scope):
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "openmmlab")


def enter_trained(name: str, scope: str, folder: str) -> None:
    """Enter the network of ``configs/real/NAME.py`` in the set.

    Args:
        name: Of the config.
        scope: ``"mmdet"`` or ``"mmseg"``.
        folder: Of its data, below the data root.
    """

    def require(options: Options) -> None:
        require_packages(scope)
        need_data(options, folder)
        trained_checkpoint(name, scope, options)

    def load(options: Options) -> Workload:
        return load_network(
            CONFIGS / f"{name}.py", trained_checkpoint(name, scope, options), options.data_root, options
        )

    NETWORKS.register(name)(NetworkKind(require=require, load=load, request=REQUEST))


def trained_checkpoint(name: str, scope: str, options: Options) -> Path:
    """Return ``NAME.pth`` of the folder of checkpoints, or the last epoch in its folder ``NAME``.

    Raises:
        NabnError: there is neither; the message has the command that trains one.
    """
    single = options.checkpoints / f"{name}.pth"
    if single.is_file():
        return single
    epochs = {
        int(found[1]): path
        for path in (options.checkpoints / name).glob("epoch_*.pth")
        if (found := re.fullmatch(r"epoch_(\d+)\.pth", path.name))
    }
    if not epochs:
        home = single.with_suffix("")
        raise NabnError(
            f"checkpoint of {name} is missing: neither {single} nor {home}/epoch_N.pth exists. Train it: "
            f"NABN_DATA={options.data_root} python {scope.upper()}/.mim/tools/train.py configs/real/{name}.py "
            f"--work-dir {home} ({scope.upper()}: the folder of the installed {scope}); or give --checkpoints"
        )
    return epochs[max(epochs)]


def load_network(path: Path, checkpoint: Path, data_root: Path, options: Options) -> Workload:
    """Return the network of a config, which looks for its data where ``NABN_DATA`` says: in `data_root`.

    With ``train`` it is measured on the training images that are not calibrated on.
    """
    from aihwkit_nabn.workloads.config import config_workload, read_config

    logs = options.out / "logs" / path.stem
    with mock.patch.dict(os.environ, NABN_DATA=str(data_root.resolve())):
        config = _on_chosen_images(read_config(str(path), ["log_level=ERROR"]), options)
        settings = LoadSettings(seed=options.seed, loader_workers=0, work_dir=logs)
        return config_workload(config, settings, checkpoint=str(checkpoint))


def _on_chosen_images(config: Config, options: Options) -> Config:
    """Return a config that tests on the images that the options ask for."""
    if options.split == "train":
        from aihwkit_nabn.openmmlab.held_back import measured_on_train_set

        found = measured_on_train_set(config, options.test_images, REQUEST.n or 0, options.seed)
        if found is None:
            raise NabnError(f"{config.filename} has no training images left to measure on")
        return found
    if options.test_images is not None:
        from mmengine.registry import DATASETS, DefaultScope

        from aihwkit_nabn.openmmlab.config import register_modules, scope_of

        register_modules(scope_of(config))
        with DefaultScope.overwrite_default_scope(config.default_scope):
            total = len(DATASETS.build(config.test_dataloader.dataset))
        config.test_dataloader.dataset.indices = sorted(choose(total, options.test_images, options.seed))
    return config
