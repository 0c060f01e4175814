"""Our operators against mmcv's, as the two scripts compare and time them; ours stand in for mmcv's here."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")

import coverage_models
import switching

from aihwkit_nabn.commands._run import run
from aihwkit_nabn.stacks import compile_mmcv

TOOLS = Path(__file__).parents[2] / "tools"
CPU = torch.device("cpu")
SMALL = """
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py']
model = dict(
    backbone=dict(depth=18, base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=16), bbox_head=dict(in_channels=16, fc_out_channels=32)))
"""


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return load_tool("compare_operators")


@pytest.fixture
def timing(load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS / "benchmarks"))
    return load_tool("benchmarks/operators")


def changed(**functions: Callable) -> ModuleType:
    """Return our operators with some in place of others."""
    module = ModuleType("changed")
    module.__dict__.update({name: getattr(switching.ours(), name) for name in switching.ours().__all__}, **functions)
    return module


def enlarged(x, rois, output, *rest, **options) -> None:
    switching.ours().roi_align_forward(x, rois, output, *rest, **options)
    output *= 1.001


def test_ours_are_as_ours_and_every_function_is_called(tool) -> None:
    called: set[str] = set()
    for name in tool.OPERATORS:
        row = tool.compare(name, (switching.ours(), switching.ours()), 8, CPU)
        if name == "line_nms" and row.problem:
            assert row.problem == "not in this mmcv"  # but in its fork
            called.add("line_nms_forward")
            continue
        assert (row.error, row.inputs, row.problem) == (0.0, 8, ""), name
        called |= row.functions
    # mmcv's plain CARAFE has no gradients on CPUs.
    others = {"get_compiler_version", "get_compiling_cuda_version", "carafe_naive_backward"}
    assert called == set(switching.ours().__all__) - others


def test_differences_are_found(tool) -> None:
    def worst_first(boxes, scores, **options):
        return switching.ours().nms(boxes, -scores, **options)

    for name, theirs, error in (
        ("nms", changed(nms=worst_first), math.inf),
        ("roi_align_mean", changed(roi_align_forward=enlarged), 1e-3),
    ):
        row = tool.compare(name, (switching.ours(), theirs), 20, CPU)
        assert not row.passes and row.error == pytest.approx(error, rel=0.01)
    zeros, one = torch.zeros(2), torch.ones(2)
    for found, expected in (([zeros], []), ([zeros], [torch.zeros(3)]), ([zeros], [zeros.double()])):
        assert tool.compare.__globals__["difference"](found, expected) == math.inf
    assert tool.compare.__globals__["difference"]([one * 1.5, one], [one, one]) == 0.5


def test_what_mmcv_cannot_do_is_no_fault_and_any_other_error_is(tool) -> None:
    def refuse(*args, **options):
        raise RuntimeError("roi_pool_forward_impl: implementation for device cpu not found.\n")

    def fail(*args, **options):
        raise RuntimeError("out of range\nmore")

    row = tool.compare("roi_pool", (switching.ours(), changed(roi_pool_forward=refuse)), 3, CPU)
    assert row.passes and row.inputs == 0 and "no CPU code" in row.problem
    row = tool.compare("roi_pool", (changed(roi_pool_forward=fail), switching.ours()), 3, CPU)
    assert not row.passes and row.problem == "seed 0: RuntimeError: out of range"


def test_mmcv_has_its_operators_back_afterwards() -> None:
    importlib.import_module("mmcv.ops")
    module = sys.modules["mmcv.ops.nms"]  # mmcv.ops.nms is the function
    before = module.ext_module
    with pytest.raises(KeyError), switching.mmcv_calls(switching.ours()):
        assert module.ext_module is not before
        raise KeyError
    assert module.ext_module is before


def test_training_is_compared(tool, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "small.py").write_text(SMALL)
    monkeypatch.setitem(coverage_models.MODELS, "small", str(tmp_path / "small.py"))
    ours = switching.ours()
    row = tool.compare_training("small", (ours, ours))
    assert row.passes and row.losses == row.gradients == 0
    assert row.functions == {"nms", "roi_align_forward", "roi_align_backward"}
    row = tool.compare_training("small", (ours, changed(roi_align_forward=enlarged)))
    assert not row.passes and row.losses > tool.BAR and row.gradients > tool.BAR


def test_the_page(tool, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(switching, "compiled", lambda: switching.ours())
    row = tool.Training(model="retinanet r50", functions=frozenset(), losses=2e-7, gradients=0.0)
    monkeypatch.setattr(tool, "compare_training", lambda name, kinds, device: row)
    out = tmp_path / "operators.md"
    out.write_text(f"# Mine\n\n{tool.BEGIN}\nold\n{tool.END}\n\nAfter.\n{tool.END}\n")
    with monkeypatch.context() as few:
        few.setattr(tool, "OPERATORS", {name: tool.OPERATORS[name] for name in ("nms", "psa_mask")})
        few.setattr(tool, "DETECTORS", ("retinanet r50",))
        assert run(tool.app, ["--inputs", "3", "--out", str(out)]) == 0
    text = out.read_text()
    assert text.startswith("# Mine\n") and text.endswith(f"After.\n{tool.END}\n") and "old" not in text
    assert "| nms | 3 | 0 |  |" in text and "| retinanet r50 | 2.0e-07 | 0 | none on cpu |" in text
    assert tool.COMMAND in text and "3 random inputs" in text
    monkeypatch.setattr(switching, "compiled", lambda: changed(psamask_forward=lambda *t, **options: None))
    capsys.readouterr()
    assert run(tool.app, ["psa_mask", "--inputs", "3"]) == 1
    assert "psa_mask: largest difference with the inputs of seed" in capsys.readouterr().out
    assert run(tool.app, ["nmss"]) == 2 and "did you mean 'nms'?" in capsys.readouterr().err
    assert run(tool.app, ["nms", "--out", str(out)]) == 2 and "of all operators" in capsys.readouterr().err
    assert run(tool.app, ["nms", "--device", "gpu"]) == 2 and "device must be" in capsys.readouterr().err
    assert out.read_text() == text


def test_without_a_compiled_mmcv(tool, timing, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(switching, "compiled", lambda: None)
    assert run(tool.app, ["nms"]) == 2
    error = capsys.readouterr().err
    assert "no compiled operators to compare with" in error and compile_mmcv() in error
    assert timed(timing, monkeypatch, None) == 0
    assert "ours alone" in capsys.readouterr().out
    assert timed(timing, monkeypatch, None, tmp_path / "operators.md") == 2
    assert "no compiled operators" in capsys.readouterr().err and not (tmp_path / "operators.md").exists()
    assert run(timing.app, ["--device", "gpu"]) == 2 and "device must be" in capsys.readouterr().err


def test_both_kinds_are_timed(timing, tmp_path: Path, monkeypatch, capsys) -> None:
    assert timed(timing, monkeypatch, switching.ours(), tmp_path / "operators.md") == 0
    text = (tmp_path / "operators.md").read_text()
    assert "| operator | mmcv (ms) | ours (ms) | ours / mmcv |" in text and timing.COMMAND in text
    row = next(line for line in text.splitlines() if line.startswith("| nms, 9 boxes |"))
    theirs, ours, ratio = (float(cell) for cell in row.split("|")[2:5])
    assert 0 < theirs < 100 and ratio == pytest.approx(ours / theirs, rel=0.5)
    assert "mmcv itself runs torch code" in capsys.readouterr().out


def timed(timing: ModuleType, monkeypatch, compiled: ModuleType | None, out: Path | None = None) -> int:
    from mmcv.ops.nms import nms

    boxes, scores = torch.rand(9, 4), torch.rand(9)
    monkeypatch.setattr(switching, "compiled", lambda: compiled)
    monkeypatch.setattr(timing, "compiled", lambda: compiled)
    monkeypatch.setattr(timing, "cases", lambda device: {"nms, 9 boxes": lambda: nms(boxes, scores, 0.5)})
    monkeypatch.setattr(timing, "SHORTEST", 0.002)
    threads = torch.get_num_threads()
    try:
        where = [] if out is None else ["--out", str(out)]
        return run(timing.app, ["--repeats", "2", "--threads", "1", *where])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_every_timed_call_runs(timing) -> None:
    for call in timing.cases(CPU).values():
        with switching.mmcv_calls(switching.ours()):
            call()
