from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.reporting.html import write_html
from aihwkit_nabn.results import Record, Results
from aihwkit_nabn.results.layers import ONLY, SHARES, WHOLE


def _sensitivity(folder: Path) -> None:
    records = [
        Record(
            scenario="s",
            method="uncalibrated",
            method_name="none",
            chip_seed=chip,
            metrics={"m": 90.0 - loss - 0.1 * chip},
            axes={"layer": layer, "on_chip": ONLY},
        )
        for layer, loss in (("mild", 0.5), ("harmful<b>", 9.0), (WHOLE, 12.0))
        for chip in range(3)
    ]
    settings = {SHARES: {"mild": 0.9, "harmful<b>": 0.1}}
    Results(records=records, digital={"m": 90.0}, settings=settings).to_json(folder / "sensitivity.json")


def _examples(folder: Path, file: str = "0.jpg") -> None:
    path = folder / "examples"
    path.mkdir()
    Image.new("RGB", (8, 8), "red").save(path / "0.jpg")
    panel = {"title": "digital", "file": file}
    content = {"scenario": "s", "chip_seed": 0, "classes": [{"name": "car", "color": "#aa0000"}]}
    (path / "examples.json").write_text(json.dumps({**content, "images": [{"name": "a.png", "panels": [panel]}]}))


def test_sensitivity_and_examples_come_in_from_the_folder(make_result, tmp_path: Path) -> None:
    make_result().to_json(tmp_path / "results.json")
    _sensitivity(tmp_path)
    _examples(tmp_path)
    text = write_html(tmp_path / "results.json", tmp_path / "report.html").read_text()
    assert "the layers that cost most on their own: harmful&lt;b&gt; (9.10" in text
    assert text.index("(whole network)") < text.index(">harmful&lt;b&gt;<") < text.index(">mild<")
    assert 'src="data:image/jpeg;base64,' in text and 'alt="a.png: digital"' in text and "#aa0000" in text


def test_sensitivity_alone_is_a_section(tmp_path: Path) -> None:
    _sensitivity(tmp_path)
    assert "Which layers hurt most" in write_html(tmp_path, tmp_path / "report.html").read_text()


@pytest.mark.parametrize("file", ["../secret.jpg", "/etc/passwd", "0.svg", "missing.jpg"])
def test_pictures_come_from_the_examples_folder_only(make_result, tmp_path: Path, file: str) -> None:
    make_result().to_json(tmp_path / "results.json")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.jpg")
    _examples(tmp_path, file)
    with pytest.raises(NabnError, match="examples"):
        write_html(tmp_path, tmp_path / "report.html")
