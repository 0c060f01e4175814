"""The table of timm's architectures."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn

pytest.importorskip("timm", reason="needs timm: uv pip install 'aihwkit-nabn[timm]'")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

import coverage_timm
from coverage_models import Coverage
from coverage_networks import NetworkCoverage, share_of_multiplications
from coverage_timm import MODELS, measure


def test_a_small_model_goes_on_tiles() -> None:
    row = measure("timm:mobilenetv3_small_050")
    assert row.passes and row.size == 96 and row.share == 1.0 and row.digital == [] and row.layers <= row.tiles
    assert row.cells[-2:] == ("yes", "")


def test_the_list() -> None:
    import timm

    assert len(set(MODELS)) == len(MODELS) >= 50
    assert all(timm.is_model(name.removeprefix("timm:")) for name in MODELS)


def test_multiplications_are_counted_by_layer_and_products_of_activations_are_digital() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    images = torch.randn(3, 4)
    assert share_of_multiplications(model, {"0"}, images) == pytest.approx(32 / 48)
    assert share_of_multiplications(model, {"0", "2"}, images) == 1.0

    recurrent = nn.LSTM(4, 6, batch_first=True).eval()
    pair = nn.ModuleList([recurrent, nn.Linear(6, 5)])
    pair.forward = lambda x: pair[1](pair[0](x)[0])  # type: ignore[method-assign]
    with torch.no_grad():
        share = share_of_multiplications(pair, {"1"}, torch.randn(1, 3, 4))
    assert share == pytest.approx(30 / (30 + 24 * 4 + 24 * 6))

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x)[0]

    projections = {f"attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    share = share_of_multiplications(Attending().eval(), projections, torch.randn(1, 5, 4))
    assert share == pytest.approx(4 * 5 * 16 / (4 * 5 * 16 + 2 * 5 * 5 * 4))


def test_models_that_were_not_measured_keep_their_rows(load_tool: Callable[[str], ModuleType]) -> None:
    tool = load_tool("model_coverage")
    config = Coverage(model="unet", layers=2, tiles=3, share=1.0, error=1e-7, predicts=True)
    row = NetworkCoverage(model=MODELS[0], size=96, layers=2, tiles=3, share=0.5, error=1e-7, predicts=True)
    other = NetworkCoverage(model=MODELS[1], problem="broken")
    page = tool.markdown([config, row], "pcm")
    again = tool.markdown([other], "pcm", page)
    assert f"| {MODELS[0]} | 96 | 2 | 3 | 50.0% | 1.0e-07 | yes |  |" in page and page.count("\n| model |") == 3
    added = set(again.splitlines()) - set(page.splitlines())
    assert set(page.splitlines()) < set(again.splitlines()) and len(added) == 1 and MODELS[1] in added.pop()
    assert tool.markdown([], "pcm", again) == again


def test_a_model_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from coverage_models import measure_all

    def fails(name: str, **options: object) -> NetworkCoverage:
        raise RuntimeError("broken\nmore")

    monkeypatch.setattr(coverage_timm, "measure", fails)
    (row,) = measure_all([MODELS[0]])
    assert row.problem == "RuntimeError: broken" and not row.passes and row.cells[6] == "failed"
