"""`nabn fit`: a noise model of your own device, from measured rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    measurements: Annotated[
        Path,
        typer.Argument(
            metavar="MEASUREMENTS",
            help="CSV file, a row per reading: target, conductance; for drift and read noise also seconds, device.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The JSON file; default: NAME.fit.json beside MEASUREMENTS. The plot: .png.")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="Of conductances: uS, nS or S; default: as headings say, target [nS]; or uS.")
    ] = None,
    g_max: Annotated[
        float | None, typer.Option(help="Conductance of the largest weight, in that unit; default: the largest target.")
    ] = None,
    bins: Annotated[
        int | None, typer.Option(min=2, help="Group targets into so many levels; default: each target is one.")
    ] = None,
) -> None:
    """Fit programming error, drift and read noise of a device to measured rows; use it as --noise measured:FILE."""
    from rich.console import Console

    from aihwkit_nabn.devices import fit_device, read_measurements, write_fit
    from aihwkit_nabn.devices.measurements import UNITS
    from aihwkit_nabn.errors import NabnError
    from aihwkit_nabn.reporting.device import plot_device, print_device

    out = out or measurements.with_suffix(".fit.json")
    if out.suffix.lower() != ".json":
        raise NabnError(f"--out must end in .json, got {str(out)!r}")
    rows = read_measurements(measurements, unit)
    device = fit_device(rows, g_max_us=None if g_max is None else g_max * UNITS[rows.unit], bins=bins)
    write_fit(out, device.fit, device.about(), {name: curve.to_json() for name, curve in device.curves.items()})
    plot = plot_device(device, out.with_suffix(".png"))
    console = Console()
    print_device(device, console)
    line = f"Written to {out} and {plot.name}; use it as --noise measured:{out}"
    console.print(line, style="bold", highlight=False, soft_wrap=True, markup=False)
