"""Finding the compiled library, and what takes over where it is not there."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from aihwkit_nabn import native
from aihwkit_nabn.native import library


def test_a_file_that_is_no_library_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "libnabn.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(library, "LIBRARY", broken)
    monkeypatch.delenv("NABN_NATIVE", raising=False)
    library._library.cache_clear()
    try:
        assert not native.is_available() and "does not fit" in native.why_not()
        broken.unlink()
        library._library.cache_clear()
        assert "no C compiler" in native.why_not()
        monkeypatch.setenv("NABN_NATIVE", "0")
        assert "NABN_NATIVE" in native.why_not()
    finally:
        library._library.cache_clear()


@pytest.mark.skipif(not native.is_available(), reason=f"no compiled library: {native.why_not()}")
def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes its arguments to be laid out otherwise, and one without a function that we call."""

    class Longer(ctypes.Structure):
        _fields_ = [*library._ARGUMENTS["nabn_moments"]._fields_, ("more", ctypes.c_int64)]

    for name in ("nabn_moments", "nabn_of_tomorrow"):
        monkeypatch.setitem(library._ARGUMENTS, name, Longer)
        library._library.cache_clear()
        try:
            assert not native.is_available() and "does not fit" in native.why_not()
        finally:
            monkeypatch.undo()
            library._library.cache_clear()
    assert native.is_available()
