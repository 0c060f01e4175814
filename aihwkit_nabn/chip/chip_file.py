"""Saving a programmed chip and loading it again: bit for bit, without pickle."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn._version import __version__
from aihwkit_nabn.chip.container import read_container, write_container
from aihwkit_nabn.chip.programming import ChipState, check_programmed, chip_state
from aihwkit_nabn.chip.tile_state import check_tile, restore_tile, tile_tensors, tile_values
from aihwkit_nabn.chip.variation import begin_variation, rewind_variation, samples_processed
from aihwkit_nabn.chip.written import note_written
from aihwkit_nabn.errors import ChipFileError, ConversionError, NabnError
from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.nn.alignment import OutputAlignment
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm
from aihwkit_nabn.nn.calibration_tensors import calibration_tensors, load_calibration_tensors
from aihwkit_nabn.nn.inference_mode import outside_inference_mode
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.simulator.config.json_form import config_from_json, config_to_json


def save_chip(model: nn.Module, path: str | Path) -> Path:
    """Write the chip on `model` to a file that `load_chip` reads: safetensors with JSON, no pickle.

    The file holds what is on the tiles (targets, programmed and drifted weights, what drift needs, scales, input
    ranges), the digital rest of the network, the calibration, seed, time, read-noise streams, and the configuration.
    Nothing in it is drawn anew when it is loaded, so it stays the same chip whatever becomes of the noise models.

    For every weight on tiles, in single precision, that is 8 bytes (target, programmed weight); 4 more where the noise
    changes with time (the weight at this time); and what goes on drifting needs: 4 for ``pcm``, ``crossbar``,
    ``reram_cmo``, ``stuck`` and ``variational``, 8 for ``hermes``, 16 for ``reram_wan``, up to 24 for ``measured``;
    that and 4 for each of several devices per weight, 8 for the spread of each. A ResNet-18, 11.7 million weights,
    takes 94 MB with Gaussian noise, 187 MB with PCM.

    Args:
        model: A programmed model of `convert_to_noise_aware`.
        path: The file; one of that name is replaced in one step.

    Returns:
        The path.

    Raises:
        NotProgrammedError: there is no chip on the model.
        CalibrationError: its calibration is folded, or follows the inputs (methods ``batch`` and ``online``).
        NabnError: a layer is aihwkit's own, the configuration cannot be stored, or the file cannot be written.
    """
    path = _check_path(path)
    state = chip_state(model)
    layers = _layers(model)
    check_programmed(model)
    calibration = calibration_tensors(model)
    n_samples = samples_processed(model)
    rewind_variation(model)  # tiles hold what programming and drift gave them; the next forward pass moves on
    content: dict[str, Any] = {
        "model": type(model).__name__,
        "seed": state.seed,
        "t_inference": state.t_inference,
        "cycle": state.cycle,
        "n_samples_processed": n_samples,
        "excluded": [entry.name for entry in _report(model).kept_digital if entry.reason == "excluded"],
        "versions": {
            "aihwkit_nabn": __version__,
            "aihwkit": importlib.metadata.version("aihwkit"),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "configs": [],
        "layers": {},
    }
    tensors = {f"calibration/{name}": value for name, value in calibration.items() if not name.endswith(_RANGES)}
    tensors |= {f"digital/{name}": value for name, value in _digital_state(model).items()}
    configs: dict[str, int] = {}
    for name, layer in layers.items():
        tiles: dict[str, Any] = dict(layer.named_analog_tiles())
        config = json.dumps(config_to_json(next(iter(tiles.values())).rpu_config), sort_keys=True)
        stream = layer.read_noise.__getstate__()
        content["layers"][name] = {
            "kind": type(layer).__name__,
            "shape": list(layer.kernel_shape),
            "config": configs.setdefault(config, len(configs)),
            "read_noise_seed": stream["seed"],
            "tiles": {tile_name: tile_values(tile) for tile_name, tile in tiles.items()},
        }
        for device, generator in stream["states"].items():
            tensors[f"stream/{name}/{device}"] = generator
        if layer.bias is not None:
            tensors[f"bias/{name}"] = layer.bias
        for tile_name, tile in tiles.items():
            tensors |= {f"tile/{name}/{tile_name}/{key}": value for key, value in tile_tensors(tile).items()}
    content["configs"] = [json.loads(config) for config in configs]
    # safetensors refuses tensors that share memory.
    write_container(path, content, {name: tensor.detach().clone() for name, tensor in tensors.items()})
    return path


@outside_inference_mode()
def load_chip(model: nn.Module, path: str | Path) -> nn.Module:
    """Return the chip of a file that `save_chip` wrote: the same outputs, the same drift to come.

    Args:
        model: The digital network the chip was made from, on the device the chip is wanted on. It gives the
            architecture only (its weights are replaced in the copy that is returned) and is not changed.
        path: The file.

    Returns:
        A new model in eval mode, as `convert_to_noise_aware` and `program_chip` would give it.

    Raises:
        ChipFileError: the file is missing, truncated, altered, of something else, of an unknown version, or of another
            network; the message says which.
    """
    if not isinstance(model, nn.Module):
        raise NabnError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if named_analog_layers(model):
        raise NabnError("model must be the digital network that the chip was made from, got an analog one")
    path = _check_path(path)
    content, tensors = read_container(path)
    try:
        return _build(model, content, tensors, path)
    except NabnError as error:
        if str(path) in str(error):
            raise
        raise ChipFileError(f"{path}: {error}") from error
    except Exception as error:  # a file whose checksum fits may still say anything
        raise ChipFileError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def chip_info(path: str | Path) -> dict[str, Any]:
    """Return what a chip file says of itself: network, seed, time, layers, configurations, versions; JSON values.

    Raises:
        ChipFileError: as `load_chip`; the tensors are not read.
    """
    return read_container(_check_path(path), with_tensors=False)[0]


# Layers that a message names.
_LISTED = 3
_RANGES = (".input_range", ".output_bounds")  # stored tile by tile


def _check_path(path: object) -> Path:
    if not isinstance(path, (str, Path)) or not str(path):
        raise NabnError(f"path must be a file's path, got {path!r}")
    try:
        is_folder = Path(path).is_dir()
    except (OSError, ValueError) as error:  # too long, or with a null byte
        raise NabnError(f"path must be a file's path, got {path!r}: {error}") from error
    if is_folder:
        raise NabnError(f"path must be a file, {path} is a folder")
    return Path(path)


def _layers(model: nn.Module) -> dict[str, NoiseAwareLayer]:
    layers = {}
    for name, layer in named_analog_layers(model).items():
        if not isinstance(layer, NoiseAwareLayer):
            raise NabnError(
                f"layer {name!r} is aihwkit's own {type(layer).__name__}; chip files hold models made by "
                "convert_to_noise_aware (or by convert_to_analog after register)"
            )
        layers[name] = layer
    return layers


def _report(model: nn.Module) -> Any:
    report = getattr(model, "conversion_report", None)
    if report is None:
        raise NabnError("model must come from convert_to_noise_aware: it has no conversion_report")
    return report


def _digital_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers that lie outside of tiles and calibration, shared ones once."""
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, NoiseAwareLayer):
            inside.update(map(id, (*module.analog_module.parameters(), *module.analog_module.buffers())))
        elif isinstance(module, OutputAlignment):
            inside.update(map(id, module.buffers()))
        elif isinstance(module, NoiseAwareBatchNorm):
            inside.update({id(module.calibrated_mean), id(module.calibrated_var)})
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if id(tensor) not in inside}


def _build(model: nn.Module, content: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> nn.Module:
    stored = content["layers"]
    seed, seconds, n_samples = content["seed"], content["t_inference"], content["n_samples_processed"]
    configs = content["configs"]
    first = config_from_json(configs[0])

    def config_of(name: str, module: nn.Module, config: Any) -> Any:
        return config_from_json(configs[stored[name]["config"]]) if name in stored else config

    modules = dict(model.named_modules(remove_duplicate=False))
    gone = [name for name in content["excluded"] if name not in modules]
    try:
        excluded = set(content["excluded"]) - set(gone)
        analog = convert_to_noise_aware(model, first, exclude=excluded, specific_rpu_config_fun=config_of)
    except ConversionError as error:
        raise ChipFileError(f"{_other_network(model, content, path)}: {str(error).splitlines()[0]}") from error
    layers = _layers_for(analog, content, gone, path)
    for name, layer in layers.items():
        for tile_name, tile in layer.named_analog_tiles():
            check_tile(tile, _under(tensors, f"tile/{name}/{tile_name}/"), f"tile {tile_name} of layer {name!r}")
    digital = _digital_state(analog)
    given = _under(tensors, "digital/")
    for name in sorted({*digital, *given}):
        if name not in digital or name not in given or digital[name].shape != given[name].shape:
            raise ChipFileError(f"{_other_network(model, content, path)}: {name!r} differs")
    with torch.no_grad():
        for name, tensor in digital.items():
            tensor.copy_(given[name])
        for name, layer in layers.items():
            _restore_layer(layer, stored[name], name, tensors)
    load_calibration_tensors(analog, _under(tensors, "calibration/"))
    all_tiles = [tile for layer in layers.values() for _, tile in layer.named_analog_tiles()]
    for tile in all_tiles:
        note_written(tile)
    begin_variation(analog, all_tiles, n_samples)
    # Files of release 0.2 know no cycles.
    analog.__dict__["chip_state"] = ChipState(seed=seed, t_inference=seconds, cycle=content.get("cycle", 0))
    return analog


def _other_network(model: nn.Module, content: dict[str, Any], path: Path) -> str:
    return f"{path} holds a chip of another network, a {content['model']}, not of the {type(model).__name__} given"


def _layers_for(analog: nn.Module, content: dict[str, Any], gone: list[str], path: Path) -> dict[str, NoiseAwareLayer]:
    """Return the layers of `analog`, which must be those of the file; `gone`: excluded ones that it lacks."""
    stored: dict[str, Any] = content["layers"]
    found: dict[str, Any] = named_analog_layers(analog)
    other = _other_network(analog, content, path)
    missing = [*(name for name in stored if name not in found), *gone]
    left_over = [name for name in found if name not in stored]
    told = [
        f"{where} has no layer {', '.join(map(repr, names[:_LISTED]))}"
        f"{f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''}"
        for where, names in (("the model", missing), ("the file", left_over))
        if names
    ]
    if told:
        raise ChipFileError(f"{other}: {'; '.join(told)}")
    for name, layer in found.items():
        here = f"{type(layer).__name__} {list(layer.kernel_shape)}"
        there = f"{stored[name]['kind']} {stored[name]['shape']}"
        tiles = [key for key, _ in layer.named_analog_tiles()]
        if here != there or tiles != list(stored[name]["tiles"]):
            raise ChipFileError(f"{other}: {name!r} is {there} in the file, {here} in the model")
    return found


def _restore_layer(layer: NoiseAwareLayer, entry: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> None:
    if layer.bias is not None:
        layer.bias.data.copy_(tensors[f"bias/{name}"])
    for tile_name, tile in layer.named_analog_tiles():
        restore_tile(tile, _under(tensors, f"tile/{name}/{tile_name}/"), entry["tiles"][tile_name])
    layer.read_noise.restart(entry["read_noise_seed"])
    for device, state in _under(tensors, f"stream/{name}/").items():
        if torch.device(device).type == "cpu" or torch.cuda.is_available():
            layer.read_noise.generator(torch.device(device)).set_state(state)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
