from __future__ import annotations

from pathlib import Path

import pytest

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import Record
from aihwkit_nabn.evaluation.record_file import RecordFile

SETUP = {"seed": 0}


def _record(method: str, chip: int = 0) -> Record:
    return Record(
        scenario="pcm",
        group=None,
        strength=None,
        t_inference=1.0,
        method=method,
        method_name="none",
        chip_seed=chip,
        metrics={"accuracy": 50.0},
        seconds_calibration=0.0,
        seconds_evaluation=0.1,
        n_calibration_samples=0,
    )


def _written(path: Path) -> RecordFile:
    file = RecordFile(path, SETUP, resume=False)
    add = file.adder({"paired"})
    for method in ("uncalibrated", "paired", "population"):
        add(_record(method))
    file.add(settings={"conversion": {"pcm": "all"}}, digital={"accuracy": 90.0})
    return file


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    first = _written(tmp_path / "r.jsonl")
    again = RecordFile(tmp_path / "r.jsonl", SETUP, resume=True)
    assert again.records == first.records and again.digital == {"accuracy": 90.0}
    assert again.done("pcm", 0) == {"uncalibrated", "population"} and again.done("pcm", 1) == set()
    assert again.describes("pcm") and not again.describes("other")


def test_a_line_cut_off_is_dropped_and_one_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    _written(path)
    text = path.read_text()
    path.write_text(text[:-20])
    cut = RecordFile(path, SETUP, resume=True)
    assert len(cut.records) == 2 and not cut.settings
    assert path.read_text() == "".join(f"{line}\n" for line in text.splitlines()[:3])
    path.write_text(text.replace('{"record"', "{", 1))
    with pytest.raises(NabnError, match="damaged in line 2"):
        RecordFile(path, SETUP, resume=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_clear_error_and_earlier_measurements_stay(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    file = _written(path)
    path.rename(tmp_path / "kept")
    path.symlink_to("/dev/full")
    with pytest.raises(NabnError, match="cannot write .*r.jsonl: No space left on device; what it holds already stays"):
        file.add(record=vars(_record("ema")))
    path.unlink()
    (tmp_path / "kept").rename(path)
    assert len(RecordFile(path, SETUP, resume=True).records) == 2


@pytest.mark.parametrize("text", ["", "5\n", '{"other": 1}\n', "nothing\n", '{"setup": 3}\n'])
def test_other_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    if not text:  # as good as none
        assert RecordFile(path, SETUP, resume=True).records == []
        return
    with pytest.raises(NabnError, match="damaged in line 1"):
        RecordFile(path, SETUP, resume=True)


def test_another_set_up(tmp_path: Path) -> None:
    _written(tmp_path / "r.jsonl")
    with pytest.raises(NabnError, match="was made with seed = 0, not 1"):
        RecordFile(tmp_path / "r.jsonl", {"seed": 1}, resume=True)


def test_beginning_anew_keeps_the_old_file(tmp_path: Path) -> None:
    _written(tmp_path / "r.jsonl")
    before = (tmp_path / "r.jsonl").read_text()
    assert RecordFile(tmp_path / "r.jsonl", SETUP, resume=False).records == []
    assert (tmp_path / "r.jsonl.old").read_text() == before
