from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from aihwkit_nabn import cli
from aihwkit_nabn._version import __version__
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import NabnError


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli.app, ["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"aihwkit_nabn {__version__}"


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli.app, arguments) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("demo", "doctor", "test"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dotor"], "Did you mean 'doctor'"),
        (["demo", "--chips", "many"], "--chips"),
        (["demo", "--chips", "0"], "--chips"),
        (["demo", "--chip", "3"], "--chips"),
        (["test"], "Missing argument"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli.app, arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("nabn: error: ") and captured.err.count("\n") == 1 and message in captured.err


def _raising(error: BaseException) -> typer.Typer:
    app = typer.Typer(name="tool", pretty_exceptions_enable=False)

    @app.command()
    def command() -> None:
        raise error

    return app


@pytest.mark.parametrize("error", [NabnError("sigma must be\n  >= 0"), typer.BadParameter("sigma must be >= 0")])
def test_our_errors_are_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_raising(error), []) == 2
    assert "sigma must be >= 0\n" in capsys.readouterr().err


def test_errors_of_the_operating_system_about_a_file_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer(name="nabn")
    app.command()(lambda: open("x" * 5000))
    assert run(app, []) == 2
    line = capsys.readouterr().err
    assert line.startswith("nabn: error: File name too long: xxx") and line.count("\n") == 1 and len(line) < 2100


def test_exit_codes_pass_through() -> None:
    assert run(_raising(typer.Exit(1)), []) == 1
    assert run(_raising(KeyboardInterrupt()), []) == 130


def test_defects_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(_raising(ZeroDivisionError()), [])


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from aihwkit_nabn import cli; from aihwkit_nabn.commands._run import run; "
        "assert run(cli.app, ['test', '--help']) == 0; "
        "print([name for name in ('torch', 'aihwkit', 'sklearn', 'matplotlib', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_main_leaves_with_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["nabn", "nothing"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aihwkit_nabn", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"aihwkit_nabn {__version__}"


def test_an_option_under_both_of_its_names_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli.app, ["test", "digits", "--noise", "pcm", "--limit", "5", "--test-images", "6"]) == 2
    assert "--limit and --test-images are one option; give it once" in capsys.readouterr().err
