"""Fit files: written, read by people and by us, and refused where they are something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aihwkit_nabn.devices import Curve, DeviceFit, read_fit, write_fit
from aihwkit_nabn.devices.fit_file import fit_from_json
from aihwkit_nabn.errors import NabnError

LINE, TABLE = Curve("polynomial", (0.1, 1.0), (1.0, 2.0)), Curve("table", (0.0, 0.5, 1.0), (1.0, 3.0, 2.0))
FULL = DeviceFit(
    g_max_us=25.0,
    offset_us=TABLE,
    spread_us=LINE,
    first_reading_s=20.0,
    exponent=LINE,
    exponent_spread=TABLE,
    read_spread=LINE,
)
LEAST = DeviceFit(g_max_us=25.0, offset_us=TABLE, spread_us=LINE)


def test_curves_keep_their_last_values_beyond_what_was_measured() -> None:
    np.testing.assert_allclose(LINE(np.array([[0.0, 0.1], [0.5, 2.0]])), [[1.2, 1.2], [2.0, 3.0]])
    np.testing.assert_allclose(TABLE(np.array([-1.0, 0.25, 0.75, 9.0])), [1.0, 2.0, 2.5, 2.0])


@pytest.mark.parametrize("fit", [FULL, LEAST])
def test_a_fit_comes_back(fit: DeviceFit, tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    write_fit(path, fit, {"rows": 3, "levels": [{"a": 1}, {"a": 2}]}, {"spread_us": {"standard_errors": [0.1, 0.2]}})
    assert read_fit(path) == fit == fit_from_json(fit.to_json()) and read_fit(path).digest == fit.digest
    content = json.loads(path.read_text())
    assert content["measurements"]["rows"] == 3
    assert content["programming"]["spread_us"]["standard_errors"] == [0.1, 0.2]
    assert max(map(len, path.read_text().splitlines())) < 100


def test_other_numbers_have_another_digest() -> None:
    assert len({FULL.digest, LEAST.digest, DeviceFit(g_max_us=26.0, offset_us=TABLE, spread_us=LINE).digest}) == 3


def changed(**changes: Any) -> dict[str, Any]:
    return {"format": "nabn device fit", "version": 1, **FULL.to_json(), **changes}


def of_curve(**changes: Any) -> dict[str, Any]:
    return changed(read={"relative_spread": {**LINE.to_json(), **changes}})


BAD = [
    ({"results": []}, "is no fitted device .*its format must be 'nabn device fit', got None"),
    ([1], "is no fitted device"),
    (changed(version=2), "version must be 1, the one this release reads, got 2"),
    (changed(g_max_us=0), "g_max_us must be a finite number > 0, got 0"),
    (changed(g_max_us="25"), "g_max_us must be a finite number > 0, got '25'"),
    (changed(programming=None), "programming must be an object with 'offset_us', got None"),
    (changed(programming={"ofset_us": {}}), "programming lacks 'offset_us', did you mean 'ofset_us'"),
    (changed(drift={"first_reading_s": 20.0}), "drift lacks 'exponent'"),
    (changed(drift={**FULL.to_json()["drift"], "first_reading_s": -1}), "drift.first_reading_s must be"),
    (changed(read=3), "read must be an object with 'relative_spread', got 3"),
    (of_curve(form="spline"), "read.relative_spread.form must be one of polynomial, table, got 'spline'"),
    (of_curve(form=[]), "read.relative_spread.form must be one of"),
    (of_curve(coefficients=[]), "coefficients must be a list of numbers"),
    (of_curve(coefficients="12"), "coefficients must be a list of numbers, got '12'"),
    (of_curve(coefficients=[1, None]), "coefficients must hold finite numbers, got None"),
    (of_curve(range=[1.0, 0.0]), "range must be two increasing numbers"),
    (of_curve(range=[0.0]), "range must be two increasing numbers"),
    (of_curve(form="table", x=[0, 1], values=[1]), "must have as many values as x, got 1 and 2"),
    (of_curve(form="table", x=[1, 1], values=[1, 2]), "x must be increasing numbers"),
    ({name: value for name, value in changed().items() if name != "read"}, "lacks 'read'"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_foreign_file_is_refused_by_its_field(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_text(json.dumps(content))
    with pytest.raises(NabnError, match=message) as raised:
        read_fit(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"target,conductance", "is no fitted device"), (b"\xff\x00", "is no fitted device")]
)
def test_what_is_no_json_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_bytes(content)
    with pytest.raises(NabnError, match=message):
        read_fit(path)
    with pytest.raises(NabnError, match=r"nabn fit MEASUREMENTS.csv writes one\): .*other.json: No such file"):
        read_fit(tmp_path / "other.json")
