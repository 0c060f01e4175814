from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from aihwkit_nabn import files
from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.results import Record

DIGITAL = 91.6
CHIPS = {
    "uncalibrated": [80.0, 82.0, 79.0],
    "paired": [88.0, 89.5, 88.5],
    "population": [76.0, 78.2, 75.1],
}


def _result(n_chips: int = 3, **metrics: float) -> EvaluationResult:
    records = [
        Record(
            scenario="noisy",
            group=None,
            strength=0.06,
            t_inference=0.0,
            method=method,
            method_name="none" if method == "uncalibrated" else method,
            chip_seed=chip,
            metrics={"accuracy": CHIPS[method][chip], **metrics},
            seconds_calibration=0.25,
            seconds_evaluation=1.0 / 3.0,
            n_calibration_samples=256,
        )
        for chip in range(n_chips)
        for method in CHIPS
    ]
    return EvaluationResult(
        records=records, digital={"accuracy": DIGITAL, **metrics}, settings={"seed": 0, "x": [None]}
    )


def test_frame_has_a_row_per_record_and_a_column_per_metric() -> None:
    frame = _result(loss=0.5).to_frame()
    assert len(frame) == 9
    assert list(frame.columns[:3]) == ["scenario", "group", "strength"]
    assert frame["accuracy"].tolist()[:3] == [80.0, 88.0, 76.0] and (frame["loss"] == 0.5).all()
    assert "metrics" not in frame.columns


def test_frame_refuses_a_metric_that_would_hide_a_column() -> None:
    with pytest.raises(NabnError, match="metric 'group' has the name of a column"):
        _result(group=1.0).to_frame()


def test_summary_against_numpy_and_scipy() -> None:
    summary = _result().summary().set_index("method")
    for method, values in CHIPS.items():
        row = summary.loc[method]
        low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
        assert (row["n"], row["mean"], row["std"]) == (3, np.mean(values), pytest.approx(np.std(values, ddof=1)))
        assert (row["ci95_low"], row["ci95_high"]) == (pytest.approx(low), pytest.approx(high))
    difference = stats.ttest_rel(CHIPS["paired"], CHIPS["uncalibrated"]).confidence_interval()
    paired = summary.loc["paired"]
    assert (paired["diff_low"], paired["diff_high"]) == (pytest.approx(difference.low), pytest.approx(difference.high))
    assert paired["recovered"] == pytest.approx((paired["mean"] - 241 / 3) / (DIGITAL - 241 / 3))
    assert summary.loc["population", "recovered"] < 0
    assert math.isnan(summary.loc["uncalibrated", "diff_mean"]) and math.isnan(summary.loc["uncalibrated", "recovered"])


def test_only_a_method_surely_below_uncalibrated_hurts() -> None:
    assert {cell.record.method: cell.hurts for cell in _result().cells()} == {
        "uncalibrated": False,
        "paired": False,
        "population": True,
    }
    assert not any(cell.hurts for cell in _result(n_chips=1).cells())


def test_one_chip_has_neither_spread_nor_interval() -> None:
    row = _result(n_chips=1).summary().set_index("method").loc["paired"]
    assert row["mean"] == 88.0 and row["diff_mean"] == 8.0
    assert all(math.isnan(row[name]) for name in ("std", "ci95_low", "ci95_high", "diff_low", "diff_high", "recovered"))


def test_chips_are_paired_by_seed_not_by_order() -> None:
    result = _result()
    shuffled = dataclasses.replace(result, records=sorted(result.records, key=lambda r: r.metrics["accuracy"]))
    key = ["scenario", "method"]
    expected = result.summary().sort_values(key).reset_index(drop=True)
    got = shuffled.summary().sort_values(key).reset_index(drop=True)
    np.testing.assert_allclose(got.select_dtypes("number"), expected.select_dtypes("number"))


def test_a_missing_chip_is_an_error() -> None:
    result = _result()
    with pytest.raises(NabnError, match="'population' and the uncalibrated chips differ"):
        dataclasses.replace(result, records=result.records[:-1]).summary()


def test_unknown_metric() -> None:
    with pytest.raises(UnknownNameError, match="unknown metric 'acuracy', did you mean 'accuracy'"):
        _result().summary("acuracy")


def test_json_round_trip(tmp_path: Path) -> None:
    result = _result(third=1 / 3)
    path = result.to_json(tmp_path / "new" / "results.json")
    assert EvaluationResult.from_json(path) == result
    result.to_json(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _result().to_json(tmp_path / "results.json")
    old = path.read_text()

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(NabnError, match="cannot write .*results.json: No space left"):
        _result(loss=1.0).to_json(path)
    assert path.read_text() == old and len(list(tmp_path.iterdir())) == 1


def test_settings_that_are_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="cannot be written as JSON"):
        dataclasses.replace(_result(), settings={"x": object()}).to_json(tmp_path / "results.json")
    assert not list(tmp_path.iterdir())


def _drop_seed(content: dict[str, Any]) -> None:
    del content["records"][2]["chip_seed"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), "is no result file of this package"),
        (lambda c: c.update(version=99), "has version 99 of the format; this release reads version 1"),
        (lambda c: c.update(recods=1), "unknown key 'recods', did you mean 'records'"),
        (lambda c: c.pop("settings"), "the file lacks 'settings'"),
        (lambda c: c.update(records={}), "records must be a list"),
        (lambda c: c.update(digital={}), "metrics of digital must be finite numbers"),
        (_drop_seed, "record 2 lacks 'chip_seed'"),
        (lambda c: c["records"][0].update(chip_seed="0"), "chip_seed of record 0 must not be '0'"),
        (lambda c: c["records"][0].update(metrics={"f1": 1.0}), r"record 0 has the metrics \['f1'\]"),
        (lambda c: c["records"].append(3), "record 9 must be a mapping"),
        (lambda c: c["records"][0].update(strength=float("nan")), "NaN is not a finite number"),
    ],
)
def test_damaged_files(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    path = _result().to_json(tmp_path / "results.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(NabnError, match=message):
        EvaluationResult.from_json(path)


@pytest.mark.parametrize("content", [b"", b'{"format": "aihw', b"\xff\xfe\x00", b"[1, 2]", b"PK\x03\x04"])
def test_files_that_are_none_of_ours(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(NabnError, match=r"results.json (is damaged|is no result file)"):
        EvaluationResult.from_json(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="no result file .*gone.json"):
        EvaluationResult.from_json(tmp_path / "gone.json")
    with pytest.raises(NabnError, match="cannot read"):
        EvaluationResult.from_json(tmp_path)
