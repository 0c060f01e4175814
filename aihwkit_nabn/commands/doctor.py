"""`nabn doctor`: which parts of the installation work here, and what to do about those that don't."""

from __future__ import annotations

import typer


def command() -> None:
    """Check python, torch, aihwkit's tiles, the GPU and the optional packages, and say what to do about each fault."""
    from rich.console import Console

    from aihwkit_nabn.commands._checks import all_checks, has_failed, show

    console = Console()
    with console.status("trying each part, about ten seconds"):
        checks = all_checks()
    show(console, checks)
    raise typer.Exit(1 if has_failed(checks) else 0)
