"""The site: its examples run, its commands exist, nothing registered is left out, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.cli import app
from aihwkit_nabn.commands._run import run as run_command
from aihwkit_nabn.noise import NOISE_MODELS
from aihwkit_nabn.simulator.config.io_options import READOUT_EFFECTS
from aihwkit_nabn.simulator.config.presets import parse_preset, preset_names
from tests.built_in import METHOD_NAMES, NOISE_NAMES
from tests.documents import PAGES, ROOT, blocks, run

TUTORIALS = [page for page in PAGES if page.parent.name == "tutorials"]


@pytest.fixture(autouse=True)
def registries_as_before() -> Iterator[None]:
    before = {registry: set(registry.names()) for registry in (NOISE_MODELS, CALIBRATION_METHODS, READOUT_EFFECTS)}
    yield
    for registry, names in before.items():
        for name in set(registry.names()) - names:
            registry.unregister(name)


@pytest.fixture(scope="module")
def generated() -> Iterator[dict[str, str]]:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate

        yield {name: getattr(generate, name)() for name in ("noise_models", "methods", "api", "command_line")}
    finally:
        sys.path.remove(str(ROOT / "docs"))


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_examples_of_a_tutorial_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "mmengine" in page.read_text():
        pytest.importorskip("mmengine")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "tutorial"}
    examples = blocks(page, "python")
    assert len(examples) >= 3
    for code in examples:
        run(code, names, page)


def test_the_files_of_the_tutorial_run_on_the_command_line(
    shapes_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for code in blocks(ROOT / "docs/tutorials/vision_engineer.md", "python"):
        if code.startswith("# my_"):
            (tmp_path / code.partition("\n")[0].removeprefix("# ")).write_text(code)
    monkeypatch.chdir(tmp_path)
    few = ["--noise", "gaussian:sigma=0.1", "--chips", "1", "--methods", "none,population"]
    own = ["my_model.py:build_model", "random", "--data", str(shapes_folder()), "--image-size", "32", "--crop-pct", "1"]
    for arguments in (own, ["my_workload.py:workload", "--test-images", "50"]):
        assert run_command(app, ["test", *arguments, *few]) == 0, capsys.readouterr().err
    assert "3 classes, images of 32 x 32 pixels" in capsys.readouterr().out


def _lines() -> Iterator[tuple[Path, list[str]]]:
    """Yield each command line of the text as its words, with its page."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                yield page, shlex.split(line, comments=True)


def _commands() -> list[tuple[str, list[str]]]:
    found = []
    for page, words in _lines():
        if "nabn" in words or "aihwkit_nabn.cli" in words:
            start = next(i for i, word in enumerate(words) if word in ("nabn", "aihwkit_nabn.cli"))
            if start + 1 < len(words):
                found.append((f"{page.name}: {' '.join(words[start:])}"[:90], words[start + 1 :]))
    return found


@pytest.mark.parametrize("words", [words for _, words in _commands()], ids=[name for name, _ in _commands()])
def test_every_command_in_the_text_exists_with_its_options(words: list[str]) -> None:
    root = typer.main.get_command(app)
    command = root.commands[words[0]]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    for word in words[1:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in known
    for option, value in zip(words, words[1:], strict=False):
        if option == "--noise" and "dead_columns" not in value and not value.startswith(("$", "measured:")):
            parse_preset(value)
        if option == "--methods":
            assert set(value.split(",")) <= {"none", *CALIBRATION_METHODS.names()}


def test_every_script_in_the_text_exists_with_its_options() -> None:
    found = [words for _, words in _lines() if any(word.startswith("tools/") for word in words)]
    assert len(found) > 10
    for words in found:
        start = next(i for i, word in enumerate(words) if word.startswith("tools/"))
        source = (ROOT / words[start]).read_text()
        for option in (word.partition("=")[0] for word in words[start + 1 :] if word.startswith("--")):
            parameter = option.removeprefix("--").replace("-", "_")
            assert re.search(rf'^ +{parameter}: |"{option}"', source, re.MULTILINE), f"{words[start]} {option}"
        for option, value in zip(words, words[1:], strict=False):
            if option == "--noise":
                parse_preset(value)


def test_every_noise_setting_and_method_and_public_name_has_its_entry(generated) -> None:
    for name in preset_names():
        assert re.search(rf"^{name}\n-+$", generated["noise_models"], re.MULTILINE)
    for name in CALIBRATION_METHODS.names():
        assert re.search(rf"^{name}\n-+$", generated["methods"], re.MULTILINE)
    listed = re.findall(r"^\.\. auto\w+:: ([\w.]+)$", generated["api"], re.MULTILINE)
    names = [path.rpartition(".")[2] for path in listed]
    assert set(nabn.__all__) - {"__version__", "presets"} <= set(names) and len(names) == len(set(names))
    for command in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"## `nabn {command}`" in generated["command_line"]


def test_every_noise_setting_states_formula_and_times_and_every_method_its_source() -> None:
    for name in NOISE_NAMES:
        text = NOISE_MODELS.get(name).__doc__ or ""
        assert "``" in text and "Args:" in text, name
        assert "Times:" in text or "does not change with time" in text, name
    for name in METHOD_NAMES:
        assert "Source:" in (CALIBRATION_METHODS.get(name).__doc__ or ""), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]*)", page.read_text()):
        if not target or "://" in target:
            continue
        if "generated/" in target:
            assert Path(target).stem in ("noise_models", "methods", "api", "cli")
        else:
            assert (page.parent / target).exists(), target


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    pytest.importorskip("mmengine")  # its page of the API
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "-q",
        "-d",
        str(tmp_path / "trees"),
        "docs",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(https?:[^\"]+)", page.read_text())
        assert not fetched, f"{page.name} fetches {fetched}"
    assert "GaussianWeightNoise" in (tmp_path / "site/generated/noise_models.html").read_text()
