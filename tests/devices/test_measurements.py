"""Files of measurements: what is read, in which units, and what is refused where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aihwkit_nabn.devices import read_measurements
from aihwkit_nabn.errors import NabnError

PLAIN = "target,conductance\n1,1.1\n2,1.9\n"
FULL = "device;seconds;conductance [nS];target [nS];operator\nA;10;1100;1000;x\nA;20;1050;1000;x\n\nB;10;2100;2000;y\n"


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "rows.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_least_a_file_can_have(tmp_path: Path) -> None:
    rows = read_measurements(written(tmp_path, PLAIN))
    assert rows.target.tolist() == [1.0, 2.0] and rows.conductance.tolist() == [1.1, 1.9]
    assert rows.seconds.tolist() == [0.0, 0.0] and rows.device.tolist() == [0, 1] and rows.unit == "uS"


def test_all_columns_in_any_order_between_semicolons(tmp_path: Path) -> None:
    rows = read_measurements(written(tmp_path, FULL))
    assert rows.device.tolist() == [0, 0, 1] and rows.seconds.tolist() == [10, 20, 10]
    np.testing.assert_allclose(rows.target, [1, 1, 2])
    np.testing.assert_allclose(rows.conductance, [1.1, 1.05, 2.1])
    assert (rows.unit, rows.unused, rows.source) == ("nS", ("operator",), "rows.csv")


@pytest.mark.parametrize(
    ("header", "unit", "scale"),
    [
        ("target,conductance", None, 1.0),
        ("target,conductance", "S", 1e6),
        ("Target (µS),Conductance [uS]", None, 1.0),
        ("target [S],conductance [S]", "S", 1e6),
        ("target [nS],conductance", "nS", 1e-3),
    ],
)
def test_units(tmp_path: Path, header: str, unit: str | None, scale: float) -> None:
    rows = read_measurements(written(tmp_path, f"\ufeff{header}\n1,2\n3,4\n"), unit)
    np.testing.assert_allclose(rows.target, [scale, 3 * scale])


BAD = [
    ("", "is empty; its first line must name the columns target, conductance"),
    ("\n \n", "is empty"),
    ("target,conductance\n", "has no rows below its headings"),
    ("1,2\n3,4\n", "has no column 'target'"),
    ("targt,conductance\n1,2\n", "has no column 'target', did you mean 'targt'"),
    ("target,programmed conductance\n1,2\n", "has no column 'conductance', did you mean 'programmed conductance'"),
    ("target,target,conductance\n1,1,2\n", "has two columns 'target'"),
    ("target,conductance\n1,2\n2,x\n", "line 3: conductance must be a finite number >= 0, got 'x'"),
    ("target,conductance\n1,2 uS\n", "line 2: conductance must be a finite number >= 0, got '2 uS'"),
    ("target,conductance\n1,nan\n", "line 2: conductance must be a finite number >= 0, got 'nan'"),
    ("target,conductance\n\n1,2\ninf,2\n", "line 4: target must be a finite number >= 0, got 'inf'"),
    ("target,conductance\n1,-0.5\n", "line 2: conductance must be a finite number >= 0, got '-0.5'"),
    ("target,conductance\n1,\n", "line 2: conductance must be a finite number >= 0, got ''"),
    ("target,conductance\n1,2,3\n", "line 2 must have 2 values, got 3"),
    ("target,conductance\n1\n", "line 2 must have 2 values, got 1"),
    ("target [mS],conductance [mS]\n1,2\n", "the unit of 'target' must be one of uS, nS, S, got 'mS'"),
    ("target [uS],conductance [nS]\n1,2\n", "mixes units: target in uS, conductance in nS"),
    ("target [uS],conductance\n1,2\n", "mixes units: target in uS, conductance without one"),
    ("target,conductance,seconds\n1,2,1\n1,2,5\n", "several times .* but no column device"),
    ("target,conductance,seconds,device\n1,2,0,a\n", "line 2: seconds must be a finite number > 0 .*, got '0'"),
    (
        "target,conductance,seconds,device\n1,2,5,a\n1,2,5,a\n1,2,3,a\n",
        "line 4: seconds must not decrease for a device, got 3 after 5 for device 'a'",
    ),
    (b"\x89PNG\r\n\x1a\n\x00\x00\xff", "is no table of text"),
    ('{"target": [1, 2]}', "has no column 'target'"),
    ("target,conductance\n" + "1," + "2" * 200_000, "is no table of text with columns .*line 2"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_what_is_no_measurement_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(NabnError, match=message) as raised:
        read_measurements(written(tmp_path, text))
    assert "rows.csv" in str(raised.value)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="cannot read .*missing.csv: No such file"):
        read_measurements(tmp_path / "missing.csv")
    with pytest.raises(NabnError, match="cannot read .*: Is a directory"):
        read_measurements(tmp_path)
    with pytest.raises(NabnError, match="unit must be one of uS, nS, S, got 'mS'"):
        read_measurements(written(tmp_path, PLAIN), "mS")
    with pytest.raises(NabnError, match="mixes units: target in nS, conductance in nS, --unit in uS"):
        read_measurements(written(tmp_path, FULL), "uS")


def test_a_device_may_begin_anew_at_another_target(tmp_path: Path) -> None:
    text = "target,conductance,seconds,device\n1,1,5,a\n1,1,50,a\n2,2,5,a\n2,2,50,a\n"
    assert read_measurements(written(tmp_path, text)).device.tolist() == [0, 0, 0, 0]
