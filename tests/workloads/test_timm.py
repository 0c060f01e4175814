"""timm's models: how images are read, weights of a local file, and what of their layers goes on tiles."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn import cli
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm
from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings, Workload, load_workload
from aihwkit_nabn.workloads._image_input import ImageInput
from tests.tensors import equal

Folder = Callable[..., Path]


timm = pytest.importorskip("timm", reason="needs timm: uv pip install 'aihwkit-nabn[timm]'")


def _load(name: str, data: Path, **given: Any) -> Workload:
    options = {"checkpoint": "random", "image_size": 32, "data": str(data), **given}
    return load_workload(name, LoadSettings(loader_workers=0), **{k: v for k, v in options.items() if v is not None})


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "dm_nfnet_f0", "deepseek_vit_412m", "inception_v3"])
@pytest.mark.parametrize("shape", [(41, 60), (300, 200), (7, 9)])
def test_images_are_read_as_timm_reads_them(name: str, shape: tuple[int, int]) -> None:
    config = timm.get_pretrained_cfg(name)
    model = nn.Identity()
    model.pretrained_cfg = config.to_dict()
    for size in (None, 48):
        images = ImageInput.carried_by(model, size)
        assert images is not None
        wanted = timm.data.resolve_data_config({"img_size": size} if size else {}, pretrained_cfg=config.to_dict())
        theirs = timm.data.create_transform(**wanted)
        pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        assert torch.allclose(images.test(Image.fromarray(pixels)), theirs(Image.fromarray(pixels)), atol=1e-6)


def test_weights_of_a_local_file(shapes_folder: Folder, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    root = shapes_folder()
    there = timm.create_model("resnet18", num_classes=3).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in there.state_dict().items()}}, tmp_path / "w.pth")
    save_file(there.state_dict(), tmp_path / "w.safetensors")
    for suffix in ("pth", "safetensors"):
        found = _load("timm:resnet18.a1_in1k", root, checkpoint=str(tmp_path / f"w.{suffix}"))
        assert equal(found.model.state_dict(), there.state_dict())
    assert "shorter edge to 33 (bicubic), centre of 32 x 32" in found.description[-1]
    assert found.description[-1].endswith("image_size as given, the others the model's pretrained_cfg")
    with pytest.raises(NabnError, match="tell 4 classes apart, but .*shapes has 3 class folders"):
        torch.save(timm.create_model("resnet18", num_classes=4).state_dict(), tmp_path / "w.pth")
        _load("timm:resnet18", root, checkpoint=str(tmp_path / "w.pth"))


def test_models_that_are_built_for_one_size(shapes_folder: Folder) -> None:
    small = {"patch_size": 16, "depth": 2, "embed_dim": 24, "num_heads": 3}
    workload = _load("timm:vit_tiny_patch16_224", shapes_folder(), model_args=small)
    assert next(iter(workload.calibration(CalibrationRequest(n=2)))).shape == (2, 3, 32, 32)
    assert workload.facts["setup"]["model_args"]["img_size"] == "32"


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("timm:resnet81", {}, "unknown timm model 'resnet81', did you mean 'resnet.*names all [0-9]+$"),
        ("timm:resnet18.a1_in2k", {}, "unknown tag of timm's resnet18 'a1_in2k', did you mean 'a1_in1k'"),
        ("timm:hf-hub:timm/resnet18", {}, "unknown timm model"),
        ("timm:resnet18", {"model_args": {"pretrained": True}}, "must not hold pretrained: .*nothing is downloaded"),
        ("timm:resnet18", {"model_args": {"checkpoint_path": "x"}}, "must not hold checkpoint_path: that is WEIGHTS"),
        ("timm:resnet18", {"model_args": {"widht": 3}}, "timm cannot build resnet18: TypeError: .*widht"),
        ("timm:resnet18", {"model_args": {"num_classes": 5}}, r"must give scores \(1, 3\) for one image"),
        ("timm:resnet18", {"checkpoint": None}, "timm:resnet18 needs checkpoint"),
        ("timm:resnet18", {"checkpoint": "no.pth"}, "weights 'no.pth' is not a file"),
    ],
)
def test_one_clear_error(name: str, given: dict[str, Any], message: str, shapes_folder: Folder) -> None:
    with pytest.raises(NabnError, match=message) as caught:
        _load(name, shapes_folder(count=1), **given)
    assert isinstance(caught.value, UnknownNameError) == message.startswith("unknown")


def _on_a_chip(module: nn.Module, *images: torch.Tensor) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    preset = nabn.presets.GaussianWeightNoisePreset(sigma=0.1)
    return nabn.convert_to_noise_aware(module.eval(), preset, example_inputs=images)


def _layers() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]]:
    """timm's layers that compute something of their own around a product: how to make one, its input, its matrices."""
    from timm import layers

    return {
        "Conv2dSame": (lambda: layers.Conv2dSame(4, 6, 3, stride=2), (2, 4, 9, 8), 216),
        "ScaledStdConv2d": (lambda: layers.ScaledStdConv2d(4, 6, 3), (2, 4, 9, 9), 216),
        "ScaledStdConv2dSame": (lambda: layers.ScaledStdConv2dSame(4, 6, 3, stride=2), (2, 4, 9, 9), 216),
        "StdConv2dSame": (lambda: layers.StdConv2dSame(4, 6, 3, stride=2), (2, 4, 9, 9), 216),
        "MixedConv2d": (lambda: layers.MixedConv2d(4, 6, [3, 5], padding=""), (2, 4, 9, 9), 54 * 2 + 150 * 2 - 204),
        "SqueezeExcite": (lambda: layers.SqueezeExcite(16), (2, 16, 5, 5), 16 * 8 * 2),
        "Attention": (lambda: layers.Attention(12, num_heads=3, qkv_bias=True), (2, 7, 12), 12 * 12 * 4),
        "Mlp": (lambda: layers.Mlp(6, 9), (2, 7, 7, 6), 108),
    }


@pytest.mark.parametrize("name", list(_layers()))
def test_layers_go_on_tiles(name: str) -> None:
    make, shape, matrices = _layers()[name]
    chip = _on_a_chip(make(), torch.randn(shape))
    report = chip.conversion_report
    assert report.analog_share == 1.0 and not report.refused
    if name != "MixedConv2d":
        assert report.n_weights == matrices


def test_the_tiles_carry_the_standardised_weight() -> None:
    conv = timm.layers.ScaledStdConv2d(4, 6, 3).eval()
    with torch.no_grad():
        conv.gain.uniform_(0.5, 1.5)
    chip = _on_a_chip(conv, torch.randn(2, 4, 9, 9))
    weights = nn.functional.batch_norm(
        conv.weight.reshape(1, 6, -1), None, None, weight=(conv.gain * conv.scale).view(-1), training=True, eps=conv.eps
    )
    assert torch.allclose(chip.weight, weights.reshape(6, 4, 3, 3), atol=1e-6)
    assert not torch.allclose(chip.weight, conv.weight, atol=0.1)


def test_batchnorm_with_an_activation_is_calibrated_as_any() -> None:
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    theirs = nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormAct2d(8)).eval()
    theirs[1].load_state_dict(plain[1].state_dict())
    theirs[0].load_state_dict(plain[0].state_dict())
    images = torch.randn(8, 3, 9, 9)
    chips = []
    for model in (plain, theirs):
        chip: Any = nabn.convert_to_noise_aware(model, nabn.presets.GaussianWeightNoisePreset(sigma=0.1))
        nabn.program_chip(chip, seed=1)
        nabn.calibrate(chip, [images], "population")
        assert isinstance(chip[1], NoiseAwareBatchNorm)
        chips.append(chip)
    assert torch.equal(chips[0][1].calibrated_mean, chips[1][1].calibrated_mean)
    assert torch.allclose(chips[0](images), chips[1](images), atol=1e-6) and chips[1](images).min() >= 0


def test_what_stays_digital_is_said() -> None:
    from timm.layers import CondConv2d

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.routing, self.conv = nn.Linear(4, 3), CondConv2d(4, 6, 3, num_experts=3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x, torch.sigmoid(self.routing(x.mean((2, 3)))))

    report = _on_a_chip(Routed(), torch.randn(2, 4, 9, 9)).conversion_report
    (entry,) = report.kept_digital
    assert entry.kind == "CondConv2d" and entry.n_weights == 3 * 216 and "no analog form" in entry.reason


@pytest.mark.parametrize("kind", ["beit", "eva", "swin_transformer_v2"])
def test_attention_calls_its_projection_where_its_bias_is_in_parts(kind: str) -> None:
    """These read the weight of `qkv` unless told otherwise; converters and calibration would not act on it."""
    from aihwkit_nabn.nn.verification import verification_of

    if kind == "swin_transformer_v2":
        from timm.models.swin_transformer_v2 import WindowAttention

        module, shape = WindowAttention(12, (4, 4), 3), (2, 16, 12)
    elif kind == "beit":
        from timm.models.beit import Attention

        module, shape = Attention(12, num_heads=3, qkv_bias=True), (2, 7, 12)
    else:
        from timm.models.eva import EvaAttention

        module, shape = EvaAttention(12, num_heads=3, qkv_bias=True, scale_norm=False), (2, 7, 12)
    chip = _on_a_chip(module, torch.randn(shape))
    assert "read instead of called" not in str(verification_of(chip)) and not module.qkv_bias_separate


@pytest.mark.slow
def test_on_the_command_line(shapes_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["test", "timm:mobilenetv3_small_050", "random", "--data", str(shapes_folder()), "--image-size", "32"]
    arguments += ["--noise", "gaussian:sigma=0.1", "--chips", "1", "--methods", "none,population", "--loader-workers"]
    assert run(cli.app, [*arguments, "0", "--calibration-images", "8", "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "the model's pretrained_cfg" in text and "timm.data" in sys.modules
    assert run(cli.app, ["inspect", "timm:dm_nfnet_f0", "--model-arg", "num_classes=10"]) == 0
    assert "100.0% of" in capsys.readouterr().out
