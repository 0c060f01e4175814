"""How far one product of a matrix with vectors is off on chips, as the literature measures it: the MVM error.

The mean over input vectors x of ``||y - W x|| / ||W x||``: y is what the chip returns, W a matrix of random weights, at
512 x 512 on one tile. So aihwkit's ``notebooks/hermes/hermes_noise_model_mvm.ipynb`` defines it.

Run: ``python tools/product_error.py --noise crossbar --time 0s --time 1d``
"""

from __future__ import annotations

import sys
from typing import Annotated

import torch
import typer
from pages import markdown_table
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.commands._evaluation import parse_scenarios
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import UnknownNameError, check_number
from aihwkit_nabn.results.statistics import estimate
from aihwkit_nabn.seeding import derive_seed

DISTRIBUTIONS = {
    "normal": lambda shape, generator: torch.randn(shape, generator=generator),
    "uniform": lambda shape, generator: torch.rand(shape, generator=generator) * 2 - 1,
}


def draw(kind: str, shape: tuple[int, int], seed: int, *, clip: float | None = None, zeros: float = 0.0) -> Tensor:
    """Return random numbers: standard normal, cut off at `clip`, or uniform in [-1, 1]; a share of them is zero.

    Raises:
        UnknownNameError: there is no such distribution.
        NabnError: `clip` or `zeros` is out of range.
    """
    if kind not in DISTRIBUTIONS:
        raise UnknownNameError("distribution", kind, DISTRIBUTIONS)
    limit = torch.inf if clip is None else check_number("clip", clip, exclusive_minimum=0.0)
    share = check_number("zeros", zeros, minimum=0.0, maximum=1.0, meaning="the share of zeros")
    generator = torch.Generator().manual_seed(seed)
    numbers = DISTRIBUTIONS[kind](shape, generator).clamp_(-limit, limit)
    return numbers.mul_(torch.rand(shape, generator=generator) >= share)


def relative_error(outputs: Tensor, exact: Tensor) -> float:
    """Return the mean over vectors of the norm of the difference over the norm of the exact output.

    Args:
        outputs: Vectors by outputs.
        exact: The same shape; a vector of zeros is left out, since it has no relative error.
    """
    norms = exact.norm(dim=1)
    return float(((outputs - exact).norm(dim=1) / norms)[norms > 0].mean())


@torch.no_grad()
def errors_on_chips(analog: nn.Module, exact: Tensor, inputs: Tensor, time: float, chips: range) -> list[float]:
    """Return the relative error on each chip, programmed from its seed and read `time` seconds later."""
    return [relative_error(nabn.program_chip(analog, seed=chip, t_inference=time)(inputs), exact) for chip in chips]


app = typer.Typer(name="product_error.py", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    noise: Annotated[list[str], typer.Option(help="Noise, e.g. crossbar; can be repeated.")],
    time: Annotated[list[str], typer.Option(help="Time after programming; can be repeated.")] = ["0s"],  # noqa: B006
    weights: Annotated[str, typer.Option(help=f"One of {', '.join(DISTRIBUTIONS)}.")] = "normal",
    inputs: Annotated[str, typer.Option(help=f"One of {', '.join(DISTRIBUTIONS)}.")] = "normal",
    clip: Annotated[float | None, typer.Option(help="Cut normal weights off at this many standard deviations.")] = None,
    zero_weights: Annotated[float, typer.Option(help="Share of the weights that are zero.")] = 0.0,
    zero_inputs: Annotated[float, typer.Option(help="Share of the inputs that are zero.")] = 0.0,
    size: Annotated[int, typer.Option(min=1, help="Inputs and outputs of the matrix.")] = 512,
    vectors: Annotated[int, typer.Option(min=1, help="Number of input vectors.")] = 1000,
    chips: Annotated[int, typer.Option(min=1)] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first chip, the weights and the inputs.")] = 0,
) -> None:
    """Print the error of one product in percent: mean over the chips, and half of the 95% interval."""
    scenarios = parse_scenarios(noise, time)
    shape = size, size
    matrix = draw(weights, shape, derive_seed(seed, "weights"), clip=clip, zeros=zero_weights)
    given, others = (
        draw(inputs, (vectors, size), derive_seed(seed, name), zeros=zero_inputs) for name in ("inputs", "calibration")
    )
    digital = nn.Linear(size, size, bias=False)
    digital.weight = nn.Parameter(matrix)
    rows = []
    for scenario in scenarios:
        analog = nabn.convert_to_noise_aware(digital, scenario.rpu_config).eval()
        nabn.calibrate_input_ranges(analog, [others])
        found = errors_on_chips(analog, given @ matrix.T, given, scenario.t_inference, range(seed, seed + chips))
        result = estimate([100 * error for error in found])
        spread = f" ± {result.half_width:.1f}" if chips > 1 else ""
        rows.append([f"`{scenario.name}`", f"{result.mean:.1f}{spread}"])
    print("\n".join(markdown_table(["noise", f"error of one product, % ({chips} chips)"], rows, ["---", "---:"])))


if __name__ == "__main__":
    sys.exit(run(app))
