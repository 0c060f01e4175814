from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aihwkit_nabn.cli import app
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.reporting.html import find_sources, write_html
from aihwkit_nabn.reporting.html.summary import summarize
from aihwkit_nabn.reporting.html.svg import DARK, LIGHT, readable

Make = Callable[..., EvaluationResult]

EVIL = "</script></title><script>alert(1)</script><img src=x onerror=alert(2)>\"'$x^{$"


class Page(HTMLParser):
    """Every tag with its attributes, every heading, and the text of every table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def _page(result: EvaluationResult, tmp_path: Path) -> Page:
    return Page(write_html(result, tmp_path / "report.html").read_text())


def test_the_page_needs_nothing_from_outside(make_result: Make, tmp_path: Path) -> None:
    text = write_html(make_result(), tmp_path / "report.html").read_text()
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "embed", "base")]
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert not re.search(r"url\((?!#)", text) and "@import" not in text


def test_ids_are_unique_and_every_reference_has_its_target(make_result: Make, tmp_path: Path) -> None:
    text = write_html(make_result(), tmp_path / "report.html").read_text()
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(ids)


def test_malicious_names_stay_text(make_result: Make, tmp_path: Path) -> None:
    settings = {
        "model": EVIL,
        "command": EVIL,
        "versions": {EVIL: EVIL},
        "conversion": {EVIL: EVIL},
        "scenarios": [{"name": EVIL, "t_inference": 1.0, "rpu_config": EVIL}],
        "methods": [{"label": EVIL, "batches": EVIL, "options": {EVIL: EVIL}}],
    }
    result = make_result(
        [(EVIL, None), ("b", None)], ("none", EVIL), metrics=(EVIL, f"{EVIL}/{EVIL}"), settings=settings
    )
    folder = tmp_path / "<img src=x onerror=alert(3)>"
    result.to_json(folder / "results.json")
    page = Page(write_html(tmp_path, tmp_path / "out.html", title=EVIL).read_text())
    assert not [tag for tag, _ in page.tags if tag in ("script", "img")]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<img src=x onerror=alert(3)>" in page.text and EVIL in page.text


def test_summary_says_what_is_lost_what_comes_back_and_what_hurts(make_result: Make) -> None:
    cost, best, harm, certainty = summarize(make_result())
    assert "accuracy = 90.0" in cost and "under noisy, the hardest of 2 settings" in cost
    assert "paired" in best and "75%" in best
    assert "population under quiet (-3.0), noisy (-3.0)" in harm
    assert "4 simulated chips" in certainty


def test_summary_of_one_chip_claims_nothing(make_result: Make) -> None:
    *_, harm, certainty = summarize(make_result(chips=1))
    assert "may be chance" in harm and "one chip" in certainty
    assert "nan" not in " ".join(summarize(make_result(chips=1))).lower()


def test_tables_have_digital_and_uncalibrated_beside_every_method(make_result: Make, tmp_path: Path) -> None:
    page = _page(make_result(metrics=("mIoU", "mIoU/car", "mIoU/tree", "aAcc")), tmp_path)
    for table in re.findall(r"<table>.*?</table>", (tmp_path / "report.html").read_text(), flags=re.DOTALL):
        if "Share of the loss" not in table and "each method needs" not in table:
            assert "digital" in table and "uncalibrated" in table
    assert "Class by class" in page.text and "tree" in page.text and "mIoU/tree" not in page.text


def test_layer_shifts_are_drawn_and_listed(make_result: Make, tmp_path: Path) -> None:
    layer = {"kind": "analog layer", "mean_before": 0.5, "mean_after": 0.01, "spread_before": 0.1, "spread_after": 0.0}
    shifts = {"noisy": {"paired": [{"name": f"block{i}.conv", **layer} for i in range(3)]}}
    page = _page(make_result(settings={"layer_shifts": shifts}), tmp_path)
    assert "What happens inside" in page.text and "block2.conv" in page.text and "0.010 / 0.000" in page.text
    with pytest.raises(NabnError, match="layer_shifts"):
        _page(make_result(settings={"layer_shifts": {"noisy": {"paired": [{"name": "a"}]}}}), tmp_path)


def test_a_folder_becomes_a_section_per_result_and_copies_count_once(make_result: Make, tmp_path: Path) -> None:
    make_result().to_json(tmp_path / "a" / "results.json")
    make_result().to_json(tmp_path / "a" / "20260101" / "analog" / "results.json")
    make_result(chips=3).to_json(tmp_path / "b" / "results.json")
    assert [source.name for source in find_sources(tmp_path)] == ["a", "b"]
    page = Page(write_html(tmp_path, tmp_path / "report.html").read_text())
    assert sum(tag == "section" for tag, _ in page.tags) == 3  # two, and the glossary


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no results.json"), ("{", "damaged"), ('{"format": "x"}', "no result file")]
)
def test_what_cannot_be_read_is_said(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(NabnError, match=message):
        write_html(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_command_writes_beside_the_results(make_result: Make, tmp_path: Path) -> None:
    make_result().to_json(tmp_path / "results.json")
    answer = CliRunner().invoke(app, ["report", str(tmp_path), "--title", "Mine & yours"])
    assert answer.exit_code == 0 and "report.html" in answer.output
    assert "<h1>Mine &amp; yours</h1>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("background", [LIGHT, DARK])
@pytest.mark.parametrize("color", ["#777777", "#882255", "#56b4e9", "#332288", "#000000", "#ffffff"])
def test_colours_stand_out_from_either_background(color: str, background: str) -> None:
    def luminance(text: str) -> float:
        parts = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(readable(color, background)), luminance(background)))
    assert (high + 0.05) / (low + 0.05) >= 3
