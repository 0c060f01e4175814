"""The container of a chip file: named tensors and JSON in one safetensors file, versioned and with a checksum."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from aihwkit_nabn.errors import ChipFileError
from aihwkit_nabn.files import parse_json, write_bytes

FORMAT = "aihwkit_nabn.chip"
VERSION = 2
"""Of the files that are written. Version 1 holds the weights also where they are those programmed."""

READABLE = ("1", "2")


def write_container(path: Path, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write JSON values and named tensors to a file in one step; its folder is made if need be.

    Raises:
        NabnError: the file cannot be written.
    """
    text = json.dumps(content, allow_nan=False)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "version": str(VERSION), "content": text, "sha256": checksum(text, plain)}
    write_bytes(path, save(plain, header))


def tensor_names(path: Path) -> list[str]:
    """Return the names of a file's tensors without reading them; the file is one that `read_container` has read."""
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def read_container(path: Path, *, with_tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `write_container` wrote, or of its tensors none: these are then not checked either.

    Raises:
        ChipFileError: no such file, or it is truncated, of something else, of an unknown version or altered.
    """
    tensors: dict[str, Tensor] = {}
    if not path.is_file():
        raise ChipFileError(f"no chip file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") == FORMAT and with_tensors:
                # Copies: safetensors maps the file, and who cut it short later would take the process down.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ChipFileError(f"{path} is truncated, damaged, or no chip file: {error}") from error
    if header.get("format") != FORMAT:
        raise ChipFileError(f"{path} is no chip file of this package: its format is not {FORMAT!r}")
    if header.get("version") not in READABLE:
        raise ChipFileError(
            f"{path} has version {header.get('version')!r} of the format; this release reads versions "
            f"{' and '.join(READABLE)}"
        )
    text = header.get("content", "")
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ChipFileError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ChipFileError(f"{path} is damaged: its content must be a mapping")
    if with_tensors and header.get("sha256") != checksum(text, tensors):
        raise ChipFileError(f"{path} was altered or damaged after it was written: the checksum does not fit")
    return content, tensors


def checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of a text and named tensors on the CPU, in hexadecimal."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()
