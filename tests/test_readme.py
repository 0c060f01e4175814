"""The README's Python examples run as they stand; adding something takes what the pages say."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from aihwkit_nabn import cli
from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.commands._run import run as run_command
from aihwkit_nabn.noise import NOISE_MODELS
from tests import documents

EXAMPLES = documents.blocks(documents.README, "python")
NOISE_MODEL = documents.blocks(documents.ROOT / "docs/tutorials/device_researcher.md", "python")[0]
METHOD = documents.blocks(documents.ROOT / "aihwkit_nabn/calibration/README.md", "python")[0]


@pytest.fixture(autouse=True)
def registries_as_before() -> Iterator[None]:
    before = {registry: set(registry.names()) for registry in (NOISE_MODELS, CALIBRATION_METHODS)}
    yield
    for registry, names in before.items():
        for name in set(registry.names()) - names:
            registry.unregister(name)


def run(code: str) -> None:
    documents.run(code, {"__name__": "readme_example"}, documents.README)


@pytest.mark.parametrize("code", EXAMPLES, ids=[code.strip().splitlines()[-1][:40] for code in EXAMPLES])
def test_example_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # one writes a file
    run(code)


def test_the_workload_of_the_readme_runs_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = (code for code in EXAMPLES if code.startswith("# my_model.py"))
    assert len(code.splitlines()) < 25
    (tmp_path / "my_model.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert run_command(cli.app, ["test", "my_model.py:workload", "--noise", "pcm", "--time", "1d", "--chips", "1"]) == 0
    assert "nabn_results/my_model_workload" in capsys.readouterr().out


def test_the_readme_fits_on_two_screens() -> None:
    assert len(documents.README.read_text().splitlines()) <= 130


def test_it_says_how_to_install_into_an_own_environment() -> None:
    text = documents.README.read_text()
    assert "`uv pip install .`" in text
    project = (documents.ROOT / "pyproject.toml").read_text()
    extras = re.findall(r"\.\[(\w+)\]", text)
    assert extras and all(f"\n{extra} = [" in project for extra in extras)


@pytest.mark.parametrize("code", [NOISE_MODEL, METHOD], ids=["noise model", "method"])
def test_adding_something_takes_less_than_20_lines(code: str) -> None:
    assert len([line for line in code.splitlines() if line.strip()]) < 20


def test_added_noise_model_and_method_work_together() -> None:
    import torch

    import aihwkit_nabn as nabn

    run(NOISE_MODEL)
    run(METHOD)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 40, 3), torch.nn.BatchNorm2d(40)).eval()
    analog = nabn.convert_to_noise_aware(model, nabn.presets.build_preset("dead_columns", rate=0.1))
    nabn.program_chip(analog, seed=1)
    dead = analog[0].weight.flatten(1).abs().sum(1) == 0
    assert 0 < int(dead.sum()) < 15
    x = torch.randn(8, 3, 6, 6)
    nabn.calibrate(analog, [x], "mean_only")
    raw = analog[0](x).mean((0, 2, 3))
    torch.testing.assert_close(analog[1].calibrated_mean, raw, rtol=1e-5, atol=1e-6)
    assert torch.equal(analog[1].calibrated_var, model[1].running_var)
