from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.commands._run import run

SIZE, VECTORS = 24, 7


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("product_error")


def _on_tiles(weights: Tensor, noise: str, **options: Any) -> nn.Module:
    layer = nn.Linear(*weights.shape, bias=False)
    layer.weight = nn.Parameter(weights)
    return nabn.convert_to_noise_aware(layer, nabn.presets.build_preset(noise, **options)).eval()


def _product(weights: np.ndarray, vector: np.ndarray) -> list[float]:
    return [sum(float(w) * float(x) for w, x in zip(row, vector, strict=True)) for row in weights]


@pytest.mark.parametrize("time", [0.0, 86_400.0])
@pytest.mark.parametrize("noise", ["pcm", "gaussian"])
def test_the_error_is_that_of_sums_written_out(tool: ModuleType, noise: str, time: float) -> None:
    weights, inputs = tool.draw("normal", (SIZE, SIZE), 1), tool.draw("uniform", (VECTORS, SIZE), 2, zeros=0.5)
    analog = _on_tiles(weights, noise, drift_compensation=None)
    (found,) = tool.errors_on_chips(analog, inputs @ weights.T, inputs, time, range(3, 4))
    on_chip = analog.weight.detach().numpy()
    assert not np.allclose(on_chip, weights, rtol=1e-3)
    errors = []
    for vector in inputs.numpy():
        exact, measured = _product(weights.numpy(), vector), _product(on_chip, vector)
        difference = math.sqrt(sum((a - b) ** 2 for a, b in zip(measured, exact, strict=True)))
        errors.append(difference / math.sqrt(sum(a**2 for a in exact)))
    assert found == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_the_error_of_gaussian_noise_is_the_one_to_be_expected(tool: ModuleType) -> None:
    # Noise of one spread on all weights: its share of the output is its share of the weights.
    weights = tool.draw("normal", (200, 200), 1, clip=2.0)
    inputs = tool.draw("normal", (50, 200), 2)
    analog = _on_tiles(weights, "gaussian", sigma=0.05)
    (found,) = tool.errors_on_chips(analog, inputs @ weights.T, inputs, 0.0, range(1))
    assert found == pytest.approx(0.05 * 2.0 / float(weights.square().mean().sqrt()), rel=0.02)


def test_a_vector_of_zeros_has_no_relative_error(tool: ModuleType) -> None:
    exact = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert tool.relative_error(exact + torch.tensor([0.0, 1.0]), exact) == pytest.approx(0.2)


def test_what_is_drawn(tool: ModuleType) -> None:
    normal = tool.draw("normal", (400, 400), 0, clip=2.0)
    assert float(normal.abs().max()) == 2.0 and float(normal.std()) == pytest.approx(0.96, abs=0.01)
    uniform = tool.draw("uniform", (400, 400), 0, zeros=0.3)
    assert float((uniform == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert 0.99 < float(uniform.max()) <= 1.0 and -1.0 <= float(uniform.min()) < -0.99
    assert torch.equal(normal, tool.draw("normal", (400, 400), 0, clip=2.0))


def test_the_table(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    noises = ["--noise", "crossbar", "--noise", "gaussian:sigma=0", "--time", "0s", "--time", "1y"]
    assert run(tool.app, [*noises, "--size", "64", "--vectors", "20", "--chips", "2"]) == 0
    cells = dict(line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:])
    means = {name.strip("`"): float(cell.partition(" ± ")[0]) for name, cell in cells.items()}
    assert list(means) == ["crossbar, 0s", "crossbar, 1y", "gaussian:sigma=0"]
    assert 5 < means["crossbar, 0s"] < means["crossbar, 1y"] - 3 and means["gaussian:sigma=0"] == 0.0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--weights", "normale"], "unknown distribution 'normale', did you mean 'normal'?"),
        (["--clip", "0"], "clip must be a finite number > 0, got 0.0"),
        (["--zero-inputs", "1.5"], "zeros must be the share of zeros, between 0 and 1, got 1.5"),
        (["--time", "1 dy"], "time must be seconds >= 0"),
    ],
)
def test_bad_input_is_refused(
    tool: ModuleType, given: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tool.app, ["--noise", "pcm", "--size", "8", *given]) == 2
    assert told in capsys.readouterr().err
