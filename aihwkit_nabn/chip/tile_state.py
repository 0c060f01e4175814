"""What a programmed tile holds, as named tensors, and putting it back onto another tile of the same shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.chip.shared import share_programming
from aihwkit_nabn.chip.written import weights_on, write_weights
from aihwkit_nabn.errors import ChipFileError, NabnError

# Where aihwkit keeps a tile's tensors: (attribute, whether it is a parameter that must stay the same object).
_PLAIN = ("reference_combined_weights", "programmed_weights", "drift_baseline", "drift_readout_tensor")
_MODULE = ("alpha", "mapping_scales", "out_scaling_alpha", "input_range", "input_range_update_idx", "bias")
_DRIFT = "drift_noise_parameters"


def tile_tensors(tile: Any) -> dict[str, Tensor]:
    """Return a tile's tensors by name: weights, targets, what drift needs, scales, ranges.

    Weights that are still as programmed, bit for bit, are left out: most noise changes nothing with time.
    """
    found = {"weight": weights_on(tile)}
    for name in (*_PLAIN, *_MODULE):
        value = getattr(tile, name, None)
        if isinstance(value, Tensor):
            found[name] = value
    found |= _buffers(tile)
    layer_max = getattr(tile.rpu_config.noise_model, "layer_max", None)
    if layer_max is not None:
        found["layer_max"] = torch.as_tensor(layer_max)
    _flatten(getattr(tile, _DRIFT, None), _DRIFT, found)
    tensors = {name: torch.as_tensor(value.detach().cpu()).as_subclass(Tensor).clone() for name, value in found.items()}
    if "programmed_weights" in tensors and _same_bits(tensors["weight"], tensors["programmed_weights"]):
        del tensors["weight"]
    return tensors


def tile_values(tile: Any) -> dict[str, Any]:
    """Return what else a tile holds, as JSON values."""
    return {
        _DRIFT: _structure(getattr(tile, _DRIFT, None)),
        "chip_seed": getattr(tile.rpu_config.noise_model, "chip_seed", None),
    }


def check_tile(tile: Any, tensors: dict[str, Tensor], where: str) -> None:
    """Raise unless the tensors are those of a tile of this one's shape.

    Raises:
        ChipFileError: names the first that does not fit.
    """
    shape = (tile.out_size, tile.in_size)
    tensors = _with_weight(tensors)
    for name in ("weight", "reference_combined_weights", "programmed_weights"):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise ChipFileError(f"{where} must have {name} of shape {shape}, the file has {found}")
    if tensors["weight"].dtype != tile.get_dtype():
        raise ChipFileError(f"{where} must hold {tile.get_dtype()}, the file has {tensors['weight'].dtype}")
    for owner, name in ((tile, "input_range"), (tile, "out_scaling_alpha"), (tile.tile, "output_bound")):
        if getattr(getattr(owner, name, None), "shape", None) != getattr(tensors.get(name), "shape", None):
            raise ChipFileError(f"{name} of {where} does not fit the settings in the file")


@torch.no_grad()
def restore_tile(tile: Any, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Give a tile what `tile_tensors` and `tile_values` returned for another."""
    tensors = _with_weight(tensors)
    device = tile.device
    for name in _PLAIN:
        setattr(tile, name, tensors.get(name))
    tile.drift_noise_parameters = _unflatten(values.get(_DRIFT), _DRIFT, tensors)
    for name in _MODULE:
        current, new = getattr(tile, name, None), tensors.get(name)
        if isinstance(current, nn.Parameter) and new is not None:
            current.data = new.to(device).clone()
        else:
            setattr(tile, name, None if new is None else new.to(device).clone())
    for name in _buffers(tile):
        if name in tensors:
            setattr(tile.tile, name, tensors[name].to(device))
    noise_model = tile.rpu_config.noise_model
    if "layer_max" in tensors:
        noise_model.layer_max = tensors["layer_max"]
    if values.get("chip_seed") is not None:
        noise_model.chip_seed = values["chip_seed"]
    write_weights(tile, tensors["weight"])
    share_programming(tile)


def _with_weight(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a tile's tensors with the weights that `tile_tensors` left out."""
    programmed = tensors.get("programmed_weights")
    return tensors if "weight" in tensors or programmed is None else {**tensors, "weight": programmed}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same, the signs of zeros included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(value.contiguous().reshape(-1).view(torch.uint8) for value in (a, b)))


def _buffers(tile: Any) -> dict[str, Tensor]:
    """Return what differs from output to output: noise, ranges, what readout effects have drawn."""
    return dict(tile.tile.named_buffers()) if isinstance(tile.tile, nn.Module) else {}


def _flatten(value: Any, prefix: str, found: dict[str, Tensor]) -> None:
    if isinstance(value, Tensor):
        found[prefix] = value
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _flatten(item, f"{prefix}.{index}", found)
    elif isinstance(value, dict):
        for key, item in value.items():
            _flatten(item, f"{prefix}.{key}", found)


def _structure(value: Any) -> Any:
    """Return lists and mappings as they are, tensors as ``{"tensor": True}``."""
    if isinstance(value, Tensor):
        return {"tensor": True}
    if isinstance(value, (list, tuple)):
        return [_structure(item) for item in value]
    if isinstance(value, dict):
        return {"entries": {str(key): _structure(item) for key, item in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise NabnError(f"{_DRIFT} holds a {type(value).__name__}, which has no form in a chip file")


def _unflatten(content: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(content, list):
        return [_unflatten(item, f"{prefix}.{index}", tensors) for index, item in enumerate(content)]
    if isinstance(content, dict) and "tensor" in content:
        return tensors[prefix]
    if isinstance(content, dict):
        return {key: _unflatten(item, f"{prefix}.{key}", tensors) for key, item in content["entries"].items()}
    return content
