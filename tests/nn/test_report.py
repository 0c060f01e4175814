"""Every module that holds matrix weights or running statistics, in whichever form, stands in one list."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from aihwkit.simulator.parameters import MappingParameter
from torch import Tensor, nn
from torch.ao import nn as ao
from torch.ao.quantization import get_default_qat_qconfig

import aihwkit_nabn as nabn
from aihwkit_nabn.simulator import parse_preset

pytestmark = pytest.mark.filterwarnings("ignore")
PRESET = nabn.presets.GaussianWeightNoisePreset


def quantised(layer: nn.Module, engine: str = "dynamic") -> nn.Module:
    """A float layer's quantised form."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if engine == "dynamic":
            return torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {type(layer)}, dtype=torch.qint8)[0]
        model = nn.Sequential(torch.ao.quantization.QuantStub(), layer).eval()
        model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
        prepared = torch.ao.quantization.prepare(model)
        n = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        rank = len(getattr(layer, "kernel_size", ()))
        prepared(torch.randn(2, n, *(8,) * rank))
        return torch.ao.quantization.convert(prepared)[1]


def qat(kind: type, *args: object) -> nn.Module:
    return kind(*args, qconfig=get_default_qat_qconfig("fbgemm"))


# Each with its matrix weights, those of lookup tables not counted; None: not compared.
MODULES: dict[str, tuple[Callable[[], nn.Module], int | None]] = {
    "Linear": (lambda: nn.Linear(4, 3), 12),
    "Bilinear": (lambda: nn.Bilinear(2, 3, 4), 24),
    "Conv1d": (lambda: nn.Conv1d(2, 3, 3), 18),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2), 48),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 3), 54),
    "RNN": (lambda: nn.RNN(4, 3), 21),
    "LSTM": (
        lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True, proj_size=2),
        2 * (48 + 24 + 6) + 2 * (48 + 24 + 6),
    ),
    "GRUCell": (lambda: nn.GRUCell(4, 3), 63),
    "Embedding": (lambda: nn.Embedding(5, 4), 0),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(5, 4), 0),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2), 64),
    "TransformerDecoderLayer": (lambda: nn.TransformerDecoderLayer(4, 2, 6), 2 * 64 + 2 * 24),
    "AdaptiveLogSoftmaxWithLoss": (lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 9, [3, 6]), 4 * 5 + 4 + 3),
    "ParameterList": (lambda: nn.ParameterList([torch.ones(3, 4), torch.ones(2)]), 12),
    "ParameterDict": (lambda: nn.ParameterDict({"weight": torch.ones(3, 4)}), 12),
    "PReLU": (lambda: nn.PReLU(4), 0),
    "LayerNorm": (lambda: nn.LayerNorm(4), 0),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), 0),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), 0),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(4), 0),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(4, track_running_stats=True), 0),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(4, affine=True, track_running_stats=True), 0),
    "InstanceNorm2d of each image": (lambda: nn.InstanceNorm2d(4), 0),
    "scripted": (lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))), 12),
    "dynamic Linear": (lambda: quantised(nn.Linear(4, 3)), 12),
    "dynamic LSTM": (lambda: quantised(nn.LSTM(4, 3)), 84),
    "dynamic GRU": (lambda: quantised(nn.GRU(4, 3)), 63),
    "dynamic LSTMCell": (lambda: quantised(nn.LSTMCell(4, 3)), 84),
    "static Linear": (lambda: quantised(nn.Linear(4, 3), "static"), 12),
    "static Conv2d": (lambda: quantised(nn.Conv2d(2, 3, 3), "static"), 54),
    "static ConvTranspose1d": (lambda: ao.quantized.ConvTranspose1d(2, 3, 3), 18),
    "static BatchNorm2d": (lambda: ao.quantized.BatchNorm2d(4), 0),
    "static Embedding": (lambda: ao.quantized.Embedding(5, 4), 0),
    "ConvReLU2d": (lambda: ao.intrinsic.ConvReLU2d(nn.Conv2d(2, 3, 3), nn.ReLU()), 54),
    "qat Linear": (lambda: qat(ao.qat.Linear, 4, 3), 12),
    "qat Conv2d": (lambda: qat(ao.qat.Conv2d, 2, 3, 3), 54),
    "qat ConvBn2d": (lambda: qat(ao.intrinsic.qat.ConvBn2d, 2, 3, 3), 54),
    "quantizable LSTM": (lambda: ao.quantizable.LSTM(4, 3), 84),
    "quantizable MultiheadAttention": (lambda: ao.quantizable.MultiheadAttention(4, 2), 64 + 48),
    "reference Linear": (lambda: ao.quantized.reference.Linear(4, 3), 12),
    "DeformConv2d": (lambda: torchvision.ops.DeformConv2d(2, 3, 3), 54),
    "FrozenBatchNorm2d": (lambda: torchvision.ops.FrozenBatchNorm2d(4), 0),
    "MLP": (lambda: torchvision.ops.MLP(4, [3, 2]), 18),
    "Conv3dNormActivation": (lambda: torchvision.ops.Conv3dNormActivation(2, 3, 1), 6),
    "SqueezeExcitation": (lambda: torchvision.ops.SqueezeExcitation(4, 2), 16),
    "FeaturePyramidNetwork": (lambda: torchvision.ops.FeaturePyramidNetwork([2, 3], 4), 20 + 2 * 144),
}


def owners(model: nn.Module) -> list[str]:
    """Modules that hold matrices, statistics or packed weights themselves."""
    found = []
    for name, module in model.named_modules():
        tensors = [p for p in module._parameters.values() if p is not None and p.dim() >= 2]
        tensors += [b for key, b in module._buffers.items() if key.startswith("running_") and b is not None]
        packed = any(isinstance(value, torch.ScriptObject) for value in module.__dict__.values())
        if tensors or packed:
            found.append(name)
    return found


def related(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_stands_in_exactly_one_list(name: str) -> None:
    torch.manual_seed(0)
    build, n_weights = MODULES[name]
    model = nn.ModuleDict({"it": build(), "other": nn.Linear(5, 7)}).eval()
    report = nabn.convert_to_noise_aware(model, PRESET()).conversion_report
    names = [entry.name for entry in report]
    assert len(names) == len(set(names))
    for owner in owners(model):
        assert any(related(entry, owner) for entry in names), f"{owner} is in no list"
    if n_weights is not None:
        assert report.n_weights == n_weights + 35, report
    if owners(model) == ["other"]:
        assert names == ["other"]
    assert all(entry.reason for entry in (*report.kept_digital, *report.refused))


def test_packed_weights_are_kept_with_their_number() -> None:
    model = nn.ModuleDict({"it": quantised(nn.Linear(40, 30)), "other": nn.Linear(30, 40)})
    report = nabn.convert_to_noise_aware(model, PRESET()).conversion_report
    (kept,) = report.kept_digital
    assert (kept.name, kept.kind, kept.n_weights) == ("it", "Linear", 1200)
    assert kept.reason == "quantised weights, packed: no analog form"
    assert report.analog_share == 0.5
    assert isinstance(model["it"].weight(), Tensor)


DEPTHWISE = nn.Sequential(
    nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 5, groups=16), nn.Flatten(), nn.Linear(600, 3)
).eval()


@pytest.mark.parametrize(
    ("setting", "lines"),
    [
        ("gaussian", ["mapping of 4 layers: tiles of 512 x 512, weights in the layer's own units"]),
        ("pcm", ["mapping of 4 layers: tiles of 512 x 512, each column scaled to full range"]),
        (
            "gaussian:sigma=0,out_noise=0.1",
            ["mapping of 4 layers: tiles of 512 x 512, each column scaled to full range"],
        ),
        (
            "crossbar:replicate_rows=30,output_range=true",
            [
                "mapping of 3 layers: tiles of 512 x 512, each column scaled to full range, columns copied over "
                # 9, 8 and 25 rows
                "free rows, ADC ranges from images (20 to 30 times: 14,000 cells for 600 weights)",
                "mapping of 1 layer: tiles of 512 x 512, each column scaled to full range, ADC ranges from images",
            ],
        ),
    ],
)
def test_the_report_says_how_weights_are_mapped(setting: str, lines: list[str]) -> None:
    report = nabn.convert_to_noise_aware(DEPTHWISE, parse_preset(setting)).conversion_report
    assert report.mappings() == lines
    assert all(line in str(report).splitlines() for line in lines)
    assert report.n_weights == 8 * 9 + 16 * 8 + 16 * 25 + 1800


def test_a_mapping_of_ones_own_is_named_layer_by_layer() -> None:
    config = parse_preset("pcm")
    config.mapping = MappingParameter(max_input_size=0, max_output_size=128, weight_scaling_omega=0.6)

    def specific(name: str, module: nn.Module, given: Any) -> Any:
        return config if name == "4" else given

    analog = nabn.convert_to_noise_aware(
        DEPTHWISE, parse_preset("pcm:replicate_rows=2"), specific_rpu_config_fun=specific
    )
    first, last = analog.conversion_report.mappings()
    assert "columns copied over free rows (2 times: 1,200 cells for 600 weights)" in first
    assert last == "mapping of 1 layer: tiles of unlimited x 128, each tile scaled to 0.6 of full range"
    again = nabn.convert_to_noise_aware(analog, parse_preset("gaussian")).conversion_report
    assert again.mappings() == [first, last] and again.n_weights == analog.conversion_report.n_weights
