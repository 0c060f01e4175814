"""How long our operators take, and mmcv's compiled ones in the same run; without those, ours alone.

Run: ``python tools/benchmarks/operators.py`` (a few minutes).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
import typer
from measuring import Job, new_table, times_of
from rich.console import Console
from torch import Tensor

from aihwkit_nabn.commands._run import run
from aihwkit_nabn.workloads.torchvision import check_device

sys.path.append(str(Path(__file__).parents[1]))  # where the other scripts are
from pages import markdown_table, write_between
from switching import compiled, mmcv_calls, ours, require_compiled

COMMAND = "python tools/benchmarks/operators.py --out docs/operators.md"
BEGIN, END = "<!-- timed: written by tools/benchmarks/operators.py -->", "<!-- end -->"
HEADINGS = ("operator", "mmcv (ms)", "ours (ms)", "ours / mmcv")
REMARK = "`ms_deform_attn`: on the CPU mmcv itself runs torch code, so both are the same."
SHORTEST = 0.03  # seconds: what takes less is called several times in a row

app = typer.Typer(name="operators.py", add_completion=False, pretty_exceptions_enable=False)


def cases(device: torch.device) -> dict[str, Callable[[], object]]:
    """Return a call of each operator, in the sizes of a detector on an image of 800 x 1088 pixels."""
    return _suppression(device) | _regions(device) | _convolutions(device) | _attention(device)


def _suppression(device: torch.device) -> dict[str, Callable[[], object]]:
    from mmcv.ops.nms import nms, soft_nms

    found: dict[str, Callable[[], object]] = {}
    for n in (1000, 5000):
        boxes, scores = _boxes(n).to(device), torch.rand(n).to(device)
        found[f"nms, {n} boxes"] = lambda boxes=boxes, scores=scores: nms(boxes, scores, 0.7)  # type: ignore[misc]
    boxes, scores = _boxes(1000).to(device), torch.rand(1000).to(device)
    found["soft_nms, 1000 boxes"] = lambda: soft_nms(boxes, scores, 0.5)
    return found


def _regions(device: torch.device) -> dict[str, Callable[[], object]]:
    from mmcv.ops.roi_align import roi_align

    x = torch.randn(1, 256, 50, 68, device=device)
    rois = torch.cat([torch.zeros(512, 1), _boxes(512)], 1).to(device)
    found: dict[str, Callable[[], object]] = {}
    for ratio in (0, 2):
        name = f"roi_align, 512 regions, sampling {ratio}"
        found |= _both(name, lambda x, ratio=ratio: roi_align(x, rois, 7, 1 / 16, ratio, "avg", True), x)
    return found


def _convolutions(device: torch.device) -> dict[str, Callable[[], object]]:
    from mmcv.ops.deform_conv import deform_conv2d
    from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d

    x, weight = torch.randn(1, 256, 50, 68, device=device), torch.randn(256, 256, 3, 3, device=device) / 48
    offset, mask = torch.randn(1, 18, 50, 68, device=device), torch.rand(1, 9, 50, 68, device=device)
    found = _both("deform_conv2d", lambda *t: deform_conv2d(*t, 1, 1), x, offset, weight)
    plain = _both(
        "modulated_deform_conv2d", lambda *t: modulated_deform_conv2d(*t, None, 1, 1), x, offset, mask, weight
    )
    return found | plain


def _attention(device: torch.device) -> dict[str, Callable[[], object]]:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

    shapes = torch.tensor([(100, 136), (50, 68), (25, 34), (13, 17)], device=device)
    sizes = shapes.prod(1)
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])
    value = torch.randn(1, int(sizes.sum()), 8, 32, device=device)
    places = torch.rand(1, 300, 8, 4, 4, 2, device=device)
    weights = torch.rand(1, 300, 8, 4, 4, device=device)

    def attention(v: Tensor, p: Tensor, w: Tensor) -> Any:
        if v.is_cuda:
            return MultiScaleDeformableAttnFunction.apply(v, shapes, starts, p, w, 64)
        return multi_scale_deformable_attn_pytorch(v, shapes, p, w)  # what mmcv's layer does

    return _both("ms_deform_attn, 300 queries", attention, value, places, weights)


def _both(name: str, function: Callable[..., Tensor], *tensors: Tensor) -> dict[str, Callable[[], object]]:
    """Return the forward pass, and the forward and the backward pass."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*tensors)

    def backward() -> object:
        output = function(*leaves)
        return torch.autograd.grad(output, leaves, torch.ones_like(output))

    return {name: forward, f"{name}, with backward": backward}


def _boxes(n: int) -> Tensor:
    """Return ``[n, 4]`` boxes of an image of 800 x 1088 pixels, from 16 to 400 pixels wide and high."""
    size = torch.tensor([1088.0, 800.0])
    half = 8 * 25 ** torch.rand(n, 2)
    middle = torch.rand(n, 2) * size
    return torch.cat([(middle - half).clamp(min=0), torch.minimum(middle + half, size)], 1)


def times(call: Callable[[], object], kinds: dict[str, ModuleType], repeats: int, device: torch.device) -> list[float]:
    """Return the shortest time of a call with each kind of operators, in seconds; they take turns."""

    def repeated(operators: ModuleType, count: int) -> Job:
        def job() -> None:
            with mmcv_calls(operators):
                for _ in range(count):
                    call()

        return job

    once = times_of({name: repeated(kind, 1) for name, kind in kinds.items()}, 1, device, of=min)
    count = max(int(SHORTEST / min(once.values())), 1)
    jobs = {name: repeated(kind, count) for name, kind in kinds.items()}
    return [seconds / count for seconds in times_of(jobs, repeats, device, of=min).values()]


@app.command()
def main(
    repeats: Annotated[int, typer.Option(min=1, help="Rounds after the first; the shortest time counts.")] = 9,
    threads: Annotated[int, typer.Option(min=1, help="Torch's threads.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random inputs.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Print a table of times and ratios; a few minutes."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    where = check_device(device)
    theirs = compiled() if out is None else require_compiled()  # the page has both
    kinds = {"mmcv": theirs, "ours": ours()} if theirs is not None else {"ours": ours()}
    headings = HEADINGS if theirs is not None else HEADINGS[::2]
    console = Console()
    rows = []
    with console.status("") as status:
        for name, call in cases(where).items():
            status.update(name)
            found = times(call, kinds, repeats, where)
            cells = [f"{1e3 * seconds:.{_digits(1e3 * seconds)}f}" for seconds in found]
            rows.append([name, *cells, *([f"{found[1] / found[0]:.2f}"] if theirs is not None else [])])
    table = new_table(f"{threads} threads, torch {torch.__version__}, {device}", headings)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if theirs is None:
        console.print("this mmcv has no compiled operators: ours alone")
    elif where.type == "cpu":
        console.print(REMARK, markup=False, highlight=False)
    if out is not None:
        write_between(out, BEGIN, END, markdown(headings, rows, threads, where), title="Operators")
        console.print(f"Written to {out}", style="bold", highlight=False)


def markdown(headings: tuple[str, ...], rows: list[list[str]], threads: int, device: torch.device) -> str:
    """Return the table with what it says, for the page."""
    import mmcv
    import torchvision

    place = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads} threads"
    return "\n".join(
        [
            f"`{COMMAND}`",
            "",
            f"mmcv {mmcv.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}; {place}. Both",
            "kinds take turns in one run, and the shortest of several times counts. Images have 800 x 1088 pixels,",
            "maps are 256 x 50 x 68.",
            *([REMARK] if device.type == "cpu" else []),
            "",
            *markdown_table(headings, rows, ("---", *["---:"] * (len(headings) - 1))),
        ]
    )


def _digits(value: float) -> int:
    return 0 if value >= 100 else 1 if value >= 10 else 2


if __name__ == "__main__":
    raise SystemExit(run(app))
