"""`nabn inspect` as a script: CONFIG [--noise pcm] [--cfg-options KEY=VALUE ...]."""

from __future__ import annotations

import typer

from aihwkit_nabn.commands._run import run
from aihwkit_nabn.commands.inspect import command

app = typer.Typer(name="inspect_model.py", add_completion=False, pretty_exceptions_enable=False)
app.command()(command)

if __name__ == "__main__":
    raise SystemExit(run(app))
