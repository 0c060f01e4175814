"""Labelled images of torchvision's train sets that are not calibrated with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aihwkit_nabn.data.image_files import FileList
from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings, Workload, load_workload
from tests.workloads.scenes import draw_coco, draw_masks

CASES = [("ssdlite320_mobilenet_v3_large", draw_coco), ("lraspp_mobilenet_v3_large", draw_masks)]


@pytest.mark.parametrize(("name", "draw"), CASES)
def test_they_are_measured_on(
    name: str, draw: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = draw(tmp_path / "data")
    workload = _load(name, root)
    read: list[Path] = []
    loader = FileList.loader
    monkeypatch.setattr(FileList, "loader", staticmethod(lambda path: (read.append(Path(path)), loader(path))[1]))

    def files(run: Callable[[], object]) -> set[Path]:
        read.clear()
        run()
        return set(read)

    request = CalibrationRequest(n=2)
    calibrated = files(lambda: list(workload.calibration(request)))
    assert workload.held_back is not None and len(calibrated) == 2
    eval_fn = workload.held_back(9, request)
    assert eval_fn is not None
    metrics: dict[str, float] = {}
    searched = files(lambda: metrics.update(eval_fn(workload.model)))
    assert len(searched) == 2 and not searched & calibrated
    assert {path.parent for path in searched} == {path.parent for path in calibrated}, "of the train set"
    assert set(metrics) == set(workload.eval_fn(workload.model))
    fewer = workload.held_back(1, request)
    assert fewer is not None and files(lambda: fewer(workload.model)) < searched
    assert workload.held_back(9, CalibrationRequest(n=None)) is None
    for path in (root / "annotations" / "instances_train.json", *(root / "masks" / "train").glob("*")):
        path.unlink(missing_ok=True)
    assert _load(name, root).held_back(9, request) is None, "without labels"


def _load(name: str, root: Path) -> Workload:
    settings = LoadSettings(loader_workers=0)
    return load_workload(f"torchvision:{name}", settings, checkpoint="random", data=str(root), image_size=64)
