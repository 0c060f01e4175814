"""Which standard OpenMMLab models go on tiles: a table of them all, in the terminal and in docs/coverage.md.

The models are built from the configs in the wheels of mmdetection and mmsegmentation, with random weights; no data and
no download is needed. Takes about a minute per model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from coverage_models import SIZE, Coverage, measure_all
from pages import markdown_table
from rich import box
from rich.console import Console
from rich.table import Table

from aihwkit_nabn.commands._run import run
from aihwkit_nabn.files import write_text

COMMAND = "python tools/model_coverage.py --out docs/coverage.md"
HEADINGS = (
    "model",
    "analog layers",
    "tiles",
    "matrix weights on tiles",
    "largest error",
    "noisy chip predicts",
    "calibrated through",
)

app = typer.Typer(name="model_coverage.py", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def coverage(
    models: Annotated[list[str] | None, typer.Argument(help="Models to measure; default: all.")] = None,
    noise: Annotated[str, typer.Option(help="Noise of the chip that predicts.")] = "pcm",
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, image and chip.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Measure models and print the table; exit code 1 if one falls short."""
    console = Console()
    rows = []
    table = Table(box=box.SIMPLE_HEAD)
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if index else "left")
    with console.status("building models") as status:
        for row in measure_all(models or (), noise=noise, seed=seed):
            rows.append(row)
            status.update(f"{row.model} took {row.seconds:.0f} s")
            table.add_row(*_cells(row), style=None if row.passes else "red")
    console.print(table)
    for row in rows:
        if row.problem:
            console.print(f"{row.model}: {row.problem}", style="red", markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        write_text(out, markdown(rows, noise))
        console.print(f"Written to {out}", style="bold", highlight=False)
    raise typer.Exit(0 if all(row.passes for row in rows) else 1)


def markdown(rows: Sequence[Coverage], noise: str) -> str:
    """Return the page with the table."""
    lines = [
        "# Which models go on tiles",
        "",
        f"`{COMMAND}`",
        "",
        "Each model is built from its config in the wheel of mmdetection or mmsegmentation, with random weights, and",
        f"sees one random image of {SIZE[0]} x {SIZE[1]} pixels. *Largest error*: analog against digital before any",
        "noise, over all outputs (features, heads; in two-stage detectors region heads on fixed proposals), relative",
        "to each output's largest value; of networks whose `mode='tensor'` is not the pass that is tested, over what",
        "each layer returns in the one that is. *Noisy chip predicts*: `mode='predict'` works on a chip programmed",
        f"with `{noise}`, after a day. *Calibrated through*: the test's own `predict`, or `tensor`, which ends before",
        "post-processing, where on the first batch it ran the same layers as often.",
        "",
        *markdown_table(HEADINGS, [_cells(row) for row in rows], ("---", *["---:"] * (len(HEADINGS) - 1))),
    ]
    return "\n".join(lines) + "\n"


def _cells(row: Coverage) -> tuple[str, ...]:
    if row.problem:
        return (row.model, "", "", "", "", "failed", "")
    share, error, predicts = f"{row.share:.2%}", f"{row.error:.1e}", "yes" if row.predicts else "no"
    return (row.model, f"{row.layers}", f"{row.tiles}", share, error, predicts, row.calibrated_through)


if __name__ == "__main__":
    raise SystemExit(run(app))
