"""Thousands of damaged files: one error of ours or what they hold, never another exception, never a changed model."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.chip.container import read_container, write_container
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.files import parse_json
from aihwkit_nabn.reporting.html.sources import read_json
from aihwkit_nabn.results import RecordLog, Results
from aihwkit_nabn.results.layers import rankings
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.studies.grid import parse_spec, read_yaml
from aihwkit_nabn.training.report import TrainedModel, TrainingReport
from aihwkit_nabn.training.store import TrainedStore
from tests.properties.mutations import mutated_json, mutated_text, record, survives

FROZEN = Path(__file__).parents[1] / "frozen" / "version_0_1"


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    kind = rng.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.randint(1, 9)) + data[at:]
    return data[:at] + data[at + rng.randint(1, 9) :]


def mutated_lines(lines: list[str], rng: random.Random) -> bytes:
    """Return JSON lines with one of them damaged, as a value, as a text or as bytes."""
    at = rng.randrange(len(lines))
    kind = rng.randrange(5)
    damaged = [line.encode() for line in lines]
    if kind < 3:
        damaged[at] = json.dumps(mutated_json(json.loads(lines[at]), rng)).encode()
    elif kind == 3:
        damaged[at] = mutated_text(lines[at], rng).encode()
    else:
        damaged[at] = mutated_bytes(damaged[at], rng)
    return b"\n".join(damaged) + b"\n"


def count_good(
    path: Path, n: int, damaged: Callable[[], bytes], read: Callable[[], object], *, changes: bool = False
) -> int:
    """Write `n` damaged versions of a file, read each, and return how many were taken for whole.

    Args:
        path: The file.
        n: How many.
        damaged: Makes one.
        read: Reads the file.
        changes: Whether reading may mend the file where it is taken for whole.
    """
    good = 0
    for _ in range(n):
        data = damaged()
        path.write_bytes(data)
        taken = survives(read)
        good += taken
        assert (changes and taken) or path.read_bytes() == data
    return good


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a": NaN}',
        b"[1e999]",
        b'"\\ud800"',
        b'"\xff"',
        b"",
        b"1" * 10_000,
        b"\xef\xbb\xbf{}",
        b"{'a': 1}",
    ],
    ids=lambda text: str(text[:8]),
)
def test_what_json_of_ours_never_holds(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    (tmp_path / "x.json").write_bytes(text)
    for read in (nabn.EvaluationResult.from_json, read_json):
        with pytest.raises(NabnError, match=r"x\.json"):
            read(tmp_path / "x.json")


@pytest.mark.parametrize("setting", ["pcm", "gaussian:sigma=0.1", "crossbar"])
def test_chip_files(setting: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).eval()
    data = [torch.randn(8, 2, 4, 4)]
    chip = nabn.convert_to_noise_aware(model, parse_preset(setting))
    if setting == "crossbar":
        nabn.calibrate_input_ranges(chip, data)
    nabn.program_chip(chip, 1, "1h")
    nabn.calibrate(chip, data, method="paired", reference=model)
    path = nabn.save_chip(chip, tmp_path / "chip")
    whole = path.read_bytes()
    content, tensors = read_container(path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = random.Random(0)

    def load() -> None:
        nabn.chip_info(path)
        nabn.load_chip(model, path)

    def rewritten() -> bytes:
        """A file whose checksum fits what it holds."""
        changed = dict(tensors)
        if rng.random() < 0.3:
            name = rng.choice(sorted(changed))
            value = changed.pop(name)
            new = {0: value.double(), 1: value[:0] if value.dim() else value[None], 2: value.new_zeros(3, 2), 3: value}
            kind = rng.randrange(5)
            if kind < 4:
                changed[name if kind < 3 else f"{name}x"] = new[kind]
            kept = content
        else:
            kept = mutated_json(content, rng)
            if json.dumps(kept).find("Infinity") >= 0:
                return b""
        write_container(path, kept, changed)
        return path.read_bytes()

    assert count_good(path, 250, lambda: mutated_bytes(whole, rng), load) < 25
    good = count_good(path, 350, rewritten, load)
    assert 3 < good < 330  # versions, for one, may say what they like
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    path.write_bytes(whole)
    load()


def test_logs(tmp_path: Path) -> None:
    rng, path = random.Random(1), tmp_path / "records.jsonl"
    setup: dict[str, Any] = {"name": "s", "noise": ["pcm"], "chips": 2}
    with RecordLog(path, setup) as log:
        for seed in (0, 1, 2):
            log.add(dataclasses.replace(record(seed), axes={"model": "digits", "jpeg": None}))
        log.note("digital", {"accuracy": 99.0})
        log.note("settings s", {"conversion": {"s": "all"}, "scenarios": []})
    lines = path.read_text().splitlines()

    def read() -> None:
        with RecordLog(path, setup) as log:
            [record.to_dict() for record in log.sorted_records()]

    good = count_good(path, 1500, lambda: mutated_lines(lines, rng), read, changes=True)
    assert 30 < good < 1400
    good = count_good(path, 1500, lambda: mutated_lines(lines, rng), lambda: RecordLog(path, setup, rank=1))
    assert 30 < good < 1400


@pytest.mark.parametrize("name", ["test/records.jsonl", "sweep/records.jsonl", "sensitivity/sensitivity.jsonl"])
def test_logs_of_version_0_1(name: str, tmp_path: Path) -> None:
    rng, path = random.Random(5), tmp_path / "records.jsonl"
    lines = (FROZEN / name).read_text().splitlines()
    header = json.loads(lines[0])
    setup = header.get("setup") or header["sweep"]

    def read() -> None:
        RecordLog(path, setup).close()

    good = count_good(path, 1000, lambda: mutated_lines(lines, rng), read, changes=True)
    assert 20 < good < 950


def test_sweep_files(tmp_path: Path) -> None:
    rng, path = random.Random(2), tmp_path / "x.yaml"
    content = {
        "version": 1,
        "name": "x",
        "models": ["digits"],
        "noise": ["pcm", {"preset": "gaussian:relative_to=max", "strength": [0.02, 0.1]}],
        "time": ["1h", "1y"],
        "chips": 2,
        "methods": ["paired", {"method": "paired", "options": {"shrink": 0.0}, "label": "plain"}],
        "samples": [16],
    }
    text = yaml.safe_dump(content)
    path.write_text(text)
    assert parse_spec(read_yaml(path)).noise[1] == "gaussian:relative_to=max,sigma=0.02"

    def damaged() -> bytes:
        if rng.random() < 0.5:
            return yaml.safe_dump(mutated_json(content, rng)).encode()
        return mutated_text(text, rng).encode() if rng.random() < 0.7 else mutated_bytes(text.encode(), rng)

    good = count_good(path, 700, damaged, lambda: parse_spec(read_yaml(path)))
    assert 30 < good < 650


def test_trained_networks(tmp_path: Path) -> None:
    rng, model = random.Random(3), nn.Linear(3, 2)
    report = TrainingReport(
        noise="0.1", std=0.1, epochs=1, images=8, images_seen=8, steps=1, seconds=1.0, losses=(1.0,), settings={},
        on_tiles="all",
    )  # fmt: skip
    TrainedStore(tmp_path, model, resume=False).get(
        "hwa", {"lr": 0.1}, lambda: TrainedModel(model=model, report=report)
    )
    path = TrainedStore(tmp_path, model, resume=True).path("hwa")
    whole = path.read_bytes()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def trained() -> TrainedModel:
        raise AssertionError("trained again without being asked to")

    def read() -> None:
        str(TrainedStore(tmp_path, model, resume=True).get("hwa", {"lr": 0.1}, trained).report)

    good = count_good(path, 1500, lambda: mutated_bytes(whole, rng), read)
    assert good < 400  # there is no checksum: a changed bit of a weight is a weight
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("old", [False, True])
def test_sensitivities(old: bool, tmp_path: Path) -> None:
    rng, path = random.Random(4), tmp_path / "sensitivity.json"
    axes = {"layer": "conv", "on_chip": "only"}
    result = Results(
        records=[dataclasses.replace(record(0), axes=axes)],
        digital={"accuracy": 99.0},
        settings={"shares": {"conv": 1.0}},
    )
    whole = result.to_json(path).read_text()
    if old:
        whole = (FROZEN / "sensitivity" / "sensitivity.json").read_text()

    def damaged() -> bytes:
        kept = json.dumps(mutated_json(json.loads(whole), rng)) if rng.random() < 0.7 else mutated_text(whole, rng)
        return kept.encode()

    def read() -> None:
        list(rankings(Results.from_json(path)))

    assert 10 < count_good(path, 1500, damaged, read) < 1400
