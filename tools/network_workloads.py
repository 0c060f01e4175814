"""The networks of the set as workloads, for every command: ``network:NAME``.

Run: ``nabn place network:efficientnet_lite0 --import tools/network_workloads.py --data ../shared/data --loss 2``. For
detectors and segmentors the checkpoint is the folder of those that were trained. A search measures on the images of
``network_set.py --split train``; with EfficientNet-Lite0 give ``--calibration-images 32``, since it has no others.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # where the networks are

from networks import NETWORKS, Options

from aihwkit_nabn.evaluation.plan import EvalFn
from aihwkit_nabn.workloads import WORKLOADS, CalibrationRequest, LoadSettings, Workload, WorkloadKind
from aihwkit_nabn.workloads._checks import check_text


def load(name: str, settings: LoadSettings, *, data: str | None = None, checkpoint: str = "work_dirs") -> Workload:
    """Return a network of the set.

    Args:
        name: As ``network_set.py --networks`` takes it.
        settings: Seed and number of test images.
        data: Folder of the data; default: ``$NABN_DATA`` or ``data``.
        checkpoint: Folder of trained networks.
    """
    kind = NETWORKS.get(name)
    options = Options(
        data_root=Path(data or os.environ.get("NABN_DATA") or "data"),
        checkpoints=Path(checkpoint),
        out=settings.work_dir or Path("nabn_results/networks"),
        seed=settings.seed,
        test_images=settings.test_images,
    )
    kind.require(options)

    def held_back(count: int, request: CalibrationRequest) -> EvalFn:
        return kind.load(replace(options, split="train", test_images=count)).eval_fn

    return replace(kind.load(options), held_back=held_back)


WORKLOADS.register("network")(
    WorkloadKind(load=load, options={"data": check_text, "checkpoint": check_text}, named=True)
)
