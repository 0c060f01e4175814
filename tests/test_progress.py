from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from aihwkit_nabn import progress
from aihwkit_nabn.progress import Meter

LINE = re.compile(r"^\d+:\d\d:\d\d elapsed, (\d+)/(\d+|\?) done(, about \d+:\d\d:\d\d left)?(: (.+))?$")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)


@pytest.mark.usefixtures("often")
def test_lines_say_what_is_measured_and_how_much_is_done_and_left() -> None:
    stream = io.StringIO()
    with Meter(4, file=stream) as meter:
        for number in range(4):
            meter.show(f"chip {number} [paired]")
            time.sleep(0.12)
            meter.advance()
    lines = [LINE.match(line) for line in stream.getvalue().splitlines()]
    assert len(lines) >= 4 and all(lines)
    done = [int(line[1]) for line in lines if line]
    assert done == sorted(done) and done[-1] == 4 and done[0] == 0
    first, last = lines[0], lines[-1]
    assert first and last and first[5] == "chip 0 [paired]" and first[3] is None and last[3] is None
    assert any(line and line[3] for line in lines)  # the time left, once something is done


def test_a_short_run_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Meter(3) as meter:
        meter.show("digital")
        meter.advance()
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("often")
def test_nothing_is_shown_where_nothing_is_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    with Meter(3, shown=False):
        time.sleep(0.2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("often")
def test_a_terminal_has_a_bar_and_no_lines() -> None:
    stream = Terminal()
    with Meter(3, file=stream) as meter:
        meter.show("chip 3")
        time.sleep(0.2)
        meter.advance()
    assert "1/3" in stream.getvalue() and "chip 3" in stream.getvalue() and " done" not in stream.getvalue()


@pytest.mark.usefixtures("often")
def test_the_lines_end_with_an_error_in_the_run() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError), Meter(3, file=stream):
        raise ValueError
    before = stream.getvalue()
    time.sleep(0.2)
    assert stream.getvalue() == before


@pytest.mark.usefixtures("often")
def test_the_time_left_does_not_count_what_an_earlier_run_did() -> None:
    stream = io.StringIO()
    with Meter(file=stream) as meter:
        meter.update(90, 100, before=90)
        time.sleep(0.12)
        meter.update(91, 100, before=90)
        meter._began -= 100
        meter._write_line()
    found = LINE.match(stream.getvalue().splitlines()[-1])
    assert found and found[3] is not None and ", about 0:15:0" in found[0]  # 9 times as long as the one


def test_a_line_of_the_output_goes_to_the_output() -> None:
    out, err = io.StringIO(), io.StringIO()
    with Meter(3, file=err) as meter:
        meter.tell(Console(file=out), "trained [1]")
    assert out.getvalue() == "trained [1]\n" and not err.getvalue()
