"""Checkpoints: reading upstream's safely, and storing a chip beside the digital weights in ours."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from aihwkit_nabn.chip.variation import rewind_variation
from aihwkit_nabn.data.state_dicts import find_weights, fitting_weights
from aihwkit_nabn.errors import NabnError, NotProgrammedError
from aihwkit_nabn.files import write_bytes
from aihwkit_nabn.nn import calibration_tensors, load_calibration_tensors
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.openmmlab.iterations import unwrapped

CHIP_KEY = "aihwkit_nabn"
"""Where a checkpoint keeps its chip; every other entry is what mmengine writes for the digital model."""

_VERSION = 1


class FitCheckpoint(Hook):
    """Gives mmengine the weights of a checkpoint by the names it looks for, and refuses another network's.

    Args:
        take: See `fit_checkpoint`.
    """

    def __init__(self, take: str | None = None) -> None:
        self.take = take

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Change the checkpoint before its weights are copied."""
        for note in fit_checkpoint(unwrapped(runner.model), checkpoint, self.take):
            runner.logger.warning(note)


def fit_checkpoint(model: nn.Module, checkpoint: dict[str, Any], take: str | None = None) -> list[str]:
    """Put the network's weights where mmengine takes them from, whatever training script wrote the file.

    mmengine loads what is under ``state_dict``, freed of ``module.``; it says in its log only when nothing fits. What
    it finds by itself stays what it is.

    Args:
        model: The network.
        checkpoint: What the file holds; its entry ``state_dict`` is changed where need be.
        take: Which of several weights, ``"model"``, ``"ema"`` or their place in the file; None: those that mmengine
            takes.

    Returns:
        Lines for the user on what was taken.

    Raises:
        NabnError: no tensor has the name and the shape of one of the network's, or it is not clear which to take.
    """
    # mmengine loads into the network inside a wrapper: of several processes, of test-time augmentation.
    own = {name.removeprefix("module."): value for name, value in model.state_dict().items()}
    if take is None and _fits(checkpoint.get("state_dict", checkpoint), own):
        others = [weights.place for weights in fitting_weights(checkpoint, own) if weights.place]
        others = [place for place in others if place.partition(".")[0] != "state_dict"]
        return (
            [f"the checkpoint: state_dict was taken; --take NAME takes {', '.join(others)}"]
            if others and "state_dict" in checkpoint
            else []
        )
    weights = find_weights(checkpoint, own, "the checkpoint", take=take)
    if not _fits(weights.state, own):
        raise NabnError("the checkpoint is of another network: no tensor has the shape that this network needs")
    checkpoint["state_dict"] = weights.state
    return weights.notes("the checkpoint")


def _fits(found: Any, own: Mapping[str, Tensor]) -> bool:
    named = {str(name).removeprefix("module."): value for name, value in found.items() if isinstance(value, Tensor)}
    return any(name in own and own[name].shape == value.shape for name, value in named.items())


def drop_placeholders(module: nn.Module, state_dict: dict[str, Any], *_: Any) -> None:
    """Take out of a state dict what aihwkit keeps beside each tile for its weights; it holds none.

    From aihwkit 1.2 on it raises when mmengine moves the state dict to the CPU. Loading does not miss it.
    """
    for name in [name for name in state_dict if name.endswith("analog_ctx")]:
        del state_dict[name]


def chip_record(model: nn.Module, settings: str) -> dict[str, Any]:
    """Return what a checkpoint keeps of a programmed model: tensors and text only, `settings` to know the chip by."""
    rewind_variation(model)  # the weights as programmed; the next forward pass moves them to where they were
    layers: dict[str, Any] = dict(named_analog_layers(model))
    return {
        "version": _VERSION,
        "settings": settings,
        "weights": {name: layer.weight.detach().cpu().clone() for name, layer in layers.items()},
        "calibration": calibration_tensors(model),
    }


def restore_chip(model: nn.Module, record: Any, settings: str) -> bool:
    """Give a programmed model the calibration that `chip_record` stored with the same chip.

    Returns:
        False if the record is of another chip by its settings; then nothing is changed.

    Raises:
        NabnError: the record is malformed or of a newer version, or its weights are not this chip's.
    """
    version = record.get("version") if isinstance(record, dict) else type(record).__name__
    if version != _VERSION:
        raise NabnError(f"the checkpoint's chip must be of version {_VERSION}, got {version!r}")
    weights: Any = record.get("weights")
    calibration: Any = record.get("calibration")
    if not _tensors(weights) or not _tensors(calibration):
        raise NabnError("the checkpoint's chip must hold tensors by name as 'weights' and 'calibration'")
    if record.get("settings") != settings:
        return False
    layers: dict[str, Any] = dict(named_analog_layers(model))
    if set(layers) != set(weights):
        raise NabnError("the checkpoint's chip has other layers than this model")
    for name, layer in layers.items():
        now, stored = layer.weight, weights[name]
        if now.shape != stored.shape or not torch.allclose(now.cpu(), stored.to(now.dtype), rtol=1e-4, atol=1e-6):
            raise NotProgrammedError(
                f"layer {name!r}: the chip programmed now is not the one in the checkpoint; did the digital "
                "weights change, or did another version write it?"
            )
    load_calibration_tensors(model, calibration)
    return True


def write_checkpoint(path: Path, state_dict: dict[str, Tensor], meta: dict[str, Any], record: dict[str, Any]) -> None:
    """Write a checkpoint that mmengine reads as the digital model's and `AnalogHook` as the chip's, in one step."""
    content = io.BytesIO()
    torch.save({"meta": meta, "state_dict": state_dict, CHIP_KEY: record}, content)
    write_bytes(path, content.getvalue())


def digital_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the digital model's state dict on the CPU."""
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}


def _tensors(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
