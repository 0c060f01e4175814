from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
from torch import nn

from aihwkit_nabn.errors import UnknownNameError
from aihwkit_nabn.workloads import WORKLOADS, CalibrationRequest, LoadSettings, Workload, load_workload


@pytest.fixture
def tool(load_tool) -> Iterator[ModuleType]:
    tool = load_tool("network_workloads")
    yield tool
    WORKLOADS.unregister("network")
    if "stand_in" in tool.NETWORKS:
        tool.NETWORKS.unregister("stand_in")


def test_a_network_of_the_set_is_a_workload_with_images_to_search_on(tool: ModuleType) -> None:
    required = []

    def load(options) -> Workload:
        metrics = {"images": float(options.test_images or 0), "train": float(options.split == "train")}
        return Workload(
            model=nn.Sequential(nn.Linear(2, 2)).eval(), eval_fn=lambda model: metrics, calibration=lambda request: []
        )

    kind = type(tool.NETWORKS.get("resnet20"))
    tool.NETWORKS.register("stand_in")(kind(require=required.append, load=load, request=CalibrationRequest()))
    workload = load_workload("network:stand_in", LoadSettings(test_images=7, seed=3), data="some", checkpoint="where")
    assert [(o.seed, str(o.data_root), str(o.checkpoints)) for o in required] == [(3, "some", "where")]
    assert workload.eval_fn(workload.model) == {"images": 7.0, "train": 0.0}
    assert workload.held_back is not None
    held_back = workload.held_back(5, CalibrationRequest())
    assert held_back is not None and held_back(workload.model) == {"images": 5.0, "train": 1.0}
    with pytest.raises(UnknownNameError, match="resnet20"):
        load_workload("network:resnet21")
