from __future__ import annotations

import copy
import fnmatch

import pytest
import torch
from aihwkit.simulator.configs import FloatingPointRPUConfig, QuantizedTorchInferenceRPUConfig
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import ConversionError
from aihwkit_nabn.nn import NoiseAwareBatchNorm, NoiseAwareConv2d, NoiseAwareLayer, named_analog_layers
from tests.chips import tiled
from tests.tensors import PLACEHOLDER, bits, equal, state_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using padding=.same.:UserWarning", "ignore:The PyTorch API of nested tensors:UserWarning"
)

PRESET = nabn.presets.GaussianWeightNoisePreset


def convert(model, **options):
    return nabn.convert_to_noise_aware(model, PRESET(), **options)


def entries(report, kind):
    return {entry.name: entry for entry in getattr(report, kind)}


LAYERS = {
    "conv2d": (lambda: nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 3, 9, 7)),
    "grouped": (lambda: nn.Conv2d(6, 9, 3, groups=3), (2, 6, 8, 5)),
    "depthwise multiplier": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1, bias=False), (3, 4, 5, 5)),
    "dilated": (lambda: nn.Conv2d(2, 4, 3, dilation=(2, 3), padding=(2, 1)), (2, 2, 11, 12)),
    "same": (lambda: nn.Conv2d(2, 4, (4, 3), padding="same", dilation=(1, 2)), (2, 2, 9, 8)),
    "valid": (lambda: nn.Conv2d(2, 4, 3, padding="valid"), (2, 2, 9, 8)),
    "reflect": (lambda: nn.Conv2d(2, 4, 3, padding=(2, 1), padding_mode="reflect"), (2, 2, 9, 8)),
    "circular same": (lambda: nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular"), (2, 2, 6, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 6, 5, stride=2, padding=3, groups=3), (2, 3, 17)),
    "conv1d replicate": (lambda: nn.Conv1d(3, 6, 4, padding=3, padding_mode="replicate"), (2, 3, 17)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1), padding=1, dilation=(1, 1, 2)), (2, 2, 4, 5, 6)),
    "linear": (lambda: nn.Linear(7, 3), (4, 7)),
    "linear 3-d": (lambda: nn.Linear(7, 3, bias=False), (2, 5, 7)),
    "linear unbatched": (lambda: nn.Linear(7, 3), (7,)),
    "conv unbatched": (lambda: nn.Conv2d(3, 4, 3), (3, 6, 5)),
    "conv empty batch": (lambda: nn.Conv2d(3, 4, 3), (0, 3, 6, 5)),
    "linear empty batch": (lambda: nn.Linear(7, 3), (0, 7)),
}


@pytest.mark.parametrize("tiles", [(512, 512), (5, 3), (0, 0)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_equals_its_digital_original(name, tiles, relative):
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer = build().eval()
    analog = nabn.convert_to_noise_aware(layer, tiled(PRESET(), *tiles))
    assert isinstance(analog, NoiseAwareLayer)
    assert len(list(analog.analog_tiles())) > 1 or tiles != (5, 3)
    x = torch.randn(shape)
    with torch.no_grad():
        assert relative(analog(x), layer(x)) < 1e-5
        assert relative(type(analog).to_digital(analog)(x), layer(x)) < 1e-5
    assert torch.equal(analog.weight, layer.weight)
    assert analog.weight.device == layer.weight.device


def test_a_whole_network_equals_its_original(net, images, relative):
    x = images(4)
    for rpu_config in (PRESET(), tiled(PRESET(), 16, 7), nabn.presets.PCMPreset()):
        analog = nabn.convert_to_noise_aware(net, rpu_config)
        assert relative(analog(x), net(x)) < 1e-5
        assert len(named_analog_layers(analog)) == 6
        assert sum(isinstance(m, NoiseAwareBatchNorm) for m in analog.modules()) == 4


@pytest.mark.parametrize("training", [False, True])
def test_the_copy_is_in_eval_mode_and_the_model_as_it_was(net, training, images):
    net.train(training)
    net.norm.eval()
    before = bits(net)
    analog = convert(net)
    assert type(analog) is type(net)
    assert not any(module.training for module in analog.modules())
    assert equal(before, bits(net))
    assert not hasattr(net, "conversion_report")
    with torch.no_grad():  # nothing is shared with the copy
        for name, tensor in (*analog.named_parameters(), *analog.named_buffers()):
            if not name.endswith(PLACEHOLDER):
                tensor.zero_()
    assert equal(before, bits(net))


class Failing(nn.Linear):
    def forward(self, x, scale):
        return super().forward(x) * scale


class Matrix(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T


def test_subclasses_are_tried_and_refused_with_a_reason_where_they_compute_something_else():
    torch.manual_seed(0)
    instance = nn.Conv2d(3, 4, 3)
    instance.forward = lambda x: F.conv2d(x, instance.weight * 2, instance.bias)
    layers = {"plain": nn.Conv2d(3, 4, 3), "failing": Failing(5, 2), "matrix": Matrix(4, 3), "instance": instance}
    model = nn.ModuleDict(layers)
    analog = convert(model)
    refused = entries(analog.conversion_report, "refused")
    assert set(refused) == {"failing", "matrix", "instance"}
    assert "forward pass failed" in refused["failing"].reason
    assert "a function set on this one layer" in refused["instance"].reason
    assert "uses the weight for more than" in refused["matrix"].reason
    assert all(type(analog[name]) is type(model[name]) for name in refused)
    assert list(entries(analog.conversion_report, "converted")) == ["plain"]
    text = str(analog.conversion_report)
    assert "refused: 3 layers" in text and "matrix [Matrix, 12]" in text


class Bare(nn.Module):
    def __init__(self, name, shape) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.ones(shape)))


def test_report_counts_every_matrix_weight_once(net):
    model = nn.ModuleDict(
        {
            "net": net,
            "attention": nn.MultiheadAttention(8, 2),
            "embedding": nn.Embedding(10, 4),
            "transposed": nn.ConvTranspose2d(3, 4, 2),
            "own": nn.Bilinear(2, 3, 4),
            "scale": Bare("gamma", (1, 4, 1, 1)),
            "position": Bare("relative_position_bias_table", (9, 4)),
            "query": Bare("query_feat", (9, 4)),
            "excluded": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
            "group_norm": nn.GroupNorm(2, 4),
            "lazy": nn.LazyLinear(3),
            "batch_statistics": nn.BatchNorm2d(4, track_running_stats=False),
            "in_half": nn.Linear(3, 4).half(),
        }
    )
    model["again"] = model["excluded"][0]
    model["tied"] = nn.Linear(4, 10, bias=False)
    model["tied"].weight = model["embedding"].weight
    analog = convert(model, exclude=("excluded",))
    report = analog.conversion_report
    total = sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p) and p.dim() >= 2) - 4 - 36
    assert report.n_weights == total
    names = [entry.name for entry in report]
    assert len(names) == len(set(names))
    share = sum(entry.n_weights for entry in report.converted) / total
    assert report.analog_share == pytest.approx(share) and 0 < share < 1
    assert str(report).startswith(f"{share:.1%} of {total:,} matrix weights on ")
    kept = entries(report, "kept_digital")
    converted = entries(report, "converted")
    projections = {name: entry for name, entry in converted.items() if name.startswith("attention.")}
    assert set(projections) == {f"attention.{part}_proj" for part in ("q", "k", "v", "out")}
    assert sum(entry.n_weights for entry in projections.values()) == 4 * 8 * 8
    assert converted["transposed"].n_weights == 48
    assert kept["own"].reason == "Bilinear has no analog form" and kept["own"].n_weights == 24
    assert kept["query"].reason.startswith("Bare has no analog form: ")  # a matrix, for all its name says
    assert kept["embedding"].reason == "lookup table, no matrix product" and kept["embedding"].n_weights == 0
    assert kept["position"].reason == "relative_position_bias_table: added or scaled elementwise, no matrix product"
    assert kept["position"].n_weights == kept["scale"].n_weights == 0
    assert kept["excluded"].reason == kept["again"].reason == "excluded"
    assert "no running statistics" in kept["batch_statistics"].reason
    refused = entries(report, "refused")
    assert refused["lazy"].reason == "lazy layer without weights yet; run the model once first"
    assert "float32 or float64" in refused["in_half"].reason
    n_tiles = sum(len(list(layer.analog_tiles())) for layer in named_analog_layers(analog).values())
    assert n_tiles == sum(entry.n_tiles for entry in report.converted)


class TwoParents(nn.Module):
    """Heads that share a convolution and keep a normalisation each, as RTMDet's do."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Conv2d(3, 3, 3, padding=1)
        self.levels = nn.ModuleList(nn.Sequential(shared, nn.BatchNorm2d(3)) for _ in range(3))
        self.alias = shared

    def forward(self, x):
        return sum(level(x) for level in self.levels) + self.alias(x)


def test_shared_modules_stay_shared(images, relative):
    torch.manual_seed(0)
    model = TwoParents().eval()
    analog = convert(model)
    assert len({id(level[0]) for level in analog.levels} | {id(analog.alias)}) == 1
    assert isinstance(analog.alias, NoiseAwareConv2d)
    assert len({id(level[1]) for level in analog.levels}) == 3
    assert [entry.name for entry in analog.conversion_report.converted] == ["levels.0.0"]
    x = images(2)
    assert relative(analog(x), model(x)) < 1e-5
    nabn.program_chip(analog, seed=0)
    assert relative(analog.levels[0][0](x), analog.alias(x)) == 0.0


@pytest.mark.parametrize("pattern", ["levels.2.0", "alias", "levels.1", "levels.?.0"])
def test_a_shared_module_is_excluded_under_any_of_its_names(pattern):
    model = nn.ModuleDict({"shared": TwoParents(), "other": nn.Linear(2, 2)})
    analog = convert(model, exclude=f"shared.{pattern}")
    assert type(analog["shared"].alias) is nn.Conv2d
    assert len({id(level[0]) for level in analog["shared"].levels} | {id(analog["shared"].alias)}) == 1


def test_a_module_used_twice_in_a_sequential_is_kept(images, relative):
    relu, conv = nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, relu, conv, relu, nn.Flatten(), nn.Linear(189, 2)).eval()
    analog = convert(model)
    assert len(analog) == 6 and analog[0] is analog[2] and analog[1] is analog[3]
    x = images(2)
    assert relative(analog(x), model(x)) < 1e-5


def test_hooks_are_kept(net, images):
    seen = []

    def note(name, always=False):
        def hook(module, args, output=None):
            seen.append(name)

        return hook

    net.register_forward_hook(note("root"))
    net.stem.register_forward_hook(note("sequential"))
    net.stem[0].register_forward_hook(note("conv"))
    net.stem[1].register_forward_pre_hook(note("norm, before"))
    net.stem[1].register_forward_hook(note("norm"), always_call=True)
    net.head.register_forward_hook(
        lambda module, args, kwargs, output: output * 0 + len(kwargs) + 7.0, with_kwargs=True
    )
    out = convert(net)(images(2))
    assert seen == ["conv", "norm, before", "norm", "sequential", "root"]
    assert torch.equal(out, torch.full_like(out, 7.0))


def test_attributes_that_frameworks_put_on_layers_are_kept():
    conv = nn.Conv2d(4, 6, 3, groups=2)
    conv.transposed_by_us, conv.is_final = "no", True
    analog = convert(nn.Sequential(conv))[0]
    assert (analog.in_channels, analog.out_channels, analog.groups, analog.kernel_size) == (4, 6, 2, (3, 3))
    assert analog.transposed_by_us == "no" and analog.is_final
    assert analog.weight.shape == conv.weight.shape
    assert analog.bias is not None and analog.bias.shape == (6,)
    assert "tiles=1" in repr(analog)


COMPUTED = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "weight_norm by hook": nn.utils.weight_norm,
    "spectral_norm by hook": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("since", ["training", "forward", "loading"])
@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_weights_are_taken_as_applied(kind, since, relative):
    """Also where torch has not applied them since they were made, trained or loaded."""
    torch.manual_seed(0)
    model, other = (nn.Sequential(COMPUTED[kind](nn.Linear(5, 4)), nn.Linear(4, 2)) for _ in range(2))
    x = torch.randn(3, 5)
    if since != "training":
        with torch.no_grad():
            model.eval()(x)
    if since == "loading":
        model.load_state_dict(other.state_dict())
    before = state_of(model)
    analog = convert(model)
    assert isinstance(analog[0], NoiseAwareLayer)
    assert state_of(model).keys() == before.keys()
    assert equal(state_of(model), before)
    assert relative(analog(x), model.eval()(x)) < 1e-6
    assert not analog[0]._forward_pre_hooks
    assert relative(convert(model, exclude="0")(x), model(x)) < 1e-6


@pytest.mark.parametrize("exclude", ["head", ("head", "norm1d"), ("stem.*", "row"), "*.0", ["n*"]])
def test_exclude_by_name_and_pattern(net, exclude, images, relative):
    analog = convert(net, exclude=exclude)
    patterns = (exclude,) if isinstance(exclude, str) else exclude
    kept = entries(analog.conversion_report, "kept_digital")
    assert kept and all(entry.reason == "excluded" for entry in kept.values())
    for name, module in net.named_modules():
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            assert type(analog.get_submodule(name)) is type(module)
    assert relative(analog(images(2)), net(images(2))) < 1e-5


def test_exclude_of_what_is_not_there_suggests_the_nearest(net):
    with pytest.raises(
        ConversionError, match=r"exclude names 'grouped1', which no module has, did you mean 'grouped'\?"
    ):
        convert(net, exclude=("grouped1",))
    with pytest.raises(ConversionError, match="exclude must be names of modules, .*, got 3"):
        convert(net, exclude=(3,))


def test_nothing_to_convert_is_an_error(net):
    for model, options in ((nn.ReLU(), {}), (nn.BatchNorm2d(3), {}), (net, {"exclude": "*"}), (nn.LazyLinear(3), {})):
        with pytest.raises(ConversionError, match=f"model {type(model).__name__} has no layer to put on tiles"):
            convert(model, **options)


def test_arguments_of_the_wrong_type(net):
    with pytest.raises(ConversionError, match="model must be a torch.nn.Module, got str"):
        convert("net")
    for wrong, hint in (
        (nabn.presets.PCMPreset, r"class PCMPreset; call it: PCMPreset\(\)"),
        ("pcm", r"parse_preset\('pcm'\)"),
    ):
        with pytest.raises(ConversionError, match=f"rpu_config must be an aihwkit RPU configuration, got .*{hint}"):
            nabn.convert_to_noise_aware(net, wrong)
    with pytest.raises(ConversionError, match="rpu_config must be an aihwkit RPU configuration, got NoneType"):
        nabn.convert_to_noise_aware(net, None)
    with pytest.raises(ConversionError, match="must be for inference .* got FloatingPointRPUConfig"):
        nabn.convert_to_noise_aware(net, FloatingPointRPUConfig())
    with pytest.raises(ConversionError, match="must be TileModuleArray .* QuantizedTileModuleArray"):
        nabn.convert_to_noise_aware(nn.Linear(4, 3), QuantizedTorchInferenceRPUConfig())
    with pytest.raises(ConversionError, match="buffer '1.running_mean' belongs to a lazy layer"):
        convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d()))


def test_a_network_in_double_precision(net, images, relative):
    net = net.double()
    x = images(3).double()
    for rpu_config in (tiled(PRESET(), 16, 7), nabn.presets.PCMPreset()):
        analog = nabn.convert_to_noise_aware(net, rpu_config)
        assert relative(analog(x), net(x)) < 1e-12
        nabn.program_chip(analog, seed=0, t_inference="1d")
        assert analog(x).dtype == torch.float64 and relative(analog(x), net(x)) > 1e-4
        nabn.calibrate(analog, [x], reference=net)
        assert relative(type(analog.head).to_digital(analog.head)(x[:, 0, 0, :6]), analog.head(x[:, 0, 0, :6])) < 1e-12


def test_attention_and_transformer_layers_stay_consistent(relative):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    analog = convert(model)
    assert len(analog.conversion_report.converted) == 12 and analog.conversion_report.analog_share == 1.0
    x = torch.randn(3, 5, 8)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    with torch.no_grad():
        assert relative(analog(x), model(x)) < 1e-5
        expected = model(x, src_key_padding_mask=mask)
        got = analog(x, src_key_padding_mask=mask)
        assert torch.allclose(got[~mask], expected[~mask], atol=1e-5)
        clean = analog(x)
        nabn.program_chip(analog, seed=0)
        assert relative(analog(x), clean) > 1e-3  # the fused fast path would go past the tiles


def test_a_configuration_of_its_own_for_a_layer(net):
    seen = {}

    def specific(name, module, rpu_config):
        seen[name] = type(module).__name__
        if name == "head":
            rpu_config.mapping.max_input_size = 4
        return rpu_config

    analog = convert(net, specific_rpu_config_fun=specific)
    assert seen["head"] == "Linear" and seen["depthwise"] == "EmptySafeConv2d" and len(seen) == 6
    assert len(list(analog.head.analog_tiles())) == 2 and len(list(analog.row.analog_tiles())) == 1


def test_converting_twice_reports_what_was_analog(net, images):
    once = convert(net)
    twice = convert(once)
    assert {entry.reason for entry in twice.conversion_report.converted} == {"was analog already"}
    assert twice.conversion_report.n_weights == once.conversion_report.n_weights
    assert len(twice.conversion_report.normalization) == 4
    assert torch.equal(twice(images(2)), once(images(2)))


def test_a_deep_copy_works_and_is_independent(chip, images, net):
    nabn.calibrate(chip, [images(4)], reference=net)
    x = images(3)
    twin = copy.deepcopy(chip)
    expected = chip(x)
    assert torch.equal(twin(x), expected)
    nabn.program_chip(twin, seed=8)
    assert torch.equal(chip(x), expected) and not torch.equal(twin(x), expected)
    nabn.program_chip(chip, seed=8)
    assert torch.equal(twin(x), chip(x))


def test_what_is_frozen_stays_frozen(net):
    net.grouped.requires_grad_(False)
    net.head.weight.requires_grad_(False)
    analog = convert(net)
    for name, layer in named_analog_layers(analog).items():
        digital = net.get_submodule(name)
        assert all(tile.tile.weight.requires_grad == digital.weight.requires_grad for tile in layer.analog_tiles())
        assert layer.bias is None or layer.bias.requires_grad == digital.bias.requires_grad


def test_gradients_reach_the_weights_on_the_tiles(net, images):
    analog = convert(net)
    for model in (net, analog):
        model(images(3)).square().sum().backward()
    tile = next(analog.head.analog_tiles())
    assert torch.allclose(tile.tile.weight.grad, net.head.weight.grad, rtol=1e-4, atol=1e-5)
    assert torch.allclose(analog.stem[1].weight.grad, net.stem[1].weight.grad, rtol=1e-4, atol=1e-4)
