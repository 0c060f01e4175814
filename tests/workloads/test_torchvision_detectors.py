"""Weights of torchvision's detectors, in files of every age, and what their labels mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn import NoiseAwareBatchNorm
from aihwkit_nabn.workloads import CalibrationRequest
from aihwkit_nabn.workloads._torchvision_detectors import _build, _build_full_tail, labels_of, set_size
from aihwkit_nabn.workloads._torchvision_files import ReadWeights
from tests.workloads.scenes import RCNN, SSD, draw_coco, load_drawn, save_state, settled


def test_weights_are_read_whichever_backbone_they_were_trained_on(coco: Path, tmp_path: Path) -> None:
    for number, model in enumerate((settled(_build(SSD, 4)), settled(_build_full_tail(4)))):
        there = load_drawn(coco, checkpoint=save_state(tmp_path / f"{number}.pth", model)).model
        assert there.state_dict().keys() == model.state_dict().keys()
        set_size(model, 64)
        image = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            ours, theirs = there(image)[0], model(image)[0]
        assert torch.equal(ours["scores"], theirs["scores"]) and float(ours["scores"].std()) > 0.01


def _old_names(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return a state dict as torchvision wrote it before its heads were made of blocks."""

    def old(key: str) -> str:
        key = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", key)
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        key = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)
        if name == "retinanet_resnet50_fpn":
            key = re.sub(r"(head\.\w+_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", key)
        return key

    return {old(key): tensor for key, tensor in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [RCNN, "retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn", "fcos_resnet50_fpn"])
def test_names_of_older_files_are_known_as_torchvision_knows_them(name: str, coco: Path, tmp_path: Path) -> None:
    model = _build(name, 4)
    state = _old_names(model.state_dict(), name)
    assert state.keys() != model.state_dict().keys()
    twin = _build(name, 4)
    twin.load_state_dict(dict(state))  # torchvision's own loading takes them
    torch.save(state, tmp_path / "old.pth")
    there = load_drawn(coco, name, checkpoint=str(tmp_path / "old.pth")).model.state_dict()
    assert all(torch.equal(there[key], tensor) for key, tensor in twin.state_dict().items())


def test_frozen_normalization_is_kept_and_calibrated(coco: Path, tmp_path: Path) -> None:
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4)
    state = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if not (key.startswith("backbone") and key.endswith("num_batches_tracked"))
    }
    torch.save(state, tmp_path / "frozen.pth")
    workload = load_drawn(coco, RCNN, checkpoint=str(tmp_path / "frozen.pth"))
    frozen = [name for name, module in workload.model.named_modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(frozen) == 46 and "frozen BatchNorm layers" in workload.description[-1]
    analog = nabn.convert_to_noise_aware(workload.model, nabn.presets.GaussianWeightNoisePreset(sigma=0.05))
    nabn.program_chip(analog, seed=0)
    batches = workload.calibration(CalibrationRequest(n=2))
    nabn.calibrate(analog, batches, method="population", forward_fn=workload.forward_fn, progress=False)
    norms = [analog.get_submodule(name) for name in frozen]
    assert all(isinstance(norm, NoiseAwareBatchNorm) and norm.is_calibrated for norm in norms)


def _published(state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, weights: Any, path: Path) -> str:
    torch.save(state, path)
    monkeypatch.setattr("aihwkit_nabn.workloads._torchvision_files.published_weights", lambda name, file: weights)
    return str(path)


def test_torchvisions_own_weights_go_by_names_and_add_nothing_to_the_variance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renamed(content: Any) -> Any:
        for category, name in zip(content["categories"], ("dog", "cat", "person"), strict=True):
            category["name"] = name
        return content

    root = draw_coco(tmp_path / "coco", change=renamed)
    weights = detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1
    state = _build("retinanet_resnet50_fpn", 91).state_dict()
    state = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    workload = load_drawn(
        root, "retinanet_resnet50_fpn", checkpoint=_published(state, monkeypatch, weights, tmp_path / "w.pth")
    )
    norms = [module for module in workload.model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(norms) == 53 and {norm.eps for norm in norms} == {0.0}
    read = ReadWeights(state={}, outputs=91, published=weights, source="weights x", notes=[])
    assert labels_of("retinanet_resnet50_fpn", {1: "dog", 2: "cat", 3: "person"}, read, "x") == {1: 18, 2: 17, 3: 1}
    with pytest.raises(NabnError, match="which find COCO's categories; x has 'circle', which is none of them"):
        labels_of("retinanet_resnet50_fpn", {1: "circle", 2: "cat"}, read, "x")


@pytest.mark.parametrize(
    ("name", "ids", "outputs", "labels"),
    [
        (SSD, [1, 2, 3], 4, [1, 2, 3]),
        (SSD, [1, 5, 90], 91, [1, 5, 90]),
        (SSD, [1, 5, 90], 4, [1, 2, 3]),
        (SSD, [0, 1, 2], 4, [1, 2, 3]),
        ("fcos_resnet50_fpn", [0, 1, 2], 3, [0, 1, 2]),
        ("retinanet_resnet50_fpn", [4, 7], 2, [0, 1]),
        ("retinanet_resnet50_fpn", [4, 7], 3, [1, 2]),
        ("retinanet_resnet50_fpn", [4, 7], 8, [4, 7]),
    ],
)
def test_labels_follow_the_number_of_classes(name: str, ids: list[int], outputs: int, labels: list[int]) -> None:
    read = ReadWeights(state={}, outputs=outputs, published=None, source="weights x", notes=[])
    assert labels_of(name, {number: f"c{number}" for number in ids}, read, "x") == dict(zip(ids, labels, strict=True))


@pytest.mark.parametrize(
    ("name", "outputs", "message"),
    [
        (SSD, 6, r"tell 6 classes apart, but .*val\.json has 3 categories, for which they must be 4 \(the background"),
        (SSD, 3, "tell 3 classes apart"),
        ("fcos_resnet50_fpn", 5, r"5 classes apart, .* must be 4 \(.*\) or 3 \(its categories alone\)"),
    ],
)
def test_both_numbers_of_classes_are_told(name: str, outputs: int, message: str, coco: Path, tmp_path: Path) -> None:
    with pytest.raises(NabnError, match=message):
        load_drawn(coco, name, checkpoint=save_state(tmp_path / "w.pth", _build(name, outputs)))


def test_weights_of_another_network_are_refused(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="of another network"):
        load_drawn(coco, checkpoint=save_state(tmp_path / "w.pth", nn.Sequential(nn.Conv2d(3, 4, 1))))
    with pytest.raises(NabnError, match="is it of another model|does not fit the model|of another network"):
        load_drawn(coco, checkpoint=save_state(tmp_path / "r.pth", torchvision.models.mobilenet_v3_large()))
    with pytest.raises(NabnError, match="is not a file"):
        load_drawn(coco, checkpoint=str(tmp_path / "nowhere.pth"))
