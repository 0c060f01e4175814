"""A fitted device as tables, and as a plot of the fit against what was measured."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aihwkit_nabn.devices import FittedDevice
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.files import write_bytes

_TITLES = {
    "offset_us": ("programming: mean error", "uS"),
    "spread_us": ("programming: standard deviation", "uS"),
    "exponent": ("drift: mean exponent", ""),
    "exponent_spread": ("drift: standard deviation of the exponent", ""),
    "read_spread": ("read noise: relative standard deviation", ""),
}
#: More dots than this hide each other.
_MOST_DOTS = 5000
_MEASURED, _FITTED = "#777777", "#D55E00"


def print_device(device: FittedDevice, console: Console) -> None:
    """Print each fitted curve with the standard errors of its parameters and how well it fits the levels."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    for heading in ("value", "standard error", "chi2 / dof", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, (title, unit) in _TITLES.items():
        if name not in device.curves:
            continue
        found = device.curves[name]
        curve = found.curve
        if curve.form == "table":
            parameters = [f"at x = {x:.3g}" for x in curve.x]
            goodness = ["table", ""]
        else:
            parameters = ["constant", "x", *(f"x^{power}" for power in range(2, len(curve.values)))]
            goodness = [f"{found.chi2:.1f} / {found.dof}", f"{found.p:.2f}"]
        table.add_row(Text(f"{title}{f', {unit}' if unit else ''}", style="bold"), "", "", *goodness)
        for parameter, value, error in zip(parameters, curve.values, found.errors, strict=False):
            table.add_row(f"  {parameter}", f"{value:.4g}", f"{error:.2g}", "", "")
    console.print(table)
    for line in notes(device):
        console.print(Text(line, style="dim"), soft_wrap=True)


def notes(device: FittedDevice) -> list[str]:
    """Return what else there is to say of a fit: from how much it is, what was left out, and why."""
    rows, levels, fit = device.rows, device.levels, device.fit
    times = len(np.unique(rows.seconds))
    lines = [
        f"x = target / g_max, g_max = {fit.g_max_us:g} uS. {len(rows.target):,} readings of "
        f"{int(levels.devices.sum()):,} devices at {len(levels.devices)} levels"
        f"{f' and {times} times' if times > 1 else ''}, in {rows.unit}.",
        f"{levels.beyond:.1%} of the devices are more than two standard deviations off; 4.6% if errors are normal.",
    ]
    if fit.exponent is None:
        lines.append("No drift: that needs the columns seconds and device, and several times for each device.")
    else:
        lines.append(f"Drift counts from the first reading, {fit.first_reading_s:g} s after programming.")
    if fit.read_spread is None:
        lines.append("No read noise: that needs several readings of a device (column device) at one time.")
    if levels.zeros:
        lines.append(f"{levels.zeros} devices were read as 0 later on; their drift has no exponent.")
    if rows.unused:
        lines.append(f"Columns not used: {', '.join(rows.unused)}.")
    return lines


def plot_device(device: FittedDevice, path: str | Path) -> Path:
    """Draw each curve against the levels it was fitted to, with their standard errors, as a PNG file.

    Raises:
        NabnError: the path does not end in ``.png``, or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise NabnError(f"path must end in .png, got {str(path)!r}")
    names = [name for name in _TITLES if name in device.curves]
    columns = 2 if len(names) in (2, 4) else 3
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.3 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        _draw(panel, device, name)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    panels[0].legend(frameon=False, fontsize=8, markerscale=1.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format="png")
    write_bytes(path, buffer.getvalue())
    return path


def _draw(panel: Axes, device: FittedDevice, name: str) -> None:
    fit, levels = device.fit, device.levels
    title, unit = _TITLES[name]
    x = np.linspace(0.0, max(fit.g_max_us, levels.target_us.max()), 400)
    fitted = device.curves[name].curve(x / fit.g_max_us)
    if name == "offset_us":
        spread = fit.spread_us(x / fit.g_max_us)
        step = -(-len(device.rows.target) // _MOST_DOTS)
        target, error = device.rows.target[::step], (device.rows.conductance - device.rows.target)[::step]
        first = device.rows.seconds[::step] <= 2 * levels.first_s
        panel.plot(target[first], error[first], ".", color=_MEASURED, markersize=2, alpha=0.25, label="one reading")
        panel.fill_between(
            x, fitted - 2 * spread, fitted + 2 * spread, color=_FITTED, alpha=0.15, linewidth=0, label="fit ± 2 std"
        )
    panel.errorbar(
        levels.target_us,
        levels.values[name],
        yerr=levels.errors[name],
        fmt="o",
        color="black",
        markersize=4,
        capsize=2,
        linewidth=1,
        label="level ± standard error",
        zorder=3,
    )
    panel.plot(x, fitted, color=_FITTED, linewidth=1.6, label="fit", zorder=2)
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("target, uS")
    panel.set_ylabel(unit)
    if name not in ("offset_us", "exponent"):
        panel.set_ylim(bottom=0.0)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
