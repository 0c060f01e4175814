"""Running a typer application so that bad input gives one line and an exit code, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from aihwkit_nabn.errors import NabnError

BAD_INPUT = 2
INTERRUPTED = 130
_LONGEST = 2000

_IMAGES = {"--max-samples": "--calibration-images", "--limit": "--test-images", "--workers": "--loader-workers"}
RENAMED = {"test": _IMAGES, "compare": _IMAGES, "sensitivity": _IMAGES, "sweep": {"--workers": "--jobs"}}
"""Options that had other names in version 0.1, by command."""

RESUMED = (["test"], ["compare"], ["sensitivity"], ["place"])
"""Commands that go on where they stopped if told to; `nabn sweep` does so anyway, and says it."""


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run `app` and return its exit code; errors that a user can mend go to the error stream as one line.

    Those are ours, and the operating system's about a file. Anything else is a defect of ours and keeps its traceback.

    Args:
        app: The application; its name begins the message.
        arguments: What to parse; the process's own arguments if None.
    """
    name = app.info.name or "nabn"
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        given = _with_new_names(given)
        code = typer.main.get_command(app)(args=given, prog_name=name, standalone_mode=False)
    except NabnError as error:
        return _complain(name, str(error))
    except OSError as error:
        if error.filename is None:
            raise
        return _complain(name, f"{error.strerror}: {os.fsdecode(error.filename)}")
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except Exception as error:
        # typer's usage errors; their base class has changed its module from version to version.
        if not isinstance(error, _usage_error()):
            raise
        return _complain(name, getattr(error, "format_message", error.__str__)())
    if code == INTERRUPTED:  # newer versions of typer return it
        kept = "; what was measured is kept, and the same command with --resume goes on" if given[:1] in RESUMED else ""
        print(f"{name}: interrupted{kept}", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _with_new_names(arguments: list[str]) -> list[str]:
    """Return the arguments with today's names of options in place of older ones, and say so."""
    renamed = RENAMED.get(arguments[0], {}) if arguments else {}
    for place, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option in renamed:
            if any(other.partition("=")[0] == renamed[option] for other in arguments):
                raise NabnError(f"{option} and {renamed[option]} are one option; give it once")
            print(f"{option} is now called {renamed[option]}; the old name works until 0.3", file=sys.stderr)
            arguments[place] = f"{renamed[option]}{equals}{value}"
    return arguments


def _usage_error() -> type[Exception]:
    return typer.BadParameter.__mro__[2]


def _complain(name: str, message: str) -> int:
    text = " ".join(message.split())
    print(f"{name}: error: {text if len(text) <= _LONGEST else f'{text[:_LONGEST]} ...'}", file=sys.stderr)
    return BAD_INPUT
