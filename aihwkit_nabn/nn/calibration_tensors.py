"""A model's calibration as named tensors, to be written to a file and put back into the same network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.errors import CalibrationError, NabnError
from aihwkit_nabn.nn.alignment import PARTS
from aihwkit_nabn.nn.calibration_state import alignments, batchnorms, check_not_folded, clear_calibration
from aihwkit_nabn.nn.inference_mode import outside_inference_mode
from aihwkit_nabn.nn.input_ranges import (
    check_output_bounds,
    input_ranges,
    output_bounds,
    ranged_layers,
    set_input_range,
    set_output_bounds,
)
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.simulator.product.linear_map import size_product


def calibration_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of alignments, calibrated statistics and ranges: ``LAYER.scale``, ``.offset``, ``.mean``, ...

    An alignment with an input gain has ``LAYER.input_gain`` too, one with a correction ``.directions`` and ``.mixing``.

    Raises:
        CalibrationError: the calibration is folded, or follows the inputs (methods ``batch``, ``online``).
    """
    check_not_folded(model)
    found: dict[str, Tensor] = {}
    for name, alignment in alignments(model).items():
        if alignment.scale is not None and alignment.offset is not None:
            parts = {part: getattr(alignment, part) for part in PARTS}
            found |= {f"{name}.{part}": value for part, value in parts.items() if value is not None}
    for name, bn in batchnorms(model).items():
        if bn.live is not None:
            raise CalibrationError(f"BatchNorm {name!r} follows its inputs; call freeze_calibration(model) first")
        if bn.calibrated_mean is not None and bn.calibrated_var is not None:
            found[f"{name}.mean"], found[f"{name}.var"] = bn.calibrated_mean, bn.calibrated_var
    for name, value in input_ranges(model).items():
        found[f"{name}.input_range"] = torch.tensor([value])
    found |= {f"{name}.output_bounds": bounds for name, bounds in output_bounds(model).items()}
    return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}


@outside_inference_mode()
def load_calibration_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace the model's calibration by what `calibration_tensors` returned for the same network.

    Raises:
        CalibrationError: a name or a shape does not fit; nothing has been changed then.
    """
    layers, norms = alignments(model), batchnorms(model)
    analog: dict[str, Any] = dict(named_analog_layers(model))
    known = {name: {*PARTS} for name in layers} | {name: {"mean", "var"} for name in norms}
    for found, part in ((ranged_layers(model), "input_range"), (output_bounds(model), "output_bounds")):
        for name in found:
            known[name].add(part)
    stored: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        if part not in known.get(name, ()):
            raise CalibrationError(f"the stored calibration is of another network: no layer for {key!r}")
        stored.setdefault(name, {})[part] = tensor
    for name, parts in stored.items():
        if name in norms:
            _check_pair(name, parts, ("mean", "var"), norms[name].num_features)
        else:
            _check_layer(name, parts, layers[name].n_channels, analog[name])
    clear_calibration(model)
    for name, parts in stored.items():
        if name in norms:
            norms[name].set_calibrated(parts["mean"], parts["var"])
            continue
        if "input_range" in parts:
            set_input_range(analog[name], parts["input_range"].item())
        if "output_bounds" in parts:
            set_output_bounds(analog[name], parts["output_bounds"])
        if "scale" in parts:
            device = next(analog[name].analog_tiles()).device
            layers[name].set(**{part: parts[part].clone().to(device) for part in PARTS if part in parts})


def _check_layer(name: str, parts: Mapping[str, Tensor], width: int, layer: Any) -> None:
    if "input_range" in parts and parts["input_range"].shape != (1,):
        raise CalibrationError("a stored input range must be one number")
    if "output_bounds" in parts:
        try:
            check_output_bounds(layer, parts["output_bounds"])
        except NabnError as error:
            raise CalibrationError(f"the stored calibration of layer {name!r} does not fit: {error}") from error
    _check_pair(name, parts, ("scale", "offset"), width)
    gain, directions, mixing = (parts.get(part) for part in PARTS[2:])
    if gain is not None and ("scale" not in parts or gain.shape != (width,)):
        raise CalibrationError(f"the stored input gain of layer {name!r} has no scale beside it or another length")
    if directions is None and mixing is None:
        return
    linear_map = getattr(layer, "linear_map", None)
    n_in = None if linear_map is None else layer.analog_module.in_size // size_product(linear_map.kernel_size)
    fits = "scale" in parts and directions is not None and mixing is not None and directions.dim() == 2
    if not fits or directions.shape[1] != n_in or mixing.shape != (width, len(directions)):  # type: ignore[union-attr,arg-type]
        raise CalibrationError(f"the stored correction of layer {name!r} is not complete or has other sizes")


def _check_pair(name: str, parts: Mapping[str, Tensor], pair: tuple[str, str], width: int) -> None:
    shapes = [tuple(parts[part].shape) for part in pair if part in parts]
    if shapes and shapes != [(width,)] * 2:
        raise CalibrationError(f"the stored calibration of layer {name!r} does not have {width} channels")
