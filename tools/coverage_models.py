"""How much of the standard models goes on tiles, and whether they compute the same there."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from aihwkit_nabn.chip import program_chip
from aihwkit_nabn.errors import UnknownNameError, first_line
from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.nn.attention import split_attention
from aihwkit_nabn.nn.calls import watched
from aihwkit_nabn.nn.layers import NoiseAwareLayer
from aihwkit_nabn.openmmlab.config import build_digital, load_config, scope_of
from aihwkit_nabn.openmmlab.passes import TESTED, calibration_pass, run_pass
from aihwkit_nabn.simulator import parse_preset

if TYPE_CHECKING:
    from coverage_networks import NetworkCoverage

SIZE = (128, 160)
META = {
    **dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), SIZE),
    "scale_factor": (1.0, 1.0),
}
_COMPARED = (_ConvNd, nn.Linear, _BatchNorm, NoiseAwareLayer)
LEAST_SHARE, LARGEST_ERROR = 0.99, 1e-4

MODELS: dict[str, str] = {
    "faster_rcnn r50": "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "mask_rcnn r50": "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "cascade_rcnn r50": "mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
    "retinanet r50": "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
    "fcos r50": "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "atss r50": "mmdet::atss/atss_r50_fpn_1x_coco.py",
    "yolox_s": "mmdet::yolox/yolox_s_8xb8-300e_coco.py",
    "rtmdet_tiny": "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
    "ssdlite_mobilenetv2": "mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py",
    "yolov3_mobilenetv2": "mmdet::yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py",
    "dcnv2 faster_rcnn": "mmdet::dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py",
    "detr r50": "mmdet::detr/detr_r50_8xb2-150e_coco.py",
    "deformable_detr r50": "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "swin-t mask_rcnn": "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py",
    "yolact r50": "mmdet::yolact/yolact_r50_1xb8-55e_coco.py",
    "condinst r50": "mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py",
    "sparse_rcnn r50": "mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py",
    "queryinst r50": "mmdet::queryinst/queryinst_r50_fpn_1x_coco.py",
    "mask2former r50": "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
    "point_rend r50": "mmdet::point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py",
    "fcn r50": "mmseg::fcn/fcn_r50-d8_4xb2-80k_cityscapes-512x1024.py",
    "pspnet r50": "mmseg::pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py",
    "deeplabv3 r50": "mmseg::deeplabv3/deeplabv3_r50-d8_4xb2-80k_cityscapes-512x1024.py",
    "deeplabv3plus r50": "mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024.py",
    "unet": "mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py",
    "hrnet18s": "mmseg::hrnet/fcn_hr18s_4xb2-80k_cityscapes-512x1024.py",
    "bisenetv1": "mmseg::bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py",
    "mobilenet_v2 fcn": "mmseg::mobilenet_v2/mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024.py",
    "fast_scnn": "mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py",
    "segformer mit-b0": "mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py",
    "upernet swin-t": "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "pointrend r50": "mmseg::point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py",
    "mask2former r50 (mmseg)": "mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py",
}


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """One row of the table.

    Attributes:
        model: Its name in `MODELS`, or a config's.
        layers: Layers on tiles.
        tiles: Their tiles.
        share: Share of the matrix weights that lie on tiles, 0 to 1.
        error: Largest error of the analog model before noise, over all its outputs, relative to each output's largest
            value.
        predicts: Whether a noisy chip predicts.
        calibrated_through: The pass it is calibrated through, see `calibration_pass`.
        problem: What went wrong, or empty.
        seconds: How long it took.
    """

    HEADINGS: ClassVar = (
        "model",
        "analog layers",
        "tiles",
        "matrix weights on tiles",
        "largest error",
        "noisy chip predicts",
        "calibrated through",
    )

    model: str
    layers: int = 0
    tiles: int = 0
    share: float = 0.0
    error: float = math.nan
    predicts: bool = False
    calibrated_through: str = ""
    problem: str = ""
    seconds: float = 0.0

    @property
    def passes(self) -> bool:
        """Whether the model goes on tiles as the project promises."""
        return self.share >= LEAST_SHARE and self.error < LARGEST_ERROR and self.predicts and not self.problem

    @property
    def cells(self) -> tuple[str, ...]:
        """What its row says."""
        if self.problem:
            return (self.model, *[""] * 4, "failed", "")
        numbers = (f"{self.layers}", f"{self.tiles}", f"{self.share:.2%}", f"{self.error:.1e}")
        return (self.model, *numbers, "yes" if self.predicts else "no", self.calibrated_through)


def measure_all(
    names: Iterable[str] = (), *, noise: str = "pcm", seed: int = 0
) -> Iterator[Coverage | NetworkCoverage]:
    """Yield a row per model, as each is done.

    Args:
        names: Keys of `MODELS`, and of timm's and transformers'; none: all of them.
        noise: Of the noisy chip, as `aihwkit_nabn.simulator.parse_preset` takes it.
        seed: Of weights, image and chip.

    Raises:
        UnknownNameError: there is no such model.
    """
    import coverage_timm
    import coverage_transformers
    from coverage_networks import NetworkCoverage

    others = {name: module.measure for module in (coverage_timm, coverage_transformers) for name in module.MODELS}
    known = (*MODELS, *others)
    chosen = list(names) or list(known)
    for name in chosen:
        if name not in known:
            raise UnknownNameError("model", name, known)
    for name in chosen:
        start = time.perf_counter()
        try:
            if name in MODELS:
                yield measure(MODELS[name], name=name, noise=noise, seed=seed)
            else:
                yield others[name](name, noise=noise, seed=seed)
        except Exception as error:  # whatever a model says: the others are measured all the same
            problem = f"{type(error).__name__}: {first_line(error)}"
            kind = Coverage if name in MODELS else NetworkCoverage
            yield kind(model=name, problem=problem, seconds=time.perf_counter() - start)


def measure(config_name: str, *, name: str = "", noise: str = "pcm", seed: int = 0) -> Coverage:
    """Build a config's model with random weights, convert it, compare it with the digital one, predict with a chip.

    Raises:
        NabnError: the config cannot be read, or the model not built or converted.
    """
    start = time.perf_counter()
    config = load_config(config_name)
    scope = scope_of(config)
    digital = build_digital(config, seed=seed)
    randomize(digital, seed)
    inputs = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    analog: Any = convert_to_noise_aware(digital, parse_preset(noise))
    batch = {"inputs": inputs, "data_samples": [_sample(scope)]}
    with torch.no_grad():
        through = calibration_pass(digital, batch)
        error = max(
            largest_error(a, d)
            for a, d in zip(outputs(analog, inputs, scope), outputs(digital, inputs, scope), strict=True)
        )
        del digital
        program_chip(analog, seed=seed, t_inference=86_400.0)
        predictions = run_pass(analog, batch, TESTED)
    return Coverage(
        model=name or config_name,
        layers=len(analog.conversion_report.converted),
        tiles=sum(entry.n_tiles for entry in analog.conversion_report.converted),
        share=analog.conversion_report.analog_share,
        error=error,
        predicts=len(predictions) == 1,
        calibrated_through=through,
        seconds=time.perf_counter() - start,
    )


def randomize(model: nn.Module, seed: int) -> None:
    """Give every parameter and BatchNorm statistic a value that shows mistakes.

    Constructors leave some at zero (offsets of deformable convolutions) or unset, and trained-like initial values make
    some heads' outputs all but constant.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, std: float) -> Tensor:
        return torch.randn(like.shape, generator=generator) * std

    def positive(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator) + 0.5

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.copy_(normal(parameter, 1 / math.sqrt(parameter[0].numel())))
            elif parameter.dim() == 1:
                parameter.copy_(positive(parameter) if name.endswith("weight") else normal(parameter, 0.1))
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.copy_(normal(module.running_mean, 0.1))
                module.running_var.copy_(positive(module.running_var))


def outputs(model: Any, inputs: Tensor, scope: str) -> list[Tensor]:
    """Return every tensor that the model computes from ``[1, 3, height, width]``.

    Two-stage detectors get fixed proposals: random scores lie so close that rounding would reorder the detector's own,
    and other regions give other outputs. Of networks without a pass that ends in tensors it is what each layer returns
    where the network predicts.
    """
    samples = [_sample(scope)]
    if hasattr(model, "roi_head") and hasattr(model.rpn_head, "prior_generator"):
        features = model.extract_feat(inputs)
        regions = model.roi_head(features, _proposals(), samples)
        return list(_tensors([features, model.rpn_head(features), regions]))
    batch = {"inputs": inputs, "data_samples": samples}
    if calibration_pass(model, batch) == TESTED:
        found: dict[str, Any] = {}
        with split_attention(model) as split:
            layers = {name: part for name, part in split.named_modules() if isinstance(part, _COMPARED)}
            with watched(layers, lambda name, args, kwargs, output: found.setdefault(name, output)):
                run_pass(split, batch, TESTED)
        # In order of size: points are picked by scores (PointRend), which lie so close that rounding shuffles them.
        return [tensor.sort().values for name in sorted(found) for tensor in _tensors(found[name])]
    if scope == "mmseg":
        features = model.extract_feat(inputs)
        heads = [model.decode_head, *_list(getattr(model, "auxiliary_head", None))]
        return list(_tensors([features, *(head(features) for head in heads)]))
    return list(_tensors(model(inputs, samples, mode="tensor")))


def largest_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected value; infinity where anything is not finite."""
    if not expected.numel():
        return 0.0
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    return error if math.isfinite(error) else math.inf


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for key in value:
            yield from _tensors(value[key])
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)


def _list(heads: Any) -> list[Any]:
    return [] if heads is None else list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def _sample(scope: str) -> Any:
    meta = {**META, "flip": False, "img_id": 0}
    if scope == "mmseg":
        from mmseg.structures import SegDataSample

        return SegDataSample(metainfo={**meta, "padding_size": (0, 0, 0, 0)})
    from mmdet.structures import DetDataSample

    return DetDataSample(metainfo=meta)


def _proposals(count: int = 12) -> list[Any]:
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(zlib.crc32(b"proposals"))
    size = torch.tensor([SIZE[1], SIZE[0]], dtype=torch.float32)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * (size - 9)
    boxes = torch.cat([corners[:, 0], corners[:, 1] + 8], dim=1)
    return [InstanceData(bboxes=boxes, scores=torch.ones(count), labels=torch.zeros(count, dtype=torch.long))]
