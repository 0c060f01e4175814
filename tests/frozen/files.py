"""What lies in `version_0_1`, and how it was written: a chip, and the logs and results of three commands.

``python tests/frozen/files.py`` wrote them with version 0.1.0. Files of a version that was released are not written
anew; they must stay readable.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
import yaml

import aihwkit_nabn as nabn
from tests.frozen.runs import nabn as command
from tests.frozen.tiny_workload import tiny_images, tiny_network  # also enters ``tiny:net``

OLD = Path(__file__).with_name("version_0_1")
SWEEP = {
    "version": 1,
    "name": "old",
    "chips": 2,
    "models": ["digits"],
    "noise": ["gaussian:sigma=0.1"],
    "methods": ["none", "paired"],
    "samples": [4],
    "test_images": 20,
    "test_batch": 256,  # as 0.1 had them by default
    "calibration_batch": 64,
}


def test(out: Path, *more: str) -> None:
    """Run ``nabn test`` on the tiny network."""
    common = ("--noise", "gaussian:sigma=0.1", "--chips", 2, "--methods", "none,population,paired", "--out", out)
    command("test", "tiny:net", "random", "--data", ".", *common, *more)


def sensitivity(out: Path, *more: str) -> None:
    """Run ``nabn sensitivity`` on the tiny network."""
    common = ("--noise", "gaussian:sigma=0.1", "--chips", 2, "--out", out)
    command("sensitivity", "tiny:net", "random", "--data", ".", *common, *more)


def sweep(out: Path) -> None:
    """Run ``nabn sweep`` on the digits."""
    file = out.parent / "old.yaml"
    file.write_text(yaml.safe_dump(SWEEP))
    command("sweep", file, "--jobs", 1, "--out", out)


def chip() -> torch.nn.Module:
    """Return a calibrated chip of the tiny network."""
    analog = nabn.convert_to_noise_aware(tiny_network(), nabn.presets.PCMPreset())
    nabn.program_chip(analog, seed=3, t_inference="1h")
    nabn.calibrate(analog, [tiny_images()], method="paired", reference=tiny_network())
    return analog


if __name__ == "__main__":
    OLD.mkdir(exist_ok=True)
    nabn.save_chip(chip(), OLD / "chip.safetensors")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        test(folder / "test")
        sensitivity(folder / "sensitivity")
        sweep(folder / "sweep")
        for kept in (
            *("test/records.jsonl", "test/results.json", "sweep/records.jsonl"),
            *("sensitivity/sensitivity.jsonl", "sensitivity/sensitivity.json"),
        ):
            (OLD / kept).parent.mkdir(exist_ok=True)
            shutil.copy(folder / kept, OLD / kept)
