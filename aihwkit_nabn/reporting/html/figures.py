"""The report's figures: accuracy per group of scenarios, layer shifts, and the legend's marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from aihwkit_nabn.reporting.html.svg import draw_svg
from aihwkit_nabn.reporting.plot import cells_by_group, draw_panel, tidy, value_limits
from aihwkit_nabn.reporting.style import line_styles
from aihwkit_nabn.results import Cell, Results

_SIZE = (4.3, 3.0)
_BESIDE = 4  # settings in one figure: as many as a phone shows legibly


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with what a reader who cannot see it is told.

    Attributes:
        svg: The drawing.
        title: Shown above it.
        alt: Said instead of it.
        wide: Whether it takes the page's whole width.
    """

    svg: Markup
    title: str
    alt: str
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Legend:
    """A method with its line and mark."""

    label: str
    svg: Markup


def accuracy_pictures(result: Results, metric: str, salt: str) -> list[Picture]:
    """Return one figure per group of scenarios: the metric against noise strength or time, with intervals."""
    grouped = cells_by_group(result, metric)
    limits = value_limits(grouped, [result.digital[metric]])
    pictures = []
    for index, (group, cells) in enumerate(_panels(grouped)):
        names = list(dict.fromkeys(cell.record.scenario for cell in cells))

        def draw(figure: Figure, cells: Sequence[Any] = cells) -> None:
            axes = figure.subplots()
            draw_panel(axes, cells, result.digital[metric])
            axes.set_ylim(*limits)
            axes.set_ylabel(metric)

        wide = len(names) > 8
        svg = draw_svg(draw, 9.0 if wide else _SIZE[0], _SIZE[1] * (1.3 if wide else 1.0), salt=f"{salt}g{index}")
        title = group or ", ".join(names)
        spoken = "; ".join(f"{cell.record.scenario}, {cell.record.method}: {cell.estimate.mean:.3g}" for cell in cells)
        pictures.append(Picture(svg=svg, title=title, alt=f"{metric}, {title}. {spoken}", wide=wide))
    return pictures


def _panels(grouped: Mapping[str | None, list[Cell]]) -> list[tuple[str | None, list[Cell]]]:
    """Return what each figure shows: a group; or some of the settings that are alone in theirs, side by side."""
    alone = [cells for cells in grouped.values() if len({cell.record.scenario for cell in cells}) == 1]
    if len(alone) < 2:
        return list(grouped.items())
    panels: list[tuple[str | None, list[Cell]]] = [
        (group, cells) for group, cells in grouped.items() if not any(cells is other for other in alone)
    ]
    for start in range(0, len(alone), _BESIDE):
        panels.append((None, [cell for cells in alone[start : start + _BESIDE] for cell in cells]))
    return panels


def legend(result: Results, salt: str) -> list[Legend]:
    """Return the digital line and every method with its mark."""

    def line(label: str, index: int, **style: Any) -> Legend:
        def draw(figure: Figure) -> None:
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            axes.set(xlim=(0, 1), ylim=(0, 1))
            axes.plot([0.05, 0.5, 0.95], [0.5] * 3, markevery=[1], linewidth=1.6, **style)

        return Legend(label=label, svg=draw_svg(draw, 0.5, 0.2, salt=f"{salt}l{index}", layout=False))

    lines = [line("digital", 0, color="#000000", linestyle=(0, (5, 3)))]
    styles = line_styles(result.records)
    return lines + [line(label, i, markersize=6, **style.options) for i, (label, style) in enumerate(styles.items(), 1)]


def shift_picture(result: Results, rows: Mapping[str, Sequence[Any]], title: str, salt: str) -> Picture:
    """Return a figure of every layer's shift of the mean, before and after each method.

    `rows` has by method label its layers, each with ``mean_before`` and ``mean_after``.
    """
    styles = line_styles(result.records)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (label, layers) in enumerate(rows.items()):
            x = list(range(1, 1 + len(layers)))
            if index == 0:
                before = [layer["mean_before"] for layer in layers]
                axes.plot(x, before, color="#777777", marker="o", markersize=4, label="before", linewidth=1.4)
            style = styles.get(label)
            after = [layer["mean_after"] for layer in layers]
            axes.plot(
                x,
                after,
                color=style.color if style else "#000000",
                marker=style.marker if style else ".",
                markersize=4,
                linestyle=style.linestyle if style else "-",
                linewidth=1.4,
            )
        axes.set_xlabel("layer, from the input to the output")
        axes.set_ylabel("shift of the mean [std]")
        axes.set_ylim(bottom=0)
        tidy(axes, "y")

    spoken = []
    for label, layers in rows.items():
        before = sum(layer["mean_before"] for layer in layers) / max(len(layers), 1)
        after = sum(layer["mean_after"] for layer in layers) / max(len(layers), 1)
        spoken.append(f"{label}: mean over {len(layers)} layers {before:.3g} before, {after:.3g} after")
    return Picture(svg=draw_svg(draw, 4.6, 2.9, salt=salt), title=title, alt=f"{title}. {'; '.join(spoken)}")
