"""Calibration under torch.distributed: what one process gives on the union of the ranks' data, or one error for all."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.nn import calibration_tensors
from aihwkit_nabn.simulator import parse_preset
from tests.chips import chip_of
from tests.networks import classifier

pytestmark = pytest.mark.slow  # starts processes

METHODS = ("population", "ema", "paired", "common_mode", "low_rank", "auto", "distill")
# Batches per rank: even, uneven with one sample, an empty shard in the middle.
SHARDS = {2: [[4, 4], [3, 1, 1]], 3: [[5, 2], [], [1]]}


def shards(world: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(n, 3, 8, 8, generator=generator) for n in sizes] for sizes in SHARDS[world]]


def union(parts: list[list[Tensor]]) -> list[Tensor]:
    return [batch for step in itertools.zip_longest(*parts) for batch in step if batch is not None]


def calibrated(batches: Any, method: str, **options: Any) -> tuple[dict[str, Tensor], int]:
    model = classifier(size=8)
    chip = chip_of(model, "gaussian:sigma=0.1", 2)
    more = {"steps": 4} if method == "distill" else {}
    report = nabn.calibrate(chip, batches, method=method, reference=model, **more, **options)
    return calibration_tensors(chip), report.n_samples


def start(rank: int, world: int, folder: str, job: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        torch.save(globals()[job](rank, world), Path(folder) / f"{rank}.pt")
        dist.barrier()  # nobody leaves while others still talk to it
    finally:
        dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort a process whose interpreter is being torn down (seen once in CI)


def run_ranks(world: int, folder: Path, job: Any) -> list[Any]:
    mp.spawn(start, (world, str(folder), job.__name__), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def every_method(rank: int, world: int) -> dict[str, Any]:
    found = {method: calibrated(shards(world)[rank], method)[0] for method in METHODS}
    found["limited"], n = calibrated(iter(shards(world)[rank]), "population", max_samples=6)
    assert n == 6
    found["own"] = calibrated(shards(world)[0], "population", sharded=False)[0]
    ranged = nabn.convert_to_noise_aware(classifier(size=8), parse_preset("crossbar"))
    found["ranges"] = nabn.calibrate_input_ranges(ranged, shards(world)[rank])
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_holds_the_chip_of_one_process_on_the_union(world: int, tmp_path: Path) -> None:
    batches = union(shards(world))
    expected = {method: calibrated(batches, method)[0] for method in METHODS}
    expected["limited"] = calibrated(batches, "population", max_samples=6)[0]
    expected["own"] = calibrated(shards(world)[0], "population")[0]
    for found in run_ranks(world, tmp_path, every_method):
        for name, tensors in expected.items():
            assert found[name].keys() == tensors.keys()
            for key, value in tensors.items():
                assert torch.allclose(found[name][key], value, rtol=1e-5, atol=1e-6), (name, key)
        ranged = nabn.convert_to_noise_aware(classifier(size=8), parse_preset("crossbar"))
        assert found["ranges"] == pytest.approx(nabn.calibrate_input_ranges(ranged, batches))


def broken_loader(batches: list[Tensor]) -> Iterator[Tensor]:
    yield batches[0]
    raise OSError("disk gone")


def faults(rank: int, world: int) -> dict[str, str]:
    model, data = classifier(size=8), shards(world)[rank]
    said = {}

    def attempt(name: str, chip: nn.Module, batches: Any, **options: Any) -> None:
        try:
            nabn.calibrate(chip, batches, method="population", **options)
            said[name] = ""
        except nabn.NabnError as error:
            said[name] = str(error)
        assert not calibration_tensors(chip)

    def chip() -> nn.Module:
        return chip_of(model, "gaussian:sigma=0.1", 2)

    attempt("loader", chip(), broken_loader(data) if rank == 1 else data)
    empty = nabn.convert_to_noise_aware(model, parse_preset("gaussian:sigma=0.1"))
    attempt("not programmed", empty if rank == 0 else chip(), data)

    def fails_late(network: nn.Module, batch: Tensor) -> None:
        network(batch)
        fails_late.calls += 1  # type: ignore[attr-defined]
        if rank == 1 and fails_late.calls >= 5:  # type: ignore[attr-defined]
            raise RuntimeError("out of memory")

    fails_late.calls = 0  # type: ignore[attr-defined]
    attempt("late", chip(), data, forward_fn=fails_late)
    attempt("empty", chip(), [])
    attempt("unknown option", chip(), data, max_samples=0 if rank == 1 else None)
    assert calibrated(data, "population")[1] == 13  # and the next one works
    return said


def test_an_error_on_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    for said in run_ranks(2, tmp_path, faults):
        assert "the calibration loader failed after 1 batches: disk gone" in said["loader"]
        assert "not programmed" in said["not programmed"]
        assert "out of memory" in said["late"]
        assert "the calibration set is empty" in said["empty"]
        assert "max_samples must be" in said["unknown option"]
