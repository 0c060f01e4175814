"""Trained networks on disk, so that an interrupted comparison need not train again."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.files import parse_json, write_bytes
from aihwkit_nabn.training.report import TrainedModel, TrainingReport


class TrainedStore:
    """A folder with one safetensors file per trained network, what it cost in the file's header.

    Args:
        folder: The folder.
        model: The digital network that is trained; a copy is filled when reading.
        resume: Read files that are there; otherwise train anew and replace them.
    """

    def __init__(self, folder: Path, model: nn.Module, *, resume: bool) -> None:
        self.folder, self.model, self.resume = folder, model, resume
        self._latest: tuple[str, TrainedModel] | None = None  # others would fill the memory of a long run
        self._trained: set[str] = set()  # in this run

    def path(self, name: str) -> Path:
        """Return the file of a network: ``additive 0.06, hwa`` lies in ``additive_0.06_hwa.safetensors``."""
        return self.folder / f"{re.sub(r'[^A-Za-z0-9.]+', '_', name)}.safetensors"

    def get(self, name: str, setup: dict[str, Any], train: Callable[[], TrainedModel]) -> TrainedModel:
        """Return the network of this name, trained now unless its file is there.

        Args:
            name: Of the training.
            setup: What must be the same for a file to be used; plain JSON values.
            train: Trains it.

        Raises:
            NabnError: a file is damaged, of another set-up, or cannot be written.
        """
        if self._latest is None or self._latest[0] != name:
            path = self.path(name)
            if (self.resume or name in self._trained) and path.is_file():
                self._latest = name, self._read(path, setup)
            else:
                self._latest = name, train()
                _write(path, self._latest[1], setup)
                self._trained.add(name)
        return self._latest[1]

    def _read(self, path: Path, setup: dict[str, Any]) -> TrainedModel:
        try:
            with safe_open(path, framework="pt") as file:
                header = parse_json((file.metadata() or {})["nabn"])
            report = header["report"]
            report.pop("labels")
            report = TrainingReport(**{**report, "losses": tuple(report["losses"])})
            model = copy.deepcopy(self.model)
            model.load_state_dict(load_file(path))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise NabnError(f"{path} is damaged or of another network; delete it or run without --resume") from error
        if header.get("setup") != setup:
            raise NabnError(f"{path} was trained with {header.get('setup')}, not {setup}; run without --resume")
        return TrainedModel(model=model.eval(), report=report)


def _write(path: Path, trained: TrainedModel, setup: dict[str, Any]) -> None:
    state = {name: value.detach().cpu().clone().contiguous() for name, value in trained.model.state_dict().items()}
    header = json.dumps({"setup": setup, "report": trained.report.to_dict()})
    write_bytes(path, save(state, metadata={"nabn": header}))
