"""mmcv's operators are ours in these tests, also where mmcv is compiled."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("mmengine")

from aihwkit_nabn.openmmlab import operators


@pytest.fixture(autouse=True)
def our_operators(monkeypatch):
    for name, module in list(sys.modules.items()):
        if name.startswith("mmcv.ops.") and hasattr(module, "ext_module"):
            monkeypatch.setattr(module, "ext_module", operators)
