"""Shared networks and data: small, odd-shaped, seeded."""

from __future__ import annotations

import copy
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

import aihwkit_nabn as nabn

torch.set_num_threads(1)
# Processes that tests start find this folder before any package of the name (mmsegmentation 1.2 installs one).
sys.path.insert(0, str(Path(__file__).parents[1]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the fast tests first."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


class _FastTestsFirst:
    """Ends the run before the slow tests if a fast one failed; in the process that collects the reports."""

    failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        slow = "slow" in report.keywords
        self.failed = self.failed or (report.failed and not slow)
        if slow and self.failed:
            pytest.exit("fast tests failed, so the slow ones are not run (by themselves: -m slow)", returncode=1)


def pytest_configure(config: pytest.Config) -> None:
    """Let one process decide, of those that pytest-xdist starts."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_FastTestsFirst())


@pytest.fixture(autouse=True)
def own_seed(request: pytest.FixtureRequest) -> None:
    """Give each test numbers of its own, whatever ran before it: statistical tests then hold or fail for good."""
    seed = zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


class PlainSubclass(nn.Conv2d):
    """Adds nothing."""


class EmptySafeConv2d(nn.Conv2d):
    """Its own forward that computes the same, like the wrappers that take empty batches."""

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x.new_zeros(x.shape[0], self.out_channels, x.shape[2], x.shape[3])
        return super().forward(x)


class SmallNet(nn.Module):
    """Grouped, depthwise, dilated, strided, 1-d and subclassed layers, with and without BatchNorm behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(12)
        self.depthwise = EmptySafeConv2d(12, 12, 3, padding=2, dilation=2, groups=12, bias=False)
        self.pointwise = PlainSubclass(12, 10, 1)
        self.norm2 = nn.BatchNorm2d(10)
        self.row = nn.Conv1d(10, 6, 3, padding="same")
        self.norm1d = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.grouped(self.stem(x))))
        x = F.relu(self.norm2(self.pointwise(self.depthwise(x))))
        x = F.relu(self.norm1d(self.row(x.flatten(2))))
        return self.head(x.mean(2))


def _images(n: int, seed: int = 0, shape: tuple[int, ...] = (3, 9, 7)) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed)) * 1.5 + 0.3


def _settle(model: nn.Module, shape: tuple[int, ...] = (3, 9, 7)) -> nn.Module:
    """Give BatchNorm layers affine parameters away from 0 and 1, and statistics that fit the data about right."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0.0, 0.3, generator=generator)
        model.train()
        for seed in range(100, 110):
            model(_images(16, seed, shape))
    return model.eval()


@pytest.fixture
def images() -> Callable[..., Tensor]:
    """Return ``images(n, seed=0, shape=(3, 9, 7))``."""
    return _images


@pytest.fixture
def settle() -> Callable[..., nn.Module]:
    """Return ``settle(model, shape)``: BatchNorm with reasonable statistics, in eval mode."""
    return _settle


@pytest.fixture(scope="session")
def _built() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = _settle(SmallNet())
    rpu_config = nabn.presets.GaussianWeightNoisePreset(sigma=0.1)
    rpu_config.mapping.max_input_size, rpu_config.mapping.max_output_size = 16, 7
    chip = nabn.convert_to_noise_aware(net, rpu_config, example_inputs=_images(2))
    return net, nabn.program_chip(chip, seed=3)


@pytest.fixture
def net(_built: tuple[nn.Module, nn.Module]) -> nn.Module:
    """A digital network in eval mode."""
    return copy.deepcopy(_built[0])


@pytest.fixture
def batches() -> list[Tensor]:
    """Uneven batches, one of them with a single image."""
    return [_images(5, 1), _images(1, 2), _images(4, 3)]


@pytest.fixture
def chip(_built: tuple[nn.Module, nn.Module]) -> nn.Module:
    """The network on a noisy chip, on several tiles per layer."""
    return copy.deepcopy(_built[1])


@pytest.fixture
def relative() -> Callable[[Tensor, Tensor], float]:
    """Return the largest difference of two tensors over the largest value of the second."""

    def difference(got: Tensor, expected: Tensor) -> float:
        assert got.shape == expected.shape and got.dtype == expected.dtype
        got, expected = got.detach(), expected.detach()
        return float((got - expected).abs().max() / expected.abs().max()) if got.numel() else 0.0

    return difference


COLOURS = {"circle": (220, 40, 40), "square": (40, 200, 60), "triangle": (50, 70, 230), "bar": (230, 210, 40)}


def _shape(name: str, place: int) -> Image.Image:
    image = Image.new("RGB", (40, 36), (20 + 5 * place, 30, 30))
    draw = ImageDraw.Draw(image)
    x = 4 + 3 * place
    box = (x, 6, x + 18, 24)
    match name:
        case "circle":
            draw.ellipse(box, fill=COLOURS[name])
        case "square":
            draw.rectangle(box, fill=COLOURS[name])
        case "triangle":
            draw.polygon([(x, 24), (x + 18, 24), (x + 9, 6)], fill=COLOURS[name])
        case _:
            draw.rectangle((x, 12, x + 18, 16), fill=COLOURS["bar"])
    return image


@pytest.fixture
def shapes_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that draws an image folder: one coloured shape per class, at different places."""

    def draw(classes: tuple[str, ...] = ("circle", "square", "triangle"), count: int = 4) -> Path:
        root = tmp_path / "shapes"
        for part in ("train", "val"):
            for name in classes:
                folder = root / part / name
                folder.mkdir(parents=True)
                for place in range(count):
                    _shape(name, place).save(folder / f"{place}.png")
        return root

    return draw
