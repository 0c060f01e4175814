"""Every command that measures says how far it is, also where its error stream is a file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aihwkit_nabn import cli, progress
from aihwkit_nabn.commands._run import run

LINE = re.compile(r"^\d+:\d\d:\d\d elapsed, \d+/\d+ done(, about \d+:\d\d:\d\d left)?: \S.*$", re.MULTILINE)
SWEEP = {
    "version": 1,
    "name": "tiny",
    "models": ["digits"],
    "noise": ["gaussian:sigma=0.1"],
    "methods": ["none", "paired"],
    "samples": [8],
    "chips": 2,
    "test_images": 20,
}


@pytest.mark.parametrize(
    "arguments",
    [
        ["sensitivity", "--chips", "1", "--limit", "60", "--max-samples", "32"],
        [
            "test",
            "torchvision:squeezenet1_1",
            "random",
            "--image-size",
            "64",
            "--data",
            "FOLDER",
            "--noise",
            "pcm",
            "--methods",
            "paired",
        ],
        pytest.param(["sweep", "SPEC", "--workers", "1"], marks=pytest.mark.slow),
        pytest.param(["compare", "--quick", "--chips", "1", "--epochs", "1"], marks=pytest.mark.slow),
        pytest.param(["demo", "--quick", "--chips", "1"], marks=pytest.mark.slow),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_line_now_and_then(arguments, shapes_folder, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    (tmp_path / "spec.yaml").write_text(json.dumps(SWEEP))
    given = {"FOLDER": str(shapes_folder()), "SPEC": str(tmp_path / "spec.yaml")}
    assert run(cli.app, [*(given.get(a, a) for a in arguments), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert len(LINE.findall(printed.err)) >= 2 and not LINE.search(printed.out)
