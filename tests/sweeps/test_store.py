from __future__ import annotations

from pathlib import Path

import pytest

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.sweeps import RecordStore, SweepRecord
from aihwkit_nabn.sweeps.store import finished_keys

SWEEP = {"name": "s", "chips": 2, "models": [{"name": "digits"}], "versions": {"torch": "1"}}


def _record(chip: int, value: float = 50.0, seconds: float = 1.0) -> SweepRecord:
    return SweepRecord(
        model="digits",
        noise="pcm",
        t_inference=60.0,
        chip_seed=chip,
        jpeg=None,
        method="paired",
        method_name="paired",
        samples=4,
        calibration="representative",
        metrics={"accuracy": value},
        seconds_calibration=seconds,
    )


def _filled(path: Path) -> None:
    with RecordStore(path, SWEEP) as store:
        assert store.add(_record(1)) and store.add(_record(0)) and not store.add(_record(1, seconds=9.0))
        store.note("conversion", "all")
        store.note("conversion", "other")


def test_what_was_added_is_there_again_in_one_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.jsonl"
    _filled(path)
    with RecordStore(path, SWEEP) as again:
        assert again.sorted_records() == [_record(0), _record(1)] and again.notes == {"conversion": "all"}
    assert len(path.read_bytes().splitlines()) == 4
    assert finished_keys(path) == {_record(0).key, _record(1).key} and finished_keys(tmp_path / "none") == set()


def test_times_are_no_part_of_what_is_compared() -> None:
    assert _record(0, seconds=1.0).comparable() == _record(0, seconds=2.0).comparable()
    assert _record(0, value=1.0).comparable() != _record(0).comparable()


def test_a_write_cut_off_anywhere_loses_that_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    _filled(path)
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        whole = sum(end <= length for end in ends)
        assert len(finished_keys(path)) == min(max(whole - 1, 0), 2)
        with RecordStore(path, SWEEP) as store:
            assert len(store.records) == min(max(whole - 1, 0), 2)
            store.add(_record(7))
        with RecordStore(path, SWEEP) as store:
            assert _record(7).key in store.records


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chips": 3}, "chips was 2, and is 3"),
        ({"models": [{"name": "cifar10"}]}, "models was"),
        ({"versions": {"torch": "2"}}, 'versions.torch was "1", and is "2"'),
        ({"versions": {}}, 'versions.torch was "1", and is missing'),
    ],
)
def test_another_sweep_is_refused_by_name(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    path = tmp_path / "r.jsonl"
    _filled(path)
    before = path.read_bytes()
    with pytest.raises(NabnError, match=message):
        RecordStore(path, {**SWEEP, **changed})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'{"record"', b"{", "damaged in line 2"),
        (b"50.0", b"NaN", "damaged in line 2"),
        (b'"model"', b'"modle"', "damaged in line 2"),
        (b"aihwkit_nabn.sweep", b"other", "no record file of version 1"),
        (b'{"format"', b"{", "no record file of a sweep"),
    ],
)
def test_damage_is_an_error_and_nothing_is_changed(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = tmp_path / "r.jsonl"
    _filled(path)
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    before = path.read_bytes()
    with pytest.raises(NabnError, match=message):
        RecordStore(path, SWEEP)
    assert path.read_bytes() == before


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with RecordStore(path, SWEEP), pytest.raises(NabnError, match="being written by another process"):
        RecordStore(path, SWEEP)
    RecordStore(path, SWEEP).close()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NabnError, match="cannot write"):
        RecordStore(tmp_path / "file" / "r.jsonl", SWEEP)
