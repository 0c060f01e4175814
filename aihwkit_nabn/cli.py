"""The command line: `nabn COMMAND`. Each command is one file of `aihwkit_nabn.commands`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aihwkit_nabn._version import __version__
from aihwkit_nabn.commands import add_commands
from aihwkit_nabn.commands._run import run

app = typer.Typer(
    name="nabn",
    help="What does an analog chip do to a trained vision network, and how much comes back without retraining?",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aihwkit_nabn {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


add_commands(app)


def main() -> None:
    """Run the command line and leave with its exit code: 0, 1 for a failed check, 2 for bad input."""
    sys.exit(run(app))


if __name__ == "__main__":
    main()
