"""`nabn chip`: what a chip file holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from aihwkit_nabn.errors import NabnError


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that save_chip wrote.")],
    more: Annotated[Path | None, typer.Argument(hidden=True)] = None,
) -> None:
    """Show what a chip file holds: network, seed, time after programming, layers, noise, calibration, versions."""
    if more is not None:
        if str(file) != "info":
            raise NabnError(f"unexpected argument {str(more)!r}; nabn chip takes one file")
        typer.echo("nabn chip info FILE is now nabn chip FILE; the old form works until 0.3", err=True)
        file = more
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from aihwkit_nabn.chip import chip_info
    from aihwkit_nabn.chip.container import tensor_names
    from aihwkit_nabn.simulator.config.json_form import config_from_json
    from aihwkit_nabn.times import format_time

    content = chip_info(file)
    try:
        layers = content["layers"].values()
        noise = dict.fromkeys(str(config_from_json(config).noise_model) for config in content["configs"])
        weights = sum(math.prod(layer["shape"]) for layer in layers)
        rows = {
            "network": content["model"],
            "chip": f"seed {content['seed']}, {format_time(content['t_inference'])} after programming",
            "noise": "\n".join(noise),
            "layers on tiles": f"{len(layers)}, on {sum(len(layer['tiles']) for layer in layers)} tiles, "
            f"{weights:,} weights",
            "calibration": _calibration(tensor_names(file)),
            "kept digital on purpose": ", ".join(content["excluded"]) or "-",
            "size": f"{file.stat().st_size / 1e6:.1f} MB",
            "made with": ", ".join(f"{name} {version}" for name, version in content["versions"].items()),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise NabnError(f"{file} is damaged: {type(error).__name__}: {error}") from error
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))
    Console().print(table)


def _calibration(names: list[str]) -> str:
    """Return what calibrating has set, by the names of the file's tensors."""
    kinds = {
        "scale": "output scale and offset",
        "input_gain": "common-mode gain",
        "directions": "low-rank correction",
        "mean": "BatchNorm statistics",
    }
    own = [name.rpartition(".")[2] for name in names if name.startswith("calibration/")]
    counts = {text: own.count(part) for part, text in kinds.items()}
    return "; ".join(f"{text} of {n} layer{'s' * (n > 1)}" for text, n in counts.items() if n) or "none"
