"""Measure calibration methods on the set of networks: classifiers, detectors, a segmentor, with and without BatchNorm.

Run: ``python tools/network_set.py --data-root ../shared/data --checkpoints TRAINED --out nabn_results/networks``. Every
measurement is written to ``records/NETWORK.jsonl`` as it comes; ``--resume`` goes on from there and measures what is
missing: more chips, methods or settings, too. Ends with ``table.md``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from networks import NETWORKS, Options
from networks._settings import SETTINGS, build_scenario, settings_of
from networks._table import Row, write_tables
from rich.console import Console
from torch.nn.modules.batchnorm import _BatchNorm

from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.commands._evaluation import check_out, split_names
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import EvaluationResult, MethodSpec, Scenario
from aihwkit_nabn.evaluation.methods import method_specs
from aihwkit_nabn.evaluation.settings import setup_of
from aihwkit_nabn.files import write_text
from aihwkit_nabn.results import UNCALIBRATED, Record, RecordLog
from aihwkit_nabn.workloads import CalibrationRequest, Workload

METHODS = "none,population,paired,common_mode,low_rank,auto"


def choose_scenarios(networks: Iterable[str], asked: list[str]) -> tuple[dict[str, list[Scenario]], list[str]]:
    """Return each network's scenarios, and a line for each setting that this version cannot have.

    Raises:
        UnknownNameError: there is no such setting.
        NabnError: a setting was asked for by name and cannot be had.
    """
    built: dict[str, Scenario] = {}
    lacking = []
    for key in asked or SETTINGS:
        try:
            built[key] = build_scenario(key)
        except NabnError as error:
            if asked:
                raise
            lacking.append(str(error))
    chosen = {name: asked or settings_of(name) for name in networks}
    return {name: [built[key] for key in keys if key in built] for name, keys in chosen.items()}, lacking


def choose_methods(name: str, network: Workload, asked: list[MethodSpec]) -> tuple[list[MethodSpec], list[str]]:
    """Return the methods that can calibrate a network, and a line for each that cannot."""
    if any(isinstance(module, _BatchNorm) for module in network.model.modules()):
        return asked, []
    kept, lacking = [], []
    for spec in asked:
        if spec.method != UNCALIBRATED and CALIBRATION_METHODS.get(spec.method).replaces_statistics:
            lacking.append(f"{name}: `{spec.label or spec.method}` calibrates BatchNorms, and it has none")
        else:
            kept.append(spec)
    return kept, lacking


def measure(
    network: Workload,
    request: CalibrationRequest,
    scenario: Scenario,
    methods: list[MethodSpec],
    *,
    chips: int,
    file: RecordLog,
    console: Console,
) -> EvaluationResult:
    """Measure all methods at one setting, printing and keeping each measurement that is new."""

    def tell(record: Record) -> None:
        metric, value = next(iter(record.metrics.items()))
        console.print(
            f"  {record.scenario}, chip {record.chip_seed}, {record.method}: {metric} {value:.4g} "
            f"({record.seconds_calibration:.0f} s + {record.seconds_evaluation:.0f} s)"
            + (f"; {record.note}" if record.note else ""),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    return network.evaluate([scenario], methods, request, chips=chips, progress=False, on_record=tell, record_file=file)


app = typer.Typer(name="network_set", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    networks: Annotated[str, typer.Option(help=f"Comma-separated; default, in this order: {','.join(NETWORKS)}.")] = "",
    settings: Annotated[
        str, typer.Option(help=f"Comma-separated; default: those that suit: {','.join(SETTINGS)}.")
    ] = "",
    methods: Annotated[
        str, typer.Option(help="Comma-separated, with options: low_rank:budget=0.1,ridge=0.1.")
    ] = METHODS,
    chips: Annotated[int, typer.Option(min=1, help="Chips per setting.")] = 5,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data; default: $NABN_DATA or data.")] = None,
    checkpoints: Annotated[Path, typer.Option(help="Trained networks: NAME.pth or NAME/epoch_N.pth.")] = Path(
        "work_dirs"
    ),
    test_images: Annotated[int | None, typer.Option(min=1, help="Number of test images; default: all.")] = None,
    split: Annotated[
        str, typer.Option(help="test: images to report on; train: others, to choose options on.")
    ] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first chip and of the choice of images.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for records and table.")] = Path("nabn_results/networks"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run in --out stopped.")] = False,
) -> None:
    """Measure calibration methods on the set of networks."""
    console = Console(file=sys.stdout)  # as it is now: what evaluators print goes elsewhere
    names, specs = split_names(networks) or NETWORKS.names(), method_specs(split_names(methods))
    kinds = {name: NETWORKS.get(name) for name in names}
    scenarios, lacking = choose_scenarios(names, split_names(settings))
    options = Options(
        data_root=data_root or Path(os.environ.get("NABN_DATA") or "data"),
        checkpoints=checkpoints,
        out=out,
        seed=seed,
        test_images=test_images,
        split=split,
    )
    for kind in kinds.values():  # all of it before the first, which may take hours
        kind.require(options)
    check_out(out)
    rows: list[Row] = []
    for name, kind in kinds.items():
        network = kind.load(options)
        request = replace(kind.request, seed=seed)
        images = {"calibration_images": request.n, "batch_size": request.batch_size}
        setup = setup_of(network.model, seed=seed, split=split, test_images=test_images, **images)
        console.print(name, markup=False, highlight=False)
        able, unable = choose_methods(name, network, specs)
        lacking += unable
        with RecordLog(out / "records" / f"{name}.jsonl", setup, resume=resume) as file:
            for scenario in scenarios[name]:
                result = measure(network, request, scenario, able, chips=chips, file=file, console=console)
                rows.append(Row(network=name, setting=scenario.name, result=result))
                write_text(out / "table.md", write_tables(rows, lacking))
        del network
    console.print(f"Written to {out}/: records/, table.md", style="bold", highlight=False, soft_wrap=True, markup=False)


if __name__ == "__main__":
    sys.exit(run(app))
