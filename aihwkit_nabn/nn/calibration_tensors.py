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
    left = dict(tensors)
    analog: dict[str, Any] = dict(named_analog_layers(model))
    ranges = {name: left.pop(f"{name}.input_range", None) for name in ranged_layers(model)}
    if any(value is not None and value.shape != (1,) for value in ranges.values()):
        raise CalibrationError("a stored input range must be one number")
    bounds = {name: left.pop(f"{name}.output_bounds", None) for name in output_bounds(model)}
    for name, stored in bounds.items():
        if stored is not None:
            try:
                check_output_bounds(analog[name], stored)
            except NabnError as error:
                raise CalibrationError(f"the stored calibration of layer {name!r} does not fit: {error}") from error
    widths = {name: layer.n_channels for name, layer in layers.items()}
    terms = {name: {part: left.pop(f"{name}.{part}", None) for part in PARTS[2:]} for name in layers}
    of_layers = _pairs(left, widths, ("scale", "offset"))
    for name, found in terms.items():
        gain = found["input_gain"]
        if gain is not None and (name not in of_layers or gain.shape != (widths[name],)):
            raise CalibrationError(f"the stored input gain of layer {name!r} has no scale beside it or another length")
        _check_correction(name, found, widths[name], name in of_layers, analog[name])
    of_norms = _pairs(left, {name: norm.num_features for name, norm in norms.items()}, ("mean", "var"))
    if left:
        raise CalibrationError(f"the stored calibration is of another network: no layer for {next(iter(left))!r}")
    clear_calibration(model)
    for name, value in ranges.items():
        if value is not None:
            set_input_range(analog[name], value.item())
    for name, stored in bounds.items():
        if stored is not None:
            set_output_bounds(analog[name], stored)
    for name, (scale, offset) in of_layers.items():
        device = next(analog[name].analog_tiles()).device
        found = {part: value.clone().to(device) for part, value in terms[name].items() if value is not None}
        layers[name].set(scale.clone().to(device), offset.clone().to(device), **found)
    for name, (mean, var) in of_norms.items():
        norms[name].set_calibrated(mean, var)


def _check_correction(name: str, parts: Mapping[str, Tensor | None], width: int, has_scale: bool, layer: Any) -> None:
    directions, mixing = parts["directions"], parts["mixing"]
    if directions is None and mixing is None:
        return
    linear_map = getattr(layer, "linear_map", None)
    n_in = None if linear_map is None else layer.analog_module.in_size // size_product(linear_map.kernel_size)
    fits = has_scale and directions is not None and mixing is not None and directions.dim() == 2
    if not fits or directions.shape[1] != n_in or mixing.shape != (width, len(directions)):  # type: ignore[union-attr,arg-type]
        raise CalibrationError(f"the stored correction of layer {name!r} is not complete or has other sizes")


def _pairs(left: dict[str, Tensor], widths: dict[str, int], parts: tuple[str, str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Take out of `left` the two tensors of each module that has them."""
    found = {}
    for name, n in widths.items():
        a, b = (left.pop(f"{name}.{part}", None) for part in parts)
        if a is None and b is None:
            continue
        if a is None or b is None or a.shape != (n,) or b.shape != (n,):
            raise CalibrationError(f"the stored calibration of layer {name!r} does not have {n} channels")
        found[name] = (a, b)
    return found
