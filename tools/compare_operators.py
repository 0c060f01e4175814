"""Our operators against mmcv's compiled ones, in one process: each on random inputs, and in the training of detectors.

Needs an mmcv with compiled operators; on a GPU also those are compared that mmcv has no CPU code for. Takes minutes.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
import torchvision
import typer
from coverage_models import META, MODELS, SIZE, randomize
from operator_cases import OPERATORS, Comparison, compare
from pages import markdown_table, write_between
from rich import box
from rich.console import Console
from rich.table import Table
from switching import mmcv_calls, ours, require_compiled

from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.openmmlab.config import build_digital, load_config
from aihwkit_nabn.seeding import isolated_rng
from aihwkit_nabn.workloads.torchvision import check_device

COMMAND = "python tools/compare_operators.py --out docs/operators.md"
BEGIN, END = "<!-- compared: written by tools/compare_operators.py -->", "<!-- end -->"
DETECTORS = (
    "faster_rcnn r50",
    "mask_rcnn r50",
    "dcnv2 faster_rcnn",
    "retinanet r50",
    "detr r50",
    "deformable_detr r50",
)
_PASS = re.compile("_(forward|backward)$")
BAR = 1e-4
ITERATIONS = 2

app = typer.Typer(name="compare_operators.py", add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How far a detector trained with our operators lies from one trained with mmcv's.

    Attributes:
        model: Its name.
        functions: Of `mmcv._ext` that were called.
        losses: Largest relative difference of a loss, in any iteration; infinity where one is not finite.
        gradients: Of all parameters' gradients in the first iteration: norm of the difference over their norm.
    """

    model: str
    functions: frozenset[str]
    losses: float
    gradients: float

    @property
    def passes(self) -> bool:
        """Whether the two are the same but for rounding."""
        return self.losses <= BAR and self.gradients <= BAR


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(help="Operators and detectors to compare; default: all.")] = None,
    inputs: Annotated[int, typer.Option(min=1, help="Random inputs per operator.")] = 300,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto: cuda if mmcv is compiled for one.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Compare with a compiled mmcv, for about a minute; exit code 1 if more than rounding differs."""
    for name in names or ():
        if name not in (*OPERATORS, *DETECTORS):
            raise UnknownNameError("operator or detector", name, (*OPERATORS, *DETECTORS))
    if names and out is not None:
        raise NabnError("--out writes the tables of all operators and detectors; name none of them")
    if device != "auto":
        check_device(device)
    theirs = require_compiled()
    kinds = (ours(), theirs)
    device = device if device != "auto" else "cuda" if _for_gpu(theirs) else "cpu"
    console = Console()
    operators: list[Comparison] = []
    trainings: list[Training] = []
    with console.status("") as status:
        for name in [name for name in OPERATORS if not names or name in names]:
            status.update(name)
            operators.append(compare(name, kinds, inputs, torch.device(device)))
        for name in [name for name in DETECTORS if not names or name in names]:
            status.update(f"training {name}")
            trainings.append(compare_training(name, kinds, device))
    for table in tables(operators, trainings, device):
        console.print(table)
    for row in operators:
        if not row.passes:
            text = row.problem or f"largest difference with the inputs of seed {row.seed}"
            console.print(f"{row.name}: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        write_between(out, BEGIN, END, markdown(operators, trainings, device, inputs), title="Operators")
        console.print(f"Written to {out}", style="bold", highlight=False)
    good = all(row.passes for row in operators) and all(row.passes for row in trainings)
    raise typer.Exit(0 if good else 1)


def compare_training(name: str, kinds: tuple[ModuleType, ModuleType], device: str = "cpu") -> Training:
    """Train a detector of `coverage_models.MODELS` with each kind, from the same random weights on the same images."""
    config = load_config(MODELS[name])
    if "rpn_proposal" in (config.model.get("train_cfg") or {}):
        # Random scores lie close. Of the few best no two are so close that rounding would exchange them, and of few
        # regions none are left out at random: in the order of their scores.
        config.model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=100)
    start = build_digital(config)
    randomize(start, 0)
    own, other = (train(start, operators, device) for operators in kinds)
    return Training(
        model=name,
        functions=frozenset(own.functions | other.functions),
        losses=max(_relative(abs(a - b), abs(b)) for a, b in zip(own.losses, other.losses, strict=True)),
        gradients=_relative(
            sum(float((a - b).square().sum()) for a, b in zip(own.gradients, other.gradients, strict=True)) ** 0.5,
            sum(float(b.square().sum()) for b in other.gradients) ** 0.5,
        ),
    )


@dataclass(frozen=True)
class _Run:
    losses: list[float]
    gradients: list[Any]
    functions: set[str]


def train(start: Any, operators: ModuleType, device: str = "cpu") -> _Run:
    """Train a copy of a detector for some iterations.

    Returns:
        Every loss of each iteration, the first one's gradients, and the operators called.
    """
    model = copy.deepcopy(start).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses: list[float] = []
    gradients: list[torch.Tensor] = []
    with mmcv_calls(operators) as called, isolated_rng(0):
        torch.cuda.manual_seed_all(0)
        for data in batches():
            found = model(**model.data_preprocessor(data, training=True), mode="loss")
            total, log = model.parse_losses(found)
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            gradients = gradients or [p.grad.clone() for p in model.parameters() if p.grad is not None]
            optimizer.step()
            losses += [value.item() for key, value in log.items() if "loss" in key]
    return _Run(losses, gradients, called.names)


def batches(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield random images with random boxes, labels and masks, two at a time."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([SIZE[1], SIZE[0]])
    for _ in range(ITERATIONS):
        data: dict[str, list[Any]] = {"inputs": [], "data_samples": []}
        for count in (3, 5):
            low = torch.rand(count, 2, generator=generator) * size * 0.6
            boxes = torch.cat([low, low + 6 + torch.rand(count, 2, generator=generator) * size * 0.35], 1)
            y, x = torch.arange(SIZE[0])[:, None], torch.arange(SIZE[1])
            x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
            masks = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
            sample = DetDataSample(metainfo=META)
            sample.gt_instances = InstanceData(
                bboxes=boxes,
                labels=torch.randint(0, 80, (count,), generator=generator),
                masks=BitmapMasks(masks.numpy().astype("uint8"), *SIZE),
            )
            data["inputs"].append(torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8))
            data["data_samples"].append(sample)
        yield data


def tables(operators: Sequence[Comparison], trainings: Sequence[Training], device: str) -> list[Any]:
    """Return the tables for the terminal."""
    found = []
    for headings, rows in ((OPERATOR_HEADINGS, operators), (TRAINING_HEADINGS, trainings)):
        table = Table(box=box.SIMPLE_HEAD)
        for index, heading in enumerate(headings):
            table.add_column(heading, justify="right" if 0 < index < 3 else "left", overflow="fold")
        for row in rows:
            table.add_row(*_cells(row, device), style=None if row.passes else "red")
        found.append(table)
    return [table for table in found if table.row_count]


OPERATOR_HEADINGS = ("operator", "inputs", "largest difference", "")
ALIGN = ("---", "---:", "---:", "---")
TRAINING_HEADINGS = ("detector", "losses differ by", "gradients differ by", "operators called")


def markdown(operators: Sequence[Comparison], trainings: Sequence[Training], device: str, inputs: int) -> str:
    """Return both tables with what they say, for the page."""
    return "\n".join(
        [
            f"`{COMMAND}`",
            "",
            f"{versions(device)}. *Largest difference*: over {inputs} random inputs per operator (sizes, groups,",
            "strides, boxes outside the image, all options), of all results and gradients, each relative to its",
            "largest value; up to 1e-5 passes, and indices must be the same. *Losses, gradients*: two training",
            f"iterations from the same random weights on the same random images; up to {BAR:g} passes. Two-stage",
            "detectors keep 100 regions per image: among more, random scores lie so close together that rounding",
            "changes which ones are kept. Where no operator is called, mmdetection and mmcv run torch code, which",
            "is the same with both.",
            "",
            *markdown_table(OPERATOR_HEADINGS, [_cells(row, device) for row in operators], ALIGN),
            "",
            *markdown_table(TRAINING_HEADINGS, [_cells(row, device) for row in trainings], ALIGN),
        ]
    )


def versions(device: str) -> str:
    """Return what was compared, and where."""
    import mmcv

    where = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    return f"mmcv {mmcv.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}, {where}"


def _cells(row: Comparison | Training, device: str) -> tuple[str, ...]:
    if isinstance(row, Comparison):
        return (row.name, f"{row.inputs}", _number(row.error) if row.inputs else "", row.problem)
    called = ", ".join(sorted({_PASS.sub("", name) for name in row.functions})) or f"none on {device}"
    return (row.model, _number(row.losses), _number(row.gradients), called)


def _number(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0"


def _relative(difference: float, size: float) -> float:
    value = difference / max(size, 1e-12)
    return value if math.isfinite(value) else math.inf


def _for_gpu(compiled: ModuleType) -> bool:
    return torch.cuda.is_available() and compiled.get_compiling_cuda_version() != "not available"


if __name__ == "__main__":
    raise SystemExit(run(app))
