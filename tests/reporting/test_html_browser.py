from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.reporting.html import write_html


def _load_helper() -> ModuleType:
    # Tests are imported by their path, so a helper beside them is too.
    spec = importlib.util.spec_from_file_location("nabn_test_browser", Path(__file__).with_name("browser.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


helper = _load_helper()

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not helper.is_available(), reason=helper.MISSING)]

_WIDER = """
return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, svg, .skip')
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 80))
"""


def test_the_report_in_a_real_browser(make_result: Callable[..., EvaluationResult], tmp_path: Path) -> None:
    layer = {"kind": "analog layer", "mean_before": 0.5, "mean_after": 0.01, "spread_before": 0.1, "spread_after": 0.0}
    settings = {
        "model": "Model",
        "command": "nabn test " + "--noise gaussian:sigma=0.06 " * 9,
        "scenarios": [{"name": "noisy", "t_inference": 0.0, "rpu_config": "Preset(" + "x" * 300 + ")"}],
        "layer_shifts": {"noisy": {"paired": [{"name": f"backbone.layer{i}.conv", **layer} for i in range(20)]}},
    }
    many = [(f"a setting with a long name, number {index}", index / 100) for index in range(9)]
    make_result(many, metrics=("mIoU", "mIoU/car", "aAcc"), settings=settings).to_json(tmp_path / "results.json")
    page = write_html(tmp_path, tmp_path / "report.html")
    with helper.browser() as browser:
        for width in (1280, 390):
            for dark in (False, True):
                browser.open(page, width=width, dark=dark)
                browser.run("document.querySelectorAll('details').forEach(each => each.open = true)")
                assert browser.run("return document.documentElement.scrollWidth") <= width
                assert browser.run(_WIDER) == []
                headings = browser.run("return [...document.querySelectorAll('h1, h2, h3')].map(e => e.textContent)")
                assert {"In short", "How much comes back", "What happens inside", "Glossary"} <= set(headings)
                shown = browser.run(
                    "return [...document.querySelectorAll('.plot svg')].map(e => e.getBoundingClientRect().height)"
                )
                assert len(shown) >= 2 and min(shown) > 80
                assert browser.console() == []
                assert browser.requested() == [page.resolve().as_uri()]
