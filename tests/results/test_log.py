from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.results import Record, RecordLog
from tests.logs import finished_keys

SETUP = {"name": "s", "chips": 2, "models": [{"name": "digits"}], "versions": {"torch": "1"}}


def _record(chip: int, value: float = 50.0, method: str = "paired", **changed: float) -> Record:
    return Record(
        scenario="pcm",
        t_inference=60.0,
        chip_seed=chip,
        method=method,
        method_name=method,
        metrics={"accuracy": value},
        axes={"model": "digits", "jpeg": None, "samples": 4},
        **changed,
    )


def _filled(path: Path) -> None:
    with RecordLog(path, SETUP) as log:
        assert log.add(_record(1)) and log.add(_record(0)) and not log.add(_record(1, seconds_calibration=9.0))
        log.note("conversion pcm", "all")
        log.note("conversion pcm", "other")


def test_what_was_added_is_there_again_in_one_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.jsonl"
    _filled(path)
    with RecordLog(path, SETUP) as again:
        assert again.sorted_records() == [_record(0), _record(1)] and again.notes == {"conversion pcm": "all"}
    assert len(path.read_bytes().splitlines()) == 4
    assert finished_keys(path) == {_record(0).key, _record(1).key} and finished_keys(tmp_path / "none") == set()


def test_times_are_no_part_of_what_is_compared() -> None:
    assert _record(0, seconds_evaluation=1.0).comparable() == _record(0, seconds_evaluation=2.0).comparable()
    assert _record(0, value=1.0).comparable() != _record(0).comparable()


def test_keys_tell_measurements_apart() -> None:
    one = _record(0)
    others = [dataclasses.replace(one, **{name: 7}) for name in ("scenario", "t_inference", "chip_seed", "method")]
    others += [dataclasses.replace(one, axes={**one.axes, name: 7}) for name in one.axes]
    assert len({record.key for record in [one, *others]}) == 1 + len(others)
    same = dataclasses.replace(one, axes=dict(reversed(one.axes.items())), note="x", group="y", seconds_evaluation=3.0)
    assert same.key == one.key and one.axis("samples") == 4 and one.axis("chip_seed") == 0 and one.axis("x") is None


def test_a_write_cut_off_anywhere_loses_that_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    _filled(path)
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        whole = sum(end <= length for end in ends)
        assert len(finished_keys(path)) == min(max(whole - 1, 0), 2)
        with RecordLog(path, SETUP) as log:
            assert len(log.records) == min(max(whole - 1, 0), 2)
            log.add(_record(7))
        with RecordLog(path, SETUP) as log:
            assert _record(7).key in log.records


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chips": 3}, "was made with chips = 2, not 3; run with the same, or without --resume"),
        ({"models": [{"name": "cifar10"}]}, "models = "),
        ({"versions": {"torch": "2"}}, "versions.torch = '1', not '2'"),
        ({"versions": {}}, "versions.torch = '1', not None"),
    ],
)
def test_another_set_up_is_refused_by_name(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    path = tmp_path / "r.jsonl"
    _filled(path)
    before = path.read_bytes()
    with pytest.raises(NabnError, match=message):
        RecordLog(path, {**SETUP, **changed})
    assert path.read_bytes() == before


def test_what_is_not_set_is_the_same_as_what_was_not_known_yet(tmp_path: Path) -> None:
    _filled(tmp_path / "r.jsonl")
    RecordLog(tmp_path / "r.jsonl", {**SETUP, "new": None}).close()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'{"record"', b"{", "damaged in line 2"),
        (b"50.0", b"NaN", "damaged in line 2"),
        (b'"method"', b'"methdo"', "damaged in line 2.*did you mean"),
        (b'"all"', b"3", "damaged in line 4"),
        (b"aihwkit_nabn.records", b"other", "no log of measurements"),
        (b'{"format"', b"{", "no log of measurements"),
        (b'"version": 1', b'"version": 2', "no log of measurements"),
    ],
)
def test_damage_is_an_error_and_nothing_is_changed(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = tmp_path / "r.jsonl"
    _filled(path)
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    before = path.read_bytes()
    with pytest.raises(NabnError, match=message):
        RecordLog(path, SETUP)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["5\n", '{"other": 1}\n', "nothing\n", '{"setup": 3}\n'])
def test_other_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(NabnError, match="no log of measurements, or damaged in line 1"):
        RecordLog(path, SETUP)
    path.write_text("")  # as good as none
    with RecordLog(path, SETUP) as log:
        assert log.records == {}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    _filled(path)
    before = path.read_bytes()
    for resume in (True, False):
        with RecordLog(path, SETUP), pytest.raises(NabnError, match="being written by another process"):
            RecordLog(path, SETUP, resume=resume)
    RecordLog(path, SETUP).close()
    assert path.read_bytes() == before


def test_beginning_anew_keeps_every_old_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    _filled(path)
    before = path.read_bytes()
    with RecordLog(path, SETUP, resume=False) as log:
        assert log.records == {}
        assert log.add(_record(5))
    assert (tmp_path / "r.jsonl.old").read_bytes() == before
    assert finished_keys(path) == {_record(5).key}
    for _ in range(2):
        RecordLog(path, SETUP, resume=False).close()
    assert (tmp_path / "r.jsonl.old").read_bytes() == before
    assert finished_keys(tmp_path / "r.jsonl.old2") == {_record(5).key} and (tmp_path / "r.jsonl.old3").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_clear_error_and_earlier_measurements_stay(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    _filled(path)
    with RecordLog(path, SETUP) as log, open("/dev/full", "wb", buffering=0) as full:
        log._file, kept = full, log._file
        with pytest.raises(NabnError, match=r"cannot write .*r.jsonl: No space left on device; what it holds already"):
            log.add(_record(9))
        log._file = kept
        assert _record(9).key not in log.records
    assert len(finished_keys(path)) == 2


def test_all_but_the_first_process_keep_records_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    told = {_record(2).key: _record(2)}, {"note": 1}
    log = RecordLog(path, SETUP, rank=1, broadcast=lambda own: told)
    assert list(log.records.values()) == [_record(2)] and log.notes == {"note": 1}
    assert log.add(_record(1)) and len(log.records) == 2 and not path.exists()


def test_what_is_only_read_is_left_alone_and_can_be_in_use(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    assert RecordLog(path, SETUP, rank=1).records == {} and not path.exists()
    _filled(path)
    with RecordLog(path, SETUP), path.open("ab") as half:
        half.write(b'{"record": {"sce')
        before = path.read_bytes()
        log = RecordLog(path, SETUP, rank=1)
        assert log.sorted_records() == [_record(0), _record(1)] and log.notes == {"conversion pcm": "all"}
        assert log.add(_record(7)) and path.read_bytes() == before
    with pytest.raises(NabnError, match="was made with chips = 2, not 3"):
        RecordLog(path, {**SETUP, "chips": 3}, rank=1)


def test_a_field_is_called_what_the_user_calls_it(tmp_path: Path) -> None:
    _filled(tmp_path / "r.jsonl")
    with pytest.raises(NabnError, match="was made with --chips = 2, not 3"):
        RecordLog(tmp_path / "r.jsonl", {**SETUP, "chips": 3}, named={"chips": "--chips"})


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NabnError, match="cannot write"):
        RecordLog(tmp_path / "file" / "r.jsonl", SETUP)
