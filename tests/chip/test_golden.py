"""The same seed gives the same chip from release to release, in another process, on any number of threads.

`golden.json` holds chips of this release. A change here is a change of every user's chips: say so in the changelog, and
write the file anew with ``python tests/chip/test_golden.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.simulator import parse_preset
from tests.built_in import NOISE_NAMES

GOLDEN = Path(__file__).with_name("golden.json")
SETTINGS = [*sorted(NOISE_NAMES), "crossbar", "pcm+stuck:p_off=0.01", "gaussian:sigma=0.1,relative_to=weight"]


def wave(*shape: int, step: float) -> Tensor:
    """Numbers between -1 and 1 that need no random generator."""
    n = torch.Size(shape).numel()
    return torch.sin(torch.arange(n, dtype=torch.float64) * step).float().view(shape)


def figures(setting: str) -> list[float]:
    """Weights of a chip after a tenth of an hour and after an hour, and what it answers."""
    conv, linear = nn.Conv2d(3, 5, 3), nn.Linear(5 * 16, 7)
    with torch.no_grad():
        for parameter, step in zip([*conv.parameters(), *linear.parameters()], (0.7, 1.1, 0.37, 2.3), strict=True):
            parameter.copy_(wave(*parameter.shape, step=step))
    model = nn.Sequential(conv, nn.Flatten(), linear).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initial input ranges are as good as any here
        chip = nabn.program_chip(nabn.convert_to_noise_aware(model, parse_preset(setting)), 11, "6min")
        found = [chip[0].weight.flatten()[[0, 7, 50]], chip[2].weight.flatten()[[3, 200]]]
        nabn.drift_chip(chip, "1h")
        found += [chip[0].weight.flatten()[[0, 7, 50]], chip[2].weight.flatten()[[3, 200]]]
        with torch.no_grad():
            found.append(chip(wave(2, 3, 6, 6, step=0.9)).flatten()[[0, 5, 13]])
    return [round(float(value), 6) for value in torch.cat(found)]


@pytest.mark.parametrize("setting", SETTINGS)
def test_chips_are_those_of_the_release(setting: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == set(SETTINGS)
    assert figures(setting) == pytest.approx(golden[setting], rel=2e-4, abs=2e-5)


def test_threads_and_generators_do_not_matter() -> None:
    threads = torch.get_num_threads()
    expected = {setting: figures(setting) for setting in ("pcm", "crossbar")}
    try:
        torch.set_num_threads(3)
        torch.manual_seed(99)
        for setting, values in expected.items():
            assert figures(setting) == pytest.approx(values, rel=1e-5, abs=2e-6)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_another_process_makes_the_same_chip() -> None:
    code = "import json, tests.chip.test_golden as g; print(json.dumps(g.figures('crossbar')))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(figures("crossbar"), rel=1e-5, abs=2e-6)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({setting: figures(setting) for setting in SETTINGS}, indent=1) + "\n")
