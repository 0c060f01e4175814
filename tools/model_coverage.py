"""Which standard models of OpenMMLab, timm and transformers go on tiles: tables, in the terminal and docs/coverage.md.

The models are built from the configs in the wheels of mmdetection and mmsegmentation, by timm and by transformers, with
random weights; no data and no download is needed. Takes about a minute per model. With names, the page keeps its other
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from coverage_models import SIZE, Coverage, measure_all
from coverage_networks import NetworkCoverage
from pages import markdown_table
from rich import box
from rich.console import Console
from rich.table import Table

from aihwkit_nabn.commands._run import run
from aihwkit_nabn.files import write_text

COMMAND = "python tools/model_coverage.py --out docs/coverage.md"
_OPENMMLAB = """\
# Which models go on tiles

`{command}`

## mmdetection and mmsegmentation

Each model is built from its config in the wheel of mmdetection or mmsegmentation, with random weights, and
sees one random image of {height} x {width} pixels. *Largest error*: analog against digital before any
noise, over all outputs (features, heads; in two-stage detectors region heads on fixed proposals), relative
to each output's largest value; of networks whose `mode='tensor'` is not the pass that is tested, over what
each layer returns in the one that is. *Noisy chip predicts*: `mode='predict'` works on a chip programmed
with `{noise}`, after a day. *Calibrated through*: the test's own `predict`, or `tensor`, which ends before
post-processing, where on the first batch it ran the same layers as often.
"""
_TIMM = """
## timm

Each model has random values in every layer and sees two random images, small ones where it takes them.
*Multiplications on tiles*: of those in matrix products and convolutions; products of two activations, as in
attention, are always digital. *Largest error*: of the scores, analog against digital before any noise,
relative to the largest; the outputs of all layers were compared too. *Layers left digital*: kinds of layers
whose matrices do not lie on tiles; `nabn inspect timm:NAME` says why.
"""
_TRANSFORMERS = """
## transformers

As for timm, each network built from a configuration of the size named, with all its outputs compared: scores of
classes and pixels, of detectors scores and boxes.
"""

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
    rows: list[Coverage | NetworkCoverage] = []
    with console.status("building models") as status:
        for row in measure_all(models or (), noise=noise, seed=seed):
            rows.append(row)
            status.update(f"{row.model} took {row.seconds:.0f} s")
    for headings, members in _tables(rows):
        table = Table(box=box.SIMPLE_HEAD)
        for index, heading in enumerate(headings):
            table.add_column(heading, justify="right" if index else "left")
        for row in members:
            table.add_row(*row.cells, style=None if row.passes else "red")
        console.print(table)
    for row in rows:
        if row.problem:
            console.print(f"{row.model}: {row.problem}", style="red", markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        write_text(out, markdown(rows, noise, out.read_text() if out.exists() and models else ""))
        console.print(f"Written to {out}", style="bold", highlight=False)
    raise typer.Exit(0 if all(row.passes for row in rows) else 1)


def markdown(rows: Sequence[Coverage | NetworkCoverage], noise: str, before: str = "") -> str:
    """Return the page with the tables.

    Args:
        rows: What was measured.
        noise: Of the noisy chip.
        before: The page as it was; models that were not measured now keep their rows.
    """
    from coverage_models import Coverage

    lines = {line.split("|")[1].strip(): line for line in before.splitlines() if line.startswith("| ")}
    lines |= {row.model: f"| {' | '.join(row.cells)} |" for row in rows}

    def table(headings: Sequence[str], kind: str) -> list[str]:
        own = [line for name, line in lines.items() if _kind(name) == kind and name not in ("model", "---")]
        return [*markdown_table(headings, [], ("---", *["---:"] * (len(headings) - 1))), *own]

    parts = [
        _OPENMMLAB.format(command=COMMAND, height=SIZE[0], width=SIZE[1], noise=noise),
        *table(Coverage.HEADINGS, ""),
        _TIMM,
        *table(NetworkCoverage.HEADINGS, "timm"),
        _TRANSFORMERS,
        *table(NetworkCoverage.HEADINGS, "transformers"),
    ]
    return "\n".join(parts) + "\n"


def _kind(name: str) -> str:
    return name.partition(":")[0] if ":" in name else ""


def _tables(
    rows: Sequence[Coverage | NetworkCoverage],
) -> list[tuple[Sequence[str], list[Coverage | NetworkCoverage]]]:
    kinds = list(dict.fromkeys(type(row) for row in rows))
    return [(kind.HEADINGS, [row for row in rows if type(row) is kind]) for kind in kinds]


if __name__ == "__main__":
    raise SystemExit(run(app))
