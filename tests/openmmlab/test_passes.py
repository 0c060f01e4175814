"""What runs in calibration is what is tested, for networks of any kind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration.input_ranges import calibrate_input_ranges
from aihwkit_nabn.chip.variation import samples_processed
from aihwkit_nabn.nn import calibration_tensors
from aihwkit_nabn.nn.calibration_state import batchnorms
from aihwkit_nabn.nn.calls import watched
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.openmmlab import calibration_forward
from aihwkit_nabn.openmmlab.config import build_digital, load_config, scope_of
from aihwkit_nabn.openmmlab.passes import calibration_pass
from tests.chips import chip_of
from tests.tensors import equal

SIZE = (64, 96)


class Network(BaseModel):
    """A backbone with a head per object it finds, and with the pass without post-processing that a kind has."""

    def __init__(self, short: str) -> None:
        super().__init__()
        self.short = short
        self.modes: list[str] = []
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.score, self.mask, self.refine = nn.Conv2d(4, 1, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        self.modes.append(mode)
        if mode == "tensor" and self.short == "fails":
            raise NotImplementedError
        if mode == "tensor" and self.short == "in one piece":
            return self.refine(self.body(inputs)) + self.mask(self.body(inputs)) + self.score(self.body(inputs))
        windows = inputs.split(8, dim=2) if self.short == "in one piece" else [inputs]
        for window in windows:
            x = self.body(window)
            found = self.score(x).amax(dim=(1, 2, 3)) > (9.0 if self.short == "finds nothing" else -9.0)
            if mode == "predict" and not found.any():
                break
            out = self.mask(x)
            if mode == "predict" or self.short != "leaves one out":
                out = out + self.refine(x)
        if mode == "tensor":
            return out
        for sample in data_samples:
            assert "gt_label" not in sample and sample.batch_input_shape == tuple(inputs.shape[-2:])
            sample.pred = sample.scale_factor
        return data_samples


def network(short: str) -> Network:
    torch.manual_seed(0)
    return type(short, (Network,), {})(short).eval()  # each kind is a network of its own


def batches(n: int = 2) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    samples = [BaseDataElement(gt_label=torch.tensor(1)) for _ in range(2)]
    return [{"inputs": torch.rand(2, 3, 16, 8, generator=generator), "data_samples": samples} for _ in range(n)]


SHORT = {"same": "tensor", "fails": "predict", "leaves one out": "predict", "in one piece": "predict",
         "finds nothing": "predict"}  # fmt: skip


@pytest.mark.parametrize(("short", "expected"), SHORT.items())
@pytest.mark.parametrize("chip_first", [False, True])
def test_the_pass_is_the_tested_one_unless_another_runs_the_same_layers(short, expected, chip_first):
    digital = network(short)
    analog = chip_of(digital, "gaussian:sigma=0.02")
    for model in (analog, digital) if chip_first else (digital, analog):
        model.modes = []
        seen = calls_seen(model)
        assert model.modes[-1] == expected
        tried = len(model.modes)
        assert calls_seen(model) == seen  # who watches sees nothing of the trial
        assert set(model.modes[tried:]) == {expected}  # decided once


def calls_seen(model: Network) -> list[str]:
    calls: list[str] = []
    with watched(dict(model.named_children()), lambda name, *_: calls.append(name)):
        calibration_forward(model, batches()[0])
    return calls


def test_labels_are_not_seen_and_samples_not_changed():
    (batch,) = batches(1)
    calibration_forward(network("fails"), batch)
    assert all(set(sample.keys()) == {"gt_label"} for sample in batch["data_samples"])


def test_a_chip_that_finds_nothing_is_calibrated_through_the_pass_of_its_digital_model():
    digital = network("same")
    analog = chip_of(digital, "gaussian:sigma=0.02")
    calibration_forward(digital, batches()[0])
    analog.score.analog_module.bias.data -= 1e3
    calibration_forward(analog, batches()[0])
    assert analog.modes == ["tensor"]
    other = chip_of(network("finds nothing"), "gaussian:sigma=0.02")
    del digital, analog
    calibration_forward(other, batches()[0])
    assert other.modes[-1] == "predict"


@pytest.mark.parametrize("noise", ["pcm", "crossbar", "variational:period_samples=3"])
@pytest.mark.parametrize("method", ["population", "common_mode"])
def test_trying_the_passes_out_leaves_no_trace(noise, method):
    """The first batch is calibrated on as if the pass had been known before."""
    results = []
    for known in (False, True):
        digital = network("same")
        analog = chip_of(digital, noise)
        if known:
            for model in (digital, copy.deepcopy(analog)):
                calibration_forward(model, batches()[0])
            assert calibration_pass(analog, None) == "tensor"
        torch.manual_seed(5)
        reference = digital if method == "common_mode" else None
        nabn.calibrate(analog, batches(), method, reference=reference, forward_fn=calibration_forward)
        results.append((calibration_tensors(analog), samples_processed(analog), torch.rand(1)))
        del digital, analog
    (a, seen_a, next_a), (b, seen_b, next_b) = results
    assert equal(a, b)
    assert seen_a == seen_b and torch.equal(next_a, next_b)


def test_input_ranges_are_of_what_is_tested():
    analog = chip_of(network("leaves one out"), "crossbar")
    assert "refine" in calibrate_input_ranges(analog, batches(), forward_fn=calibration_forward)


STANDARD = {
    "mmdet::yolact/yolact_r50_1xb8-55e_coco.py": "predict",
    "mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py": "predict",
    "mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py": "predict",
    "mmdet::queryinst/queryinst_r50_fpn_1x_coco.py": "predict",
    "mmdet::point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py": "predict",
    "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py": None,
    "mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py": None,
    "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py": "tensor",
    "mmseg::point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py": "predict",
    "mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py": "predict",
    "mmseg::fcn/fcn_r50-d8_4xb4-40k_voc12aug-512x512.py": "tensor",
}
"""Configs of the wheels, and the pass they must be calibrated through; None: either."""

FEWER = {"max_per_img": 4, "num_proposals": 4, "num_queries": 4, "subdivision_steps": 1, "nms_pre": 20, "max_num": 4}


def shrunk(settings: Any) -> Any:
    """The same network with a small backbone and few objects."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            settings[key] = FEWER[key] if key in FEWER else 18 if (key, value) == ("depth", 50) else shrunk(value)
        return settings
    if isinstance(settings, (list, tuple)):
        if list(settings) == [256, 512, 1024, 2048]:
            return [64, 128, 256, 512]
        return type(settings)(shrunk(value) for value in settings)
    return settings


def standard(name: str, **changes: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A network of random weights, and images as a training pipeline gives them: their size and nothing else."""
    config = load_config(name, changes)
    config.model = shrunk(config.model)
    if config.model.type == "EncoderDecoder" and config.model.get("auxiliary_head"):
        config.model.auxiliary_head.in_channels = 256
        config.model.decode_head.in_channels = 512
    model = build_digital(config, seed=0)
    if scope_of(config) == "mmseg":
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8, generator=generator)
    return model, [{"inputs": list(images), "data_samples": [Sample(metainfo={"img_shape": SIZE}) for _ in images]}]


def layers_of_a_test(model: Any, batches: list[dict[str, Any]]) -> set[str]:
    """The layers that `test_step` runs on samples with all that a test pipeline gives them."""
    ran: set[str] = set()
    layers = {name: module for name, module in model.named_modules() if module._parameters}
    for batch in copy.deepcopy(batches):
        for sample in batch["data_samples"]:
            sample.set_metainfo({"ori_shape": SIZE, "scale_factor": (1e9, 1e9), "border": (0, 64, 0, 96)})
        with torch.no_grad(), watched(layers, lambda name, *_: ran.add(name)):
            for index in range(len(batch["inputs"])):
                model.test_step({key: value[index : index + 1] for key, value in batch.items()})
    return ran


QUICK = ("point", "centernet", "retinanet", "fcn")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if any(q in n for q in QUICK) else pytest.mark.slow) for n in STANDARD]
)
def test_every_layer_of_a_standard_network_that_is_tested_is_calibrated(name):
    digital, images = standard(name)
    analog = chip_of(digital, "gaussian:sigma=0.01")
    reports = [
        nabn.calibrate(analog, images, "common_mode", reference=digital, forward_fn=calibration_forward),
        nabn.calibrate(analog, images, "population", forward_fn=calibration_forward),
    ]
    layers = {*named_analog_layers(analog), *batchnorms(analog)}
    calibrated = {layer.name for report in reports for layer in report.layers}
    assert calibrated >= layers_of_a_test(digital, images) & layers
    modes = {calibration_pass(model, None) for model in (digital, analog)}
    assert modes == ({STANDARD[name]} if STANDARD[name] else modes) and len(modes) == 1


def test_windows_are_calibrated_as_windows_and_whole_images_as_whole():
    modes = []
    for crop in (48, 96):
        test_cfg = {"mode": "slide", "crop_size": (crop, crop), "stride": (crop // 2, crop // 2)}
        digital, images = standard(list(STANDARD)[-1], **{"model.test_cfg": test_cfg})
        calibration_forward(digital, images[0])
        modes.append(calibration_pass(digital, None))
    assert modes == ["predict", "tensor"]
