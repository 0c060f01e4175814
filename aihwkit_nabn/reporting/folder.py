"""The result as a folder of files."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.files import write_text
from aihwkit_nabn.reporting.plot import plot_accuracy
from aihwkit_nabn.reporting.price import markdown_price, price_rows, verdict
from aihwkit_nabn.reporting.table import markdown_differences, markdown_overview
from aihwkit_nabn.reporting.tables import class_by_class
from aihwkit_nabn.reporting.text import missing_note
from aihwkit_nabn.results import Results


def write_report(result: Results, path: str | Path) -> Path:
    """Write ``results.json``, ``table.md``, ``table.csv`` and one plot per main metric into the folder `path`.

    Args:
        result: What `aihwkit_nabn.evaluate` returned.
        path: The folder; made if need be.

    Returns:
        The folder's path.

    Raises:
        NabnError: `path` is a file, or cannot be written to.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NabnError(f"path must be a folder, got the file {str(path)!r}")
    result.to_json(path / "results.json")
    metrics = result.main_metrics  # of the parts, such as one per class, only the numbers
    plots = plot_names(metrics)
    write_text(path / "table.md", _document(result, plots))
    known = [name for name in result.metrics if name not in result.missing] or result.metrics
    summary = pd.concat([result.summary(name) for name in known], ignore_index=True)
    write_text(path / "table.csv", summary.to_csv(index=False))
    for name in metrics:
        plot_accuracy(result, path / plots[name], name)
        if price_rows(result):  # a comparison: its rows differ by little next to what doing nothing loses
            close = (path / plots[name]).with_stem(f"{Path(plots[name]).stem}_close")
            plot_accuracy(result, close, name, leave_out=result.methods[:1])
    return path


def _document(result: Results, plots: dict[str, str]) -> str:
    """Return what is in ``table.md``: everything about the first metric, less about the others."""
    sections = []
    told: dict[tuple[float, ...], str] = {}
    for name, plot in plots.items():
        values = (result.digital[name], *(record.metrics[name] for record in result.records))
        if values in told:
            sections.append(f"## {name}\n\nThe same values as {told[values]}.\n")
            continue
        told[values] = name
        sections.append(f"## {name}\n\n{markdown_overview(result, name)}\n![{name}]({plot})\n")
        if len(told) == 1:
            sections.append(f"## {name}, scenario by scenario\n\n{markdown_differences(result, name)}")
        for table in class_by_class(result, name):
            sections.append(f"## {name}, class by class: {table.caption}\n\n{table.markdown()}\n\nMeans over chips.\n")
    if result.missing:
        sections.append(f"{missing_note(result)}\n")
    if price_rows(result):
        verdicts = "".join(f"\n{line}\n" for name in plots for line in verdict(result, name))
        sections.append(f"## price\n\n{markdown_price(result)}{verdicts}")
    return "\n".join(sections)


def plot_names(metrics: list[str]) -> dict[str, str]:
    """Return a file name per metric: ``coco/bbox_mAP`` becomes ``coco_bbox_mAP.png``."""
    names: dict[str, str] = {}
    for metric in metrics:
        stem = re.sub(r"[^\w.-]+", "_", metric, flags=re.ASCII).strip("._") or "metric"
        number = 1
        while f"{stem}{'' if number == 1 else f'_{number}'}.png".lower() in {name.lower() for name in names.values()}:
            number += 1
        names[metric] = f"{stem}{'' if number == 1 else f'_{number}'}.png"
    return names
