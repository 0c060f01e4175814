"""`nabn chip`: what a chip file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aihwkit_nabn.errors import NabnError


def command(
    action: Annotated[str, typer.Argument(metavar="info", help="What to do: info.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that save_chip wrote.")],
) -> None:
    """Show what a chip file holds: network, seed, time after programming, layers, noise, versions."""
    if action != "info":
        raise NabnError(f"chip knows info, got {action!r}")
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from aihwkit_nabn.chip import chip_info, format_time
    from aihwkit_nabn.simulator.config.json_form import config_from_json

    content = chip_info(file)
    try:
        layers = content["layers"].values()
        noise = dict.fromkeys(str(config_from_json(config).noise_model) for config in content["configs"])
        weights = sum(_product(layer["shape"]) for layer in layers)
        rows = {
            "network": content["model"],
            "chip": f"seed {content['seed']}, {format_time(content['t_inference'])} after programming",
            "noise": "\n".join(noise),
            "layers on tiles": f"{len(layers)}, on {sum(len(layer['tiles']) for layer in layers)} tiles, "
            f"{weights:,} weights",
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


def _product(shape: list[int]) -> int:
    result = 1
    for size in shape:
        result *= int(size)
    return result
