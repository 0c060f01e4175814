"""Small runs of the commands, with every seed they derive: what a rebuilt house must give as the old one did.

``python tests/frozen/runs.py`` writes `frozen.json` anew. A change there is a change of everybody's numbers: say so in
the changelog.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

import aihwkit_nabn
from aihwkit_nabn import seeding

FROZEN = Path(__file__).with_name("frozen.json")
ROOT = Path(__file__).parents[2]
UNEQUAL = ("seconds_calibration", "seconds_evaluation")
"""Fields of a record that differ from run to run."""


def nabn(*arguments: object) -> None:
    """Run a command in this process, with its output thrown away."""
    from aihwkit_nabn import cli
    from aihwkit_nabn.commands._run import run

    shown, sys.stdout = sys.stdout, open(os.devnull, "w")
    try:
        assert run(cli.app, [str(argument) for argument in arguments]) == 0
    finally:
        sys.stdout.close()
        sys.stdout = shown


@contextlib.contextmanager
def recorded_seeds() -> Iterator[dict[str, int]]:
    """Give the seeds that are derived inside the block, by what they are derived from."""
    found: dict[str, int] = {}
    original = seeding.derive_seed

    def derive_seed(seed: int, *keys: object) -> int:
        found["|".join(map(str, (seed, *keys)))] = value = original(seed, *keys)
        return value

    def put(old: object, new: object) -> None:
        for module in list(sys.modules.values()):
            if module.__name__.startswith("aihwkit_nabn") and getattr(module, "derive_seed", None) is old:
                module.derive_seed = new  # type: ignore[attr-defined]

    put(original, derive_seed)
    try:
        yield found
    finally:
        put(derive_seed, original)  # also where it was imported inside the block


def result_of(path: Path) -> dict[str, Any]:
    """Return what a ``results.json`` holds, without times."""
    content = json.loads(path.read_text())
    records = [{k: v for k, v in record.items() if k not in UNEQUAL} for record in content["records"]]
    return {"digital": content["digital"], "records": records}


def config(folder: Path) -> dict[str, Any]:
    """``nabn test`` on the demo's segmentor: two chips, five methods."""
    from aihwkit_nabn.data.demo_configs import demo_checkpoint_path, demo_config_path
    from aihwkit_nabn.data.shapes import write_shapes

    write_shapes(folder / "shapes", n_train=16, n_val=4, seed=0)
    name, before = "shapes_segmenter", os.environ.get("NABN_DATA")
    os.environ["NABN_DATA"] = str(folder)
    try:
        nabn(
            *("test", demo_config_path(name), demo_checkpoint_path(name), "--out", folder / "out", "--workers", 0),
            *("--noise", "crossbar", "--time", "1h", "--chips", 2, "--seed", 5, "--max-samples", 12),
            *("--methods", "none,population,paired,low_rank,auto", "--examples", 1),
        )
    finally:
        os.environ.pop("NABN_DATA") if before is None else os.environ.update(NABN_DATA=before)
    return result_of(folder / "out" / "results.json")


def draw_folder(root: Path) -> Path:
    """Draw an image folder of two classes, four images each."""
    for part in ("train", "val"):
        for label, shade in (("bright", 200), ("dark", 60)):
            (root / part / label).mkdir(parents=True)
            for number in range(4):
                image = Image.new("RGB", (36, 34), (shade, 40 * number, 90))
                image.paste((255 - shade, 20, 60 * number), (4 * number, 6, 4 * number + 12, 20))
                image.save(root / part / label / f"{number}.png")
    return root


def image_folder(folder: Path) -> dict[str, Any]:
    """``nabn test`` on an image folder."""
    nabn(
        *("test", "torchvision:resnet18", "random", "--data", draw_folder(folder / "data"), "--image-size", 32),
        *("--noise", "gaussian:sigma=0.1,relative_to=max", "--chips", 2, "--max-samples", 6, "--limit", 6),
        *("--methods", "none,population,paired,distill:steps=3", "--workers", 0, "--out", folder / "out"),
    )
    return result_of(folder / "out" / "results.json")


def compare(folder: Path) -> dict[str, Any]:
    """``nabn compare --quick`` with fewer chips, epochs and steps."""
    nabn("compare", "--quick", "--chips", 2, "--epochs", 1, "--methods", "population,paired", "--out", folder)
    return result_of(folder / "results.json")


def sensitivity(folder: Path) -> dict[str, Any]:
    """``nabn sensitivity --chips 2`` with fewer images."""
    nabn("sensitivity", "--chips", 2, "--limit", 60, "--max-samples", 32, "--reverse", "--out", folder)
    content = json.loads((folder / "sensitivity.json").read_text())
    ((metric, digital),) = content["digital"].items()
    losses = [
        {
            **{name: record[name] for name in ("scenario", "method", "chip_seed")},
            **record["axes"],
            "loss": digital - record["metrics"][metric],
        }
        for record in content["records"]
    ]
    return {"metric": metric, "digital": digital, "losses": losses, "shares": content["settings"]["shares"]}


def sweep_content(folder: Path, *, stream: bool = False) -> dict[str, Any]:
    """Return the sweep of ``digits_quick.yaml``, cut, or a short stream."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "sweeps" / "digits_quick.yaml").read_text())
    content |= {"chips": 2, "noise": [{"preset": "gaussian", "strength": [0.05, 0.15]}], "samples": [4, 16]}
    content |= {"test_images": 120, "calibration": ["representative", "one_class"], "jpeg": [30]}
    content["methods"] += [{"method": "paired", "reference": "clean"}]
    if stream:
        content = {key: content[key] for key in ("version", "name", "models", "test_images")}
        content |= {"chips": 1, "noise": ["variational:sigma=0.1,schedule=ramp,period_samples=60"], "samples": [16]}
        tracking = ["none", "online", {"method": "paired", "every": 20}]
        content["stream"] = {"images": 60, "window": 20, "batch": 10, "tracking": tracking}
    return content


def _sweep(folder: Path, *, stream: bool) -> dict[str, Any]:
    from aihwkit_nabn.studies._base import Worker
    from aihwkit_nabn.studies.grid import GridStudy

    content = sweep_content(folder, stream=stream)
    # What a worker does, in this process: the seeds of another one could not be seen.
    study = GridStudy(content)
    worker = Worker(study)
    for job in study.jobs({}):
        for _ in worker.events(job):
            pass
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(content))
    nabn("sweep", file, "--jobs", 1, "--out", folder / "out")
    return result_of(folder / "out" / "digits" / "results.json")


def sweep(folder: Path) -> dict[str, Any]:
    """``nabn sweep configs/sweeps/digits_quick.yaml``, cut in size, with every axis."""
    return _sweep(folder, stream=False)


def stream(folder: Path) -> dict[str, Any]:
    """``nabn sweep`` along a short stream."""
    return _sweep(folder, stream=True)


RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {
    run.__name__: run for run in (config, image_folder, compare, sensitivity, sweep, stream)
}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Return what a run gives, and the seeds it derives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with recorded_seeds() as seeds:
            found = RUNS[name](folder)
    finally:
        torch.set_num_threads(threads)
    return {**found, "seeds": seeds}


def seed_keys() -> list[str]:
    """Return what the package derives seeds for: the arguments of `derive_seed` in its source, ``*`` for names."""
    found = set()
    for path in sorted(Path(aihwkit_nabn.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "derive_seed":
                keys = [str(key.value) if isinstance(key, ast.Constant) else "*" for key in node.args[1:]]
                found.add("|".join(keys))
    return sorted(found)


def machine() -> str:
    """Return what tells machines apart that compute the same to the last digit."""
    generator = torch.Generator().manual_seed(0)
    images, weight = torch.randn(4, 8, 12, 12, generator=generator), torch.randn(16, 8, 3, 3, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = torch.nn.functional.conv2d(images, weight).flatten(1)
    out = torch.exp(-(out @ out.t()).abs() / 100) + out.std(1)
    torch.set_num_threads(threads)
    return f"torch {torch.__version__} {hashlib.sha256(out.numpy().tobytes()).hexdigest()[:16]}"


if __name__ == "__main__":
    content: dict[str, Any] = {"machine": machine(), "seed_keys": seed_keys(), "runs": {}}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as place:
            content["runs"][name] = measure(name, Path(place))
    FROZEN.write_text(json.dumps(content, indent=0) + "\n")
