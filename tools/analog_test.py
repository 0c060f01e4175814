"""`nabn test` as a script, beside the upstream tools: CONFIG CHECKPOINT --noise pcm --time 1d --methods none,paired."""

from __future__ import annotations

import typer

from aihwkit_nabn.commands._run import run
from aihwkit_nabn.commands.test import command

app = typer.Typer(name="analog_test.py", add_completion=False, pretty_exceptions_enable=False)
app.command()(command)

if __name__ == "__main__":
    raise SystemExit(run(app))
