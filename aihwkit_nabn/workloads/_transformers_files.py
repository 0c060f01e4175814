"""Folders that transformers' ``save_pretrained`` has written: which network, its weights, its image processor."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from aihwkit_nabn.data.weights import read_checkpoint
from aihwkit_nabn.errors import NabnError, first_line, missing_extra, some
from aihwkit_nabn.files import parse_json
from aihwkit_nabn.seeding import derive_seed, private_rng

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
CLASSIFICATION, DETECTION, SEGMENTATION = "image classification", "object detection", "semantic segmentation"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Where transformers lists the classes of each task.
_TABLES = {
    CLASSIFICATION: "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    DETECTION: "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    SEGMENTATION: "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
}


class Boxes(NamedTuple):
    """What a detector puts out, before post-processing.

    Attributes:
        logits: ``[N, queries, classes]``.
        pred_boxes: ``[N, queries, 4]``: centre, width and height, in parts of the image.
    """

    logits: Tensor
    pred_boxes: Tensor


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a folder's configuration says.

    Attributes:
        folder: The folder.
        kind: transformers' class.
        task: One of the three.
        config: The configuration.
    """

    folder: Path
    kind: Any
    task: str
    config: Any

    @property
    def name(self) -> str:
        """The class's name."""
        name: str = self.kind.__name__
        return name

    @property
    def labels(self) -> dict[int, str]:
        """The names of the network's classes by label, its ``id2label``."""
        return {int(label): str(name) for label, name in sorted(self.config.id2label.items())}


def read_architecture(name: str) -> Architecture:
    """Read a folder's ``config.json``.

    Raises:
        MissingDependencyError: transformers is not installed.
        NabnError: there is no such folder, or it holds no configuration of a network for one of the three tasks.
    """
    if importlib.util.find_spec("transformers") is None:
        raise missing_extra("transformers", "transformers")
    folder = Path(name)
    if not folder.is_dir():
        raise NabnError(
            f"transformers:{name} must name a local folder as save_pretrained writes it; there is no folder {name!r}, "
            "and nothing is downloaded"
        )
    names = _read(folder / CONFIG).get("architectures")
    if not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        raise NabnError(
            f"{folder / CONFIG} must say in architectures which network the weights are of, as save_pretrained does, "
            f"got {names!r}"
        )
    with _quietly(f"{folder / CONFIG} cannot be read"):
        import transformers
        from transformers.models.auto import modeling_auto

        listed = {task: _flat(getattr(modeling_auto, table).values()) for task, table in _TABLES.items()}
        task = next((task for task, known in listed.items() if names[0] in known), None)
        if task is None:
            raise NabnError(f"{folder} holds {names[0]}, which is for none of {', '.join(_TABLES)}")
        kind = getattr(transformers, names[0])
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
    config.return_dict = True
    return Architecture(folder=folder, kind=kind, task=task, config=config)


def build_network(name: str, *, seed: int = 0) -> nn.Module:
    """Return the network of a folder's configuration with random weights, in eval mode.

    Raises:
        NabnError: as for `read_architecture`, or the network cannot be built.
    """
    found = read_architecture(name)
    seeded = private_rng(derive_seed(seed, "weights"), torch_only=False)
    with _quietly(f"{found.name} of {found.folder} cannot be built"), seeded:
        return with_plain_outputs(found.kind(found.config))


def load_network(architecture: Architecture) -> tuple[nn.Module, list[str]]:
    """Return a folder's network with its weights, in eval mode, and lines on them.

    It takes images ``[N, 3, H, W]`` and returns its scores alone, a detector `Boxes`, and the loss where it is given
    ``labels``.

    Raises:
        NabnError: the weights are missing, cannot be read, or are another network's.
    """
    import torch

    folder, files = architecture.folder, _weight_files(architecture.folder)
    source = f"weights {files[0] if len(files) == 1 else folder}"
    safe = files[0].suffix == ".safetensors"
    for file in () if safe else files:
        read_checkpoint(file)  # its errors say what is wrong
    with _quietly(f"{source} cannot be loaded into {architecture.name}"):
        network, told = architecture.kind.from_pretrained(
            folder,
            config=architecture.config,
            local_files_only=True,
            use_safetensors=safe,
            weights_only=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # told below
            output_loading_info=True,
        )
    faults = {
        "missing": sorted(told["missing_keys"]),
        "of another shape": sorted(key for key, *_ in told["mismatched_keys"]),
    }
    lines = [f"{kind} {some(names)}" for kind, names in faults.items() if names]
    if lines:
        raise NabnError(f"{source} do not fit {architecture.name} of {folder / CONFIG}: {'; '.join(lines)}")
    unused = sorted(told["unexpected_keys"])
    notes = [f"{source}: left out, not of this network: {some(unused)}"] if unused else []
    return with_plain_outputs(network), notes


def with_plain_outputs(network: Any) -> nn.Module:
    """Let a network return its scores alone, a detector `Boxes`, or its loss where it is given labels; in eval mode."""
    network.config.return_dict = True
    network.register_forward_hook(_plain)
    found: nn.Module = network.eval()
    return found


def load_processor(architecture: Architecture) -> Any:
    """Return a folder's image processor.

    Raises:
        NabnError: there is none, or it cannot be read.
    """
    path = architecture.folder / PROCESSOR
    _read(path)
    with _quietly(f"{path} cannot be read"):
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(architecture.folder, local_files_only=True, trust_remote_code=False)


def digest_of(architecture: Architecture) -> str:
    """Return what tells a folder's way of reading images from another."""
    return hashlib.sha256((architecture.folder / PROCESSOR).read_bytes()).hexdigest()[:16]


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise NabnError(f"folder {path.parent} has no {path.name}, which save_pretrained writes")
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise NabnError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, Mapping):
        raise NabnError(f"{path} must hold a mapping, got a {type(content).__name__}")
    return content


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder's weights, safetensors by preference."""
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            parts = _read(index).get("weight_map")
            if not isinstance(parts, Mapping) or not parts:
                raise NabnError(f"{index} must say in weight_map which file holds which tensor, got {parts!r:.80}")
            files = [folder / str(part) for part in sorted(set(map(str, parts.values())))]
            lacking = [file.name for file in files if not file.is_file()]
            if lacking:
                raise NabnError(f"folder {folder} lacks {some(lacking)}, which {index.name} names")
            return files
    raise NabnError(f"folder {folder} has no weights: neither {' nor '.join(_WEIGHTS)}")


def _plain(module: nn.Module, images: Any, output: Any) -> Any:
    if output.get("loss") is not None:
        return output["loss"]
    return Boxes(output["logits"], output["pred_boxes"]) if "pred_boxes" in output else output["logits"]


def _flat(entries: Any) -> set[str]:
    return {name for entry in entries for name in ((entry,) if isinstance(entry, str) else entry)}


@contextmanager
def _quietly(what: str) -> Iterator[None]:
    """Let transformers neither talk nor download inside the block; its errors begin with `what`.

    Raises:
        MissingDependencyError: it needs timm, which is not installed.
        NabnError: it raised another error.
    """
    from huggingface_hub import constants
    from transformers.utils import logging

    kept = constants.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled()
    with ExitStack() as stack:
        stack.callback(setattr, constants, "HF_HUB_OFFLINE", kept[0])
        stack.callback(logging.set_verbosity, kept[1])
        stack.callback(logging.enable_progress_bar if kept[2] else logging.disable_progress_bar)
        constants.HF_HUB_OFFLINE = True
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        except NabnError:
            raise
        except Exception as error:  # each network has its own way of refusing its files
            if isinstance(error, ImportError) and "timm" in str(error) and importlib.util.find_spec("timm") is None:
                raise missing_extra("timm", "timm") from error
            raise NabnError(f"{what}: {type(error).__name__}: {first_line(error)}") from error
