"""The table of transformers' architectures."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

transformers = pytest.importorskip("transformers", reason="needs transformers: uv sync")
pytest.importorskip("timm")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from coverage_networks import NetworkCoverage  # noqa: E402
from coverage_transformers import _NETWORKS, MODELS, measure  # noqa: E402


def test_the_list_has_the_three_tasks() -> None:
    kinds = [kind for kind, _, _ in _NETWORKS.values()]
    assert all(hasattr(transformers, kind) for kind in kinds) and len(set(kinds)) >= 8
    for task in ("ImageClassification", "ObjectDetection", "SemanticSegmentation"):
        assert any(kind.endswith(task) for kind in kinds)


@pytest.mark.slow
def test_a_network_goes_on_tiles() -> None:
    row = measure("transformers:resnet18")
    assert row.passes and row.share == 1.0 and row.digital == [] and row.layers == 21


def test_its_rows_stand_in_a_table_of_their_own(load_tool: Callable[[str], ModuleType]) -> None:
    tool = load_tool("model_coverage")
    rows = [NetworkCoverage(model=name, size=96, error=1e-7, predicts=True) for name in ("timm:a", MODELS[0])]
    page = tool.markdown(rows, "pcm")
    parts = page.split("\n## ")
    assert [part.partition("\n")[0] for part in parts[1:]] == ["mmdetection and mmsegmentation", "timm", "transformers"]
    assert "| timm:a |" in parts[2] and f"| {MODELS[0]} |" in parts[3] and MODELS[0] not in parts[2]
    assert tool.markdown([], "pcm", page) == page
