"""Whoever adds something writes one file, anywhere, and edits none of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aihwkit_nabn import cli
from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.extension import import_extension
from aihwkit_nabn.noise import NOISE_MODELS
from aihwkit_nabn.results import RecordLog
from aihwkit_nabn.workloads import WORKLOADS

NOISE = """
from aihwkit_nabn.noise import WeightNoiseModel, register_noise_model

@register_noise_model("added_loss")
class AddedLoss(WeightNoiseModel):
    \"\"\"Every conductance loses the same share.\"\"\"

    strength = "loss"

    def __init__(self, loss: float = 0.3) -> None:
        super().__init__()
        self.loss = loss

    def program(self, weights, w_max, generator):
        return weights * (1 - self.loss)
"""
METHOD = """
import torch
from aihwkit_nabn import CalibrationMethod, register_calibration_method

@register_calibration_method("added_louder")
class Louder(CalibrationMethod):
    \"\"\"Scales every output by the same factor.\"\"\"

    summary = "every output of every layer times a factor"

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def calibrate(self, session) -> None:
        for alignment in session.alignments.values():
            alignment.set(self.factor * torch.ones(alignment.n_channels), torch.zeros(alignment.n_channels))
"""
WORKLOAD = """
import torch
from torch import nn
from aihwkit_nabn.workloads import WORKLOADS, Workload, WorkloadKind

def load(name, settings, *, size=4):
    torch.manual_seed(settings.seed)
    model = nn.Sequential(nn.Linear(size, 2, bias=False)).eval()
    images = torch.ones(6, size)
    return Workload(
        model=model,
        eval_fn=lambda candidate: {"mean": float(candidate(images).abs().mean())},
        calibration=lambda request: [images],
    )

WORKLOADS.register("added")(WorkloadKind(load=load))
"""
STUDY = """
from aihwkit_nabn.evaluation import Scenario
from aihwkit_nabn.evaluation.plan import PlannedMethod
from aihwkit_nabn.evaluation import MethodSpec
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.studies import Study
from aihwkit_nabn.workloads import load_workload

class Strengths(Study):
    \"\"\"A chip per strength.\"\"\"

    def jobs(self, known):
        done = {record.scenario for record in known.values()}
        return [loss for loss in (0.1, 0.5) if f"loss {loss}" not in done]

    def load(self, place):
        return load_workload("added")

    def measure(self, job, workload):
        protocol = EvaluationProtocol(workload.model, workload.eval_fn)
        scenario = Scenario(name=f"loss {job}", rpu_config=parse_preset(f"added_loss:loss={job}"))
        analog = protocol.analog(scenario.rpu_config)
        protocol.program(analog, scenario, 0)
        method = PlannedMethod(spec=MethodSpec("none"), batches=None, needs_reference=False)
        yield protocol.record(analog, scenario, 0, method)[0]
"""


@pytest.fixture
def files(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Write the four files, and take out at the end what they have entered."""
    paths = {}
    for name, text in {"noise": NOISE, "method": METHOD, "workload": WORKLOAD, "study": STUDY}.items():
        paths[name] = tmp_path / f"added_{name}.py"
        paths[name].write_text(text)
    yield paths
    for registry, name in ((NOISE_MODELS, "added_loss"), (CALIBRATION_METHODS, "added_louder"), (WORKLOADS, "added")):
        if name in registry:
            registry.unregister(name)


def test_noise_method_and_workload_meet_in_a_command(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    imports = [text for name in ("noise", "method", "workload") for text in ("--import", str(files[name]))]
    arguments = ["test", "added", "--noise", "added_loss:loss=0.25", "--methods", "none,added_louder:factor=3"]
    assert run(cli.app, [*arguments, "--chips", "1", "--out", str(out), *imports]) == 0
    content: dict[str, Any] = json.loads((out / "results.json").read_text())
    values = {record["method_name"]: record["metrics"]["mean"] for record in content["records"]}
    assert values["none"] == pytest.approx(0.75 * content["digital"]["mean"], rel=1e-5)
    assert values["added_louder"] == pytest.approx(3 * values["none"], rel=1e-5)


def test_a_study_goes_on_where_it_stopped(files: dict[str, Path], tmp_path: Path) -> None:
    from aihwkit_nabn.studies import run_study

    _, _, module = (import_extension(str(files[name])) for name in ("noise", "workload", "study"))
    study = module.Strengths()
    with RecordLog(tmp_path / "log.jsonl", {}) as log:
        run_study(study, log)
    first, second = (record.metrics["mean"] for record in log.records.values())
    assert first > second and study.jobs(log.records) == []
