"""Where a chip's calibration lives in the model: taking it out, putting it back, switching it off, folding it in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.errors import CalibrationError
from aihwkit_nabn.nn.alignment import PARTS, OutputAlignment
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm
from aihwkit_nabn.nn.inference_mode import outside_inference_mode
from aihwkit_nabn.nn.keeping import assigned
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers, own_tiles


def alignments(model: nn.Module) -> dict[str, OutputAlignment]:
    """Return the output alignment of every analog layer, by the layer's name; aihwkit's own layers are given one."""
    found: dict[str, OutputAlignment] = {}
    layer: Any
    for name, layer in named_analog_layers(model).items():
        if not hasattr(layer, "alignment"):
            n_channels = getattr(layer, "out_channels", None) or layer.out_features
            channel_dim = -(len(getattr(layer, "kernel_size", ())) + 1)
            layer.alignment = OutputAlignment(n_channels, channel_dim).train(layer.training)
            layer.register_forward_hook(_align_output)
        found[name] = layer.alignment
    return found


def batchnorms(model: nn.Module) -> dict[str, NoiseAwareBatchNorm]:
    """Return the noise-aware BatchNorm layers with trained statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, NoiseAwareBatchNorm) and module.running_mean is not None
    }


def _align_output(layer: Any, args: Any, output: Tensor) -> Tensor:
    aligned: Tensor = layer.alignment(output)
    return aligned


def _modules(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, (OutputAlignment, NoiseAwareBatchNorm))]


# Where a folded layer keeps what was there before.
_UNFOLDED = "_nabn_unfolded"
_FIELDS = (*PARTS, "calibrated_mean", "calibrated_var", "live", "enabled", "calibration_enabled")


@dataclass
class CalibrationSnapshot:
    """The calibration of a model at one moment; `restore` brings back the same tensors with the same bits."""

    entries: list[tuple[Any, dict[str, Any]]]

    @classmethod
    def take(cls, model: nn.Module) -> CalibrationSnapshot:
        """Copy what calibration may change."""
        entries = []
        for module in _modules(model):
            state = {field: getattr(module, field) for field in _FIELDS if hasattr(module, field)}
            entries.append((module, {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}))
        return cls(entries)

    @outside_inference_mode()
    def restore(self) -> None:
        """Put everything back as it was."""
        for module, state in self.entries:
            for field, value in state.items():
                setattr(module, field, value.clone() if isinstance(value, Tensor) else value)
            module.observer = None


def clear_calibration(model: nn.Module) -> None:
    """Remove every calibrated statistic and alignment, also a folded one."""
    unfold_all(model)
    for module in _modules(model):
        if isinstance(module, OutputAlignment):
            module.reset()
        else:
            module.reset_calibration()


@contextmanager
def calibration_disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Run the same chip without its calibration inside the block; every switch is back where it was after it.

    Raises:
        CalibrationError: the calibration has been folded, so it cannot be left out.
    """
    check_not_folded(model)
    with ExitStack() as stack:
        for module in _modules(model):
            switch = "enabled" if isinstance(module, OutputAlignment) else "calibration_enabled"
            stack.enter_context(assigned(module, switch, False))
        yield model


def freeze_calibration(model: nn.Module) -> None:
    """Stop following the inputs (method ``online``): the statistics stay as they are now.

    A BatchNorm that normalises with each batch's own statistics (method ``batch``) has none to keep and goes back to
    its calibrated ones, or to the trained ones where there are none.
    """
    for module in _modules(model):
        if isinstance(module, NoiseAwareBatchNorm):
            module.live = None


@dataclass
class FoldHandle:
    """What `fold_calibration` did; `undo` takes it back bit for bit."""

    model: nn.Module
    before: CalibrationSnapshot

    def undo(self) -> None:
        """Give tiles and BatchNorm layers their own values back, and the calibration to where it was."""
        unfold_all(self.model)
        self.before.restore()


@outside_inference_mode()
def fold_calibration(model: nn.Module) -> FoldHandle:
    """Move the calibration to where it costs nothing: alignments into the tiles' digital output scale and bias.

    Calibrated BatchNorm statistics take the trained ones' place (a BatchNorm costs the same with either), so the folded
    model does the work of an uncalibrated one. What follows a layer's inputs (``common_mode``, ``low_rank``) has no
    such place and stays. Outputs stay equal to float accuracy. Programming another chip takes the fold out.

    Returns:
        A handle with `undo()`.

    Raises:
        CalibrationError: the calibration is live (methods ``batch`` and ``online``): freeze it first; or it has been
            folded already; or a layer is aihwkit's own and has no bias to fold into.
    """
    check_not_folded(model)
    for name, module in batchnorms(model).items():
        if module.live is not None:
            raise CalibrationError(f"BatchNorm {name!r} follows its inputs; call freeze_calibration(model) first")
    layers: dict[str, Any] = named_analog_layers(model)
    aligned = {name: layer for name, layer in layers.items() if hasattr(layer, "alignment") and layer.alignment.is_set}
    for name, layer in aligned.items():
        if _bias_owner(layer) is None:
            raise CalibrationError(
                f"layer {name!r} is aihwkit's {type(layer).__name__} without a digital bias; convert the model with "
                "convert_to_noise_aware to fold its calibration"
            )
    handle = FoldHandle(model, CalibrationSnapshot.take(model))
    for layer in aligned.values():
        if layer.alignment.enabled and layer.alignment.scale is not None:
            _fold_layer(layer, layer.alignment.scale, layer.alignment.offset)
            layer.alignment.scale = layer.alignment.offset = None
    for module in batchnorms(model).values():
        if module.calibrated_mean is not None and module.calibration_enabled:
            module.__dict__[_UNFOLDED] = module.trained_statistics()
            module.running_mean, module.running_var = module.calibrated_mean, module.calibrated_var
            module.reset_calibration()
    return handle


def check_not_folded(model: nn.Module) -> None:
    """Raise if the model's calibration has been folded.

    Raises:
        CalibrationError: names the first folded layer.
    """
    for name, module in model.named_modules():
        if _UNFOLDED in module.__dict__:
            raise CalibrationError(
                f"layer {name!r} holds a folded calibration; undo the fold or program the chip again first"
            )


def unfold_all(model: nn.Module) -> None:
    """Give every folded layer its own scales, bias and statistics back."""
    module: Any
    for module in model.modules():
        state = module.__dict__.pop(_UNFOLDED, None)
        if state is not None and isinstance(module, NoiseAwareBatchNorm):
            device = module.trained_statistics()[0].device
            module.running_mean, module.running_var = (value.to(device) for value in state)
        elif state is not None:
            _unfold_layer(module, *state)


def _bias_owner(layer: Any) -> Any:
    """The module whose digital bias is added last: the tile array, or a single tile with a bias; None without one."""
    analog_module = layer.analog_module
    if isinstance(layer, NoiseAwareLayer) or getattr(analog_module, "bias", None) is not None:
        return analog_module
    return None


@torch.no_grad()
def _fold_layer(layer: Any, scale: Tensor, offset: Tensor) -> None:
    owner = _bias_owner(layer)
    layer.__dict__[_UNFOLDED] = ([tile.mapping_scales for tile in own_tiles(layer)], owner.bias)
    array = getattr(layer.analog_module, "array", [[layer.analog_module]])
    for in_tiles in array:
        start = 0
        for tile in in_tiles:
            part = scale[start : start + tile.out_size].to(tile.device, tile.get_dtype())
            tile.mapping_scales = part.clone() if tile.mapping_scales is None else tile.mapping_scales * part
            start += tile.out_size
    bias = offset.clone() if owner.bias is None else owner.bias.detach() * scale.to(owner.bias) + offset.to(owner.bias)
    owner.bias = nn.Parameter(bias, requires_grad=False)


def _unfold_layer(layer: Any, scales: list[Tensor | None], bias: nn.Parameter | None) -> None:
    # The model may have moved to another device in between.
    for tile, scale in zip(own_tiles(layer), scales, strict=True):
        tile.mapping_scales = None if scale is None else scale.to(tile.device)
    owner = _bias_owner(layer)
    if bias is not None:
        bias.data = bias.data.to(owner.bias.device)
    owner.bias = bias
