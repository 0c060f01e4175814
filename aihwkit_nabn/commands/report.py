"""`nabn report`: results as one HTML file for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    results: Annotated[
        Path,
        typer.Argument(metavar="RESULTS", help="A results.json, or a folder: every results.json in it, at any depth."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file; default: report.html in the folder of RESULTS.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
) -> None:
    """Write results as one self-contained HTML page, readable by someone who has never seen the project."""
    from rich.console import Console

    from aihwkit_nabn.reporting.html import write_html

    folder = results if results.is_dir() else results.parent
    path = write_html(results, out or folder / "report.html", title=title)
    size = path.stat().st_size / 1024
    Console().print(f"Written to {path} ({size:,.0f} KiB)", style="bold", highlight=False, soft_wrap=True, markup=False)
