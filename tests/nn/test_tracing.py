"""A chip that torch traces, exports, compiles or transforms gives what the chip gives."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters.enums import BoundManagementType
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.simulator import parse_preset
from tests.tensors import tensors_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:forward.noise_management=ABS_MAX"),
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=2)
        self.wider = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.norm(self.conv(x)))))
        return self.head(F.relu(self.wider(x)).mean((2, 3)))


CHIPS = {
    "population": ("pcm", "population"),
    "paired": ("pcm", "paired"),
    "common_mode": ("pcm", "common_mode"),
    "batch": ("pcm", "batch"),
    "converters": ("pcm:inp_bits=8,out_bits=8,ir_drop=1.0", "common_mode"),
    "vectors": ("pcm:inp_bits=8,out_bits=8,input_range=false", "common_mode"),
}


def make_chip(preset: str, method: str | None) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net, images = Net().eval(), torch.randn(12, 3, 7, 6)
    config = parse_preset(preset)
    config.mapping.max_input_size = 20  # two rows of tiles and more
    chip = nabn.convert_to_noise_aware(net, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if config.pre_post.input_range.enable:
            nabn.calibrate_input_ranges(chip, [images[:8]])
        nabn.program_chip(chip, 1, "1d")
        if method is not None:
            reference = {"reference": net} if method in ("paired", "common_mode") else {}
            nabn.calibrate(chip, [images[:8]], method, progress=False, **reference)
    return chip, images[8:]


def exported(chip: nn.Module, x: Tensor, *, strict: bool) -> Callable[[Tensor], Any]:
    return torch.export.export(chip, (x,), strict=strict).module()


def compiled(chip: nn.Module, backend: str) -> Callable[[Tensor], Any]:
    torch._dynamo.reset()
    return torch.compile(chip, backend=backend)


def each(chip: nn.Module, x: Tensor, **options: Any) -> Tensor:
    return torch.vmap(lambda image: chip(image[None])[0], **options)(x)


def with_dual_numbers(chip: nn.Module, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(chip(forward_ad.make_dual(x, torch.ones_like(x)))).primal


def with_parameters(chip: nn.Module, x: Tensor) -> Tensor:
    return functional_call(chip, dict(chip.named_parameters()), (x,))


WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "jit": lambda chip, x: torch.jit.trace(chip, x.clone(), check_trace=False)(x),
    "export": lambda chip, x: exported(chip, x.clone(), strict=False)(x),
    "strict export": lambda chip, x: exported(chip, x.clone(), strict=True)(x),
    "compile": lambda chip, x: compiled(chip, "eager")(x),
    "compile ahead": lambda chip, x: compiled(chip, "aot_eager")(x),
    "make_fx": lambda chip, x: make_fx(chip)(x.clone())(x),
    "make_fx with fakes": lambda chip, x: make_fx(chip, tracing_mode="fake", _allow_non_fake_inputs=True)(x.clone())(x),
    "make_fx with symbols": lambda chip, x: make_fx(chip, tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        x.clone()
    )(x),
    "vmap": each,
    "jvp": lambda chip, x: torch.func.jvp(chip, (x,), (x,))[0],
    "dual numbers": with_dual_numbers,
    "functional_call": with_parameters,
}
SLOW = ("strict export", "compile", "compile ahead", "make_fx with symbols")


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


def cases() -> list[Any]:
    ways = [
        (chip, way, gradients)
        for chip in CHIPS
        for way in WAYS
        for gradients in (False, True)
        if (chip, way) != ("batch", "vmap")  # a batch of one has statistics of its own
        if not gradients or (chip in ("common_mode", "converters") and way not in SLOW)
    ]
    return [pytest.param(*case, marks=[pytest.mark.slow] if case[1] in SLOW else []) for case in ways]


@pytest.mark.parametrize(("name", "way", "gradients"), cases())
def test_the_result_is_that_of_the_chip(name: str, way: str, gradients: bool) -> None:
    chip, x = make_chip(*CHIPS[name])
    kept, before = x.clone(), tensors_of(chip)
    with torch.no_grad():
        expected = chip(x)
    with torch.set_grad_enabled(gradients):
        found = WAYS[way](chip, x)
    same(found.detach(), expected)
    # A second call, and the chip itself, are not what the first left behind.
    with torch.no_grad():
        assert torch.equal(chip(x), expected)
    assert torch.equal(x, kept)
    after = tensors_of(chip)
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", CHIPS)
def test_fake_tensors_give_fake_tensors(name: str, inside: bool) -> None:
    """Reading their memory would end the process."""
    chip, x = make_chip(*CHIPS[name])
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = mode.from_tensor(x)
    with torch.no_grad():
        expected = chip(x)
        if inside:
            with mode:
                found = chip(fake)
        else:
            found = chip(fake)
        assert isinstance(found, FakeTensor) and found.shape == expected.shape
        assert torch.equal(chip(x), expected)


@pytest.mark.parametrize("way", ["jit", "export"])
@pytest.mark.parametrize("name", ["common_mode", "converters"])
def test_what_is_recorded_computes_other_inputs_too(name: str, way: str) -> None:
    chip, x = make_chip(*CHIPS[name])
    with torch.no_grad():
        graph = torch.jit.trace(chip, x, check_trace=False) if way == "jit" else exported(chip, x, strict=False)
        other = 0.3 * x.flip(0)
        same(graph(other), chip(other))


NOISY = "gaussian:inp_bits=8,out_bits=8,out_noise=0.03,w_noise=0.02"


@pytest.mark.parametrize("preset", [NOISY, f"{NOISY},input_range=false"])
@pytest.mark.parametrize("way", ["jit", "export", "make_fx"])
def test_recorded_noise_is_drawn_anew_in_every_run(way: str, preset: str) -> None:
    chip, x = make_chip(preset, None)
    with torch.no_grad():
        graph: Any = {
            "jit": lambda: torch.jit.trace(chip, x, check_trace=False),
            "export": lambda: exported(chip, x, strict=False),
            "make_fx": lambda: make_fx(chip)(x),
        }[way]()
        runs, chips = (torch.stack([model(x) for _ in range(60)]) for model in (graph, chip))
    spread = chips.std(0)
    assert float((runs.mean(0) - chips.mean(0)).abs().mean()) < 3.0 * float(spread.mean()) / 60**0.5
    assert 0.8 < float(runs.std(0).mean() / spread.mean()) < 1.25
    torch.manual_seed(3)
    first = graph(x)
    torch.manual_seed(3)
    assert torch.equal(graph(x), first)


def test_vmap_draws_noise_when_asked_to() -> None:
    chip, x = make_chip(NOISY, None)
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="randomness"):
            each(chip, x)
        assert each(chip, x[:1].expand(4, -1, -1, -1), randomness="different").std(0).max() > 0


@pytest.mark.slow
def test_a_compiled_chip_draws_from_the_same_stream() -> None:
    chip, x = make_chip("crossbar", "common_mode")
    run = compiled(chip, "eager")
    with torch.no_grad():
        for _ in range(3):
            nabn.set_read_noise_seed(chip, 5)
            expected = chip(x)
            nabn.set_read_noise_seed(chip, 5)
            same(run(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "method"), [("variational", None), ("pcm", "online")])
def test_a_compiled_chip_changes_from_call_to_call_as_it_does_otherwise(preset: str, method: str | None) -> None:
    chip, x = make_chip(preset, method)
    twin = copy.deepcopy(chip)
    run, found = compiled(chip, "eager"), []
    with torch.no_grad():
        for _ in range(4):
            found.append(run(x))
            same(found[-1], twin(x))
    assert not torch.equal(found[0], found[-1])


@pytest.mark.parametrize(("preset", "method"), [("variational", None), ("pcm", "online")])
@pytest.mark.parametrize("way", ["jit", "export", "make_fx", "vmap"])
def test_what_changes_from_call_to_call_is_refused(preset: str, method: str | None, way: str) -> None:
    chip, x = make_chip(preset, method)
    twin = copy.deepcopy(chip)
    with torch.no_grad():
        with pytest.raises(NabnError, match="cannot be traced, exported or transformed by torch"):
            WAYS[way](chip, x)
        assert torch.equal(chip(x), twin(x))


def test_bound_management_is_refused() -> None:
    chip, x = make_chip("pcm:out_bits=8,input_range=false", None)
    chip.head.analog_module.array[0][0].rpu_config.forward.bound_management = BoundManagementType.ITERATIVE
    with torch.no_grad():
        chip(x)
        with pytest.raises(NabnError, match="bound_management=ITERATIVE"):
            WAYS["vmap"](chip, x)


def compiled_tiles() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    config = InferenceRPUConfig()
    config.forward.out_noise = 0.0
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 20, 5)).eval()
    return nabn.program_chip(nabn.convert_to_noise_aware(net, config), 1), torch.randn(4, 3, 7, 6)


@pytest.mark.parametrize("way", ["jit", "export", "make_fx", "vmap", "jvp"])
def test_compiled_tiles_are_refused(way: str) -> None:
    chip, x = compiled_tiles()
    with torch.no_grad(), pytest.raises(NabnError, match="compiled InferenceTile has no operations"):
        WAYS[way](chip, x)


@pytest.mark.slow
def test_a_compiled_network_calls_compiled_tiles_as_they_are() -> None:
    chip, x = compiled_tiles()
    with torch.no_grad():
        same(compiled(chip, "eager")(x), chip(x))
