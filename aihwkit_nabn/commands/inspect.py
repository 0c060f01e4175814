"""`nabn inspect`: what of a model would go on tiles, what would stay digital, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aihwkit_nabn.commands import _options as opt

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from aihwkit_nabn.nn import ConversionReport, LayerEntry


def command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="FILE.py:FUNCTION, timm:NAME, torchvision:NAME, transformers:FOLDER, a config, mmdet::FILE or "
            "mmseg::FILE.",
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    noise: Annotated[str, typer.Option(help="Noise setting, which decides the tiles' size, e.g. pcm.")] = "pcm",
    cfg_options: opt.CfgOptions = None,
    model_arg: opt.ModelArg = None,
    exclude: opt.Exclude = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also list every layer that goes on tiles.")] = False,
) -> None:
    """Show which layers of a model would go on tiles, which would stay digital, and why; weights are random."""
    from rich.console import Console

    from aihwkit_nabn.nn import convert_to_noise_aware
    from aihwkit_nabn.simulator import parse_preset

    rpu_config = parse_preset(noise)
    model = _build(target, overrides, cfg_options, model_arg)
    analog: Any = convert_to_noise_aware(model, rpu_config, exclude=tuple(exclude or ()))
    _show(Console(), f"{target}, {noise}", analog.conversion_report, layers=layers)


def _build(
    target: str, overrides: list[str] | None, cfg_options: list[str] | None, model_arg: list[str] | None
) -> nn.Module:
    from aihwkit_nabn.commands._workload import cfg_option_items, model_arguments, option_name
    from aihwkit_nabn.errors import NabnError
    from aihwkit_nabn.workloads import find_workload

    given = {"cfg_options": cfg_option_items(cfg_options, overrides), "model_args": model_arguments(model_arg)}
    kind, name = find_workload(target)
    if kind.build is None:
        raise NabnError(f"{target} has its own weights and needs its data; convert it in Python to see what it becomes")
    given = {option: value for option, value in given.items() if value is not None}
    return kind.build(name, **kind.checked(target, given, partial=True, named=option_name))


def _show(console: Console, title: str, report: ConversionReport, *, layers: bool) -> None:
    """Print a row per kind of layer and reason; below it the layers themselves where they stay digital, or if asked."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), box=box.SIMPLE_HEAD)
    for heading in ("", "layer", "why"):
        table.add_column(heading, overflow="fold")
    for heading in ("layers", "tiles", "weights", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for place, entries, listed in (
        ("on tiles", report.converted, layers),
        ("noise-aware", report.normalization, False),
        ("digital", report.kept_digital, True),
        ("refused", report.refused, True),
    ):
        groups: dict[tuple[str, str], list[LayerEntry]] = {}
        for entry in entries:
            groups.setdefault((entry.kind, entry.reason), []).append(entry)
        for index, ((kind, reason), members) in enumerate(groups.items()):
            head = Text("" if index else place, style="bold")
            table.add_row(head, Text(kind), Text(reason), f"{len(members)}", *_numbers(members, report.n_weights))
            for entry in members if listed else ():
                name = Text(f"  {entry.name or '(root)'}")
                table.add_row("", name, "", "", *_numbers([entry], report.n_weights), style="dim")
    console.print(table, highlight=False)
    for line in report.mappings():
        console.print(line, highlight=False, soft_wrap=True)
    tiles = sum(entry.n_tiles for entry in report.converted)
    console.print(
        f"{report.analog_share:.1%} of {report.n_weights:,} matrix weights on {tiles:,} tiles in "
        f"{len(report.converted)} layers; {len(report.normalization)} BatchNorm layers noise-aware; "
        f"{len(report.kept_digital)} modules stay digital; {len(report.refused)} refused",
        highlight=False,
        soft_wrap=True,
    )


def _numbers(entries: Sequence[LayerEntry], total: int) -> tuple[str, str, str]:
    tiles, weights = sum(entry.n_tiles for entry in entries), sum(entry.n_weights for entry in entries)
    return (
        f"{tiles:,}" if tiles else "",
        f"{weights:,}" if weights else "",
        f"{weights / max(total, 1):.2%}" if weights else "",
    )
