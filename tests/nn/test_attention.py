"""Attention with projections on tiles, against torch's."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import CalibrationError, NabnError
from aihwkit_nabn.nn import NoiseAwareMultiheadAttention, named_analog_layers, split_attention

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")

PRESET = nabn.presets.GaussianWeightNoisePreset
VARIANTS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "other widths": {"kdim": 5, "vdim": 7, "batch_first": True},
    "everything": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 9, "dtype": torch.float64},
}


def build(options, embed_dim=8):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(embed_dim, 2, **options).eval()
    with torch.no_grad():
        for parameter in attention.parameters():  # biases begin at zero
            if parameter.dim() == 1:
                parameter.normal_()
    return attention


def inputs(attention, n=3, queries=5, keys=6):
    generator = torch.Generator().manual_seed(1)
    dtype = attention.out_proj.weight.dtype
    shapes = ((queries, attention.embed_dim), (keys, attention.kdim), (keys, attention.vdim))
    tensors = [torch.randn(n, *shape, generator=generator, dtype=dtype) for shape in shapes]
    return tensors if attention.batch_first else [x.transpose(0, 1) for x in tensors]


def close(got, expected, dtype):
    tolerance = 1e-12 if dtype is torch.float64 else 2e-6
    assert (got is None) == (expected is None)
    if got is not None:
        torch.testing.assert_close(got, expected, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_torchs(name):
    attention = build(VARIANTS[name])
    analog = nabn.convert_to_noise_aware(attention, PRESET())
    assert isinstance(analog, NoiseAwareMultiheadAttention) and len(named_analog_layers(analog)) == 4
    q, k, v = inputs(attention)
    generator = torch.Generator().manual_seed(2)
    padding = torch.rand(3, 6, generator=generator) < 0.3
    masks = {
        "none": None,
        "bool": torch.rand(5, 6, generator=generator) < 0.3,
        "per head": torch.randn(6, 5, 6, generator=generator).to(q.dtype),
    }
    masks["bool"][:, 0] = padding[:, 0] = False
    digital = NoiseAwareMultiheadAttention.to_digital(analog)
    cases = itertools.product(masks.values(), (None, padding), (True, False), (True, False))
    with torch.no_grad():
        for mask, padded, need_weights, average in cases:
            if padded is not None and mask is not None and mask.dtype is not torch.bool:
                padded = torch.zeros(padded.shape, dtype=q.dtype).masked_fill_(padded, -5.0)
            options = {
                "attn_mask": mask,
                "key_padding_mask": padded,
                "need_weights": need_weights,
                "average_attn_weights": average,
            }
            expected = attention(q, k, v, **options)
            for got in (analog(query=q, key=k, value=v, **options), digital(q, k, v, **options)):
                close(got[0], expected[0], q.dtype)
                close(got[1], expected[1], q.dtype)


@pytest.mark.parametrize("name", VARIANTS)
def test_unbatched_empty_and_gradients(name):
    attention = build(VARIANTS[name])
    analog = nabn.convert_to_noise_aware(attention, PRESET())
    first = attention.batch_first
    q, k, v = (x[0] if first else x[:, 0] for x in inputs(attention))
    padding = torch.tensor([False, True, False, False, True, False])
    for options in ({}, {"key_padding_mask": padding}, {"need_weights": False}):
        expected, got = attention(q, k, v, **options), analog(q, k, v, **options)
        close(got[0], expected[0], q.dtype)
        close(got[1], expected[1], q.dtype)
    out, weights = analog(*inputs(attention, n=0), key_padding_mask=torch.zeros(0, 6, dtype=torch.bool))
    assert out.shape == ((0, 5, 8) if first else (5, 0, 8)) and weights.shape[:2] == (0, 5)
    for model in (attention, analog):
        model(q, k, v)[0].square().sum().backward()
    weight = next(analog.v_proj.analog_tiles()).tile.weight.grad
    expected = attention.in_proj_weight.grad[16:] if attention._qkv_same_embed_dim else attention.v_proj_weight.grad
    close(weight, expected, q.dtype)


def test_causal_hint_and_bad_shapes():
    attention = build({"batch_first": True})
    analog = nabn.convert_to_noise_aware(attention, PRESET())
    q, k, v = inputs(attention, keys=5)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    for need_weights in (True, False):
        options = {"attn_mask": mask, "is_causal": True, "need_weights": need_weights}
        close(analog(q, k, v, **options)[0], attention(q, k, v, **options)[0], q.dtype)
    for options, message in (
        ({"is_causal": True}, "pass attn_mask too"),
        ({"attn_mask": mask[:3]}, r"attn_mask must have shape \(5, 5\) or \(6, 5, 5\), got \(3, 5\)"),
        ({"key_padding_mask": torch.zeros(3, 4)}, r"key_padding_mask must have shape \(3, 5\), got \(3, 4\)"),
    ):
        with pytest.raises(NabnError, match=message):
            analog(q, k, v, **options)
    with pytest.raises(NabnError, match="got 3, 2 and 3"):
        analog(q, k[0], v)


def test_what_code_around_it_reads():
    attention = build({"batch_first": True, "dropout": 0.1})
    attention.mark = "ours"
    analog = nabn.convert_to_noise_aware(attention, PRESET())
    for name in ("embed_dim", "num_heads", "head_dim", "batch_first", "_qkv_same_embed_dim", "dropout", "mark"):
        assert getattr(analog, name) == getattr(attention, name)
    assert torch.equal(analog.in_proj_weight, attention.in_proj_weight)
    assert torch.equal(analog.in_proj_bias, attention.in_proj_bias)
    nabn.program_chip(analog, seed=0)
    first = analog.in_proj_weight
    assert not torch.equal(first, attention.in_proj_weight)
    nabn.program_chip(analog, seed=1)
    assert not torch.equal(first, analog.in_proj_weight)


class OwnForward(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class Subclass(nn.MultiheadAttention):
    """Adds nothing."""


def test_own_forward_passes_stay_digital_and_projections_can_be_excluded():
    model = nn.ModuleDict({"own": OwnForward(8, 2), "sub": Subclass(8, 2), "low": nn.MultiheadAttention(8, 2).half()})
    analog = nabn.convert_to_noise_aware(model, PRESET(), exclude="sub.out_proj")
    report = analog.conversion_report
    assert [entry.name for entry in report.converted] == [f"sub.{x}_proj" for x in "qkv"]
    kept = {entry.name: entry for entry in report.kept_digital}
    assert kept["own"].reason == "attention with a forward pass of its own" and kept["own"].n_weights == 256
    assert kept["sub.out_proj"].reason == "excluded"
    assert len(report.refused) == 4 and report.n_weights == 3 * 256


class Mixed(nn.Module):
    """An encoder, cross attention with other widths, and an attention that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.query = nn.Parameter(torch.randn(1, 4, 12))
        self.cross = nn.MultiheadAttention(12, 3, kdim=8, vdim=8, batch_first=True)
        self.again = nn.ModuleList([nn.MultiheadAttention(12, 2, batch_first=True)])
        self.alias = self.again[0]
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        tokens = self.encoder(self.stem(x).flatten(2).transpose(1, 2))
        out = self.cross(self.query.expand(len(x), -1, -1), tokens, tokens)[0]
        out = out + self.again[0](query=out, key=out, value=out)[0]
        return self.head(out + self.alias(out, out, out, need_weights=False)[0])


@pytest.mark.parametrize("method", ["paired", "distill"])
def test_calibration_against_a_reference_that_stays_as_it_was(method, images):
    torch.manual_seed(0)
    net = Mixed().eval()
    net.alias.register_forward_hook(lambda module, args, output: seen.append(1))
    seen: list[int] = []
    x = images(8, shape=(3, 9, 9))
    expected = net(x)
    assert len(seen) == 2
    analog = nabn.convert_to_noise_aware(net, PRESET(sigma=0.1))
    torch.testing.assert_close(analog(x), expected, rtol=1e-4, atol=1e-5)
    assert len(seen) == 4 and analog.alias is analog.again[0]
    modules = [(name, id(module), module.training) for name, module in net.named_modules(remove_duplicate=False)]
    state = copy.deepcopy(net.state_dict())
    speeds = [layer.activation_relu_or_gelu for layer in net.encoder.layers]
    before = after = 0.0
    batches = [images(24, seed, (3, 9, 9)) for seed in (1, 2)]
    for seed in range(3):
        nabn.program_chip(analog, seed=seed)
        before += float((analog(x) - expected).square().mean().detach())
        options = {"steps": 10} if method == "distill" else {}
        report = nabn.calibrate(analog, batches, method=method, reference=net, **options)
        after += float((analog(x) - expected).square().mean().detach())
        assert set(named_analog_layers(analog)) == {layer.name for layer in report.layers}
    assert after < 0.9 * before
    assert modules == [(n, id(m), m.training) for n, m in net.named_modules(remove_duplicate=False)]
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())
    assert speeds == [layer.activation_relu_or_gelu for layer in net.encoder.layers] != [0, 0]
    assert torch.equal(net(x), expected)


def test_the_reference_gets_its_attention_back_after_an_error(images):
    net = Mixed().eval()
    modules = [id(module) for module in net.modules()]
    analog = nabn.program_chip(nabn.convert_to_noise_aware(net, PRESET()), seed=0)

    def failing(model, batch):
        model(batch)
        raise RuntimeError("out of order")

    with pytest.raises(CalibrationError, match="out of order"):
        nabn.calibrate(analog, [images(4, shape=(3, 9, 9))], reference=net, forward_fn=failing)
    assert modules == [id(module) for module in net.modules()]
    other = Mixed().eval()
    other.cross = nn.MultiheadAttention(12, 3, kdim=6, vdim=8)
    with pytest.raises(CalibrationError, match=r"'cross.k_proj' has a \(12, 6\) weight matrix"):
        nabn.calibrate(analog, [images(4)], reference=other)
    assert type(other.cross) is nn.MultiheadAttention


def test_a_bare_attention_as_reference_and_state_dicts():
    attention = build({"batch_first": True})
    q, k, v = inputs(attention)
    analog = nabn.program_chip(nabn.convert_to_noise_aware(attention, PRESET(sigma=0.1)), seed=0)

    def run(model, batch):
        return model(batch, k, v)

    nabn.calibrate(analog, [q], reference=attention, forward_fn=run)
    again = nabn.convert_to_noise_aware(attention, PRESET(sigma=0.1))
    again.load_state_dict(analog.state_dict())
    assert torch.equal(again(q, k, v)[0], analog(q, k, v)[0])
    folded = NoiseAwareMultiheadAttention.to_digital(analog)
    close(folded(q, k, v)[0], analog(q, k, v)[0], q.dtype)
    with split_attention(attention) as split:
        close(split(q, k, v)[0], attention(q, k, v)[0], q.dtype)
