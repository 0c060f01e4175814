"""Sampled positions: the same ones for any split, and in no proportion to any stride."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration.sampling import Positions, positions_per_sample


@pytest.mark.parametrize(
    ("shape", "channel_dim"),
    [
        ((12, 5, 40, 33), -3),
        ((12, 7, 29), -2),
        ((12, 31, 6), -1),
        ((12, 4, 9, 8, 7), -4),
        ((12, 6), -1),
        ((12, 5, 1, 1), -3),
    ],
)
@pytest.mark.parametrize("wanted", [1, 5, 64, 10_000])
def test_any_split_takes_the_same(shape, channel_dim, wanted):
    output = torch.randn(shape)
    whole = Positions(output.shape, channel_dim, 0, shape[0], wanted).take(output)
    parts, row = [], 0
    for part in output.split([1, 6, 2, 3]):
        parts.append(Positions(part.shape, channel_dim, row, len(part), wanted).take(part))
        row += len(part)
    assert torch.equal(torch.cat(parts, 1), whole)
    length = output[0].numel() // shape[channel_dim]
    assert whole.shape == (shape[channel_dim], 12 * min(wanted, length))


def test_rows_that_are_parts_of_samples():
    """Windows of attention: 50 rows of 49 positions for each of 4 samples."""
    output = torch.randn(200, 49, 6)
    few = Positions(output.shape, -1, 0, 4, 10).take(output)
    assert few.shape == (6, 4 * 10)
    parts = [Positions(part.shape, -1, row, 2, 10).take(part) for row, part in ((0, output[:100]), (100, output[100:]))]
    assert torch.equal(torch.cat(parts, 1), few)
    assert Positions(output.shape, -1, 0, 4, 100).take(output).shape == (6, 4 * 100)


@pytest.mark.parametrize("stride", [2, 3, 4, 7, 8, 16])
def test_every_phase_of_a_stride_is_seen_alike(stride):
    size = 4 * stride
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    phase = ((rows % stride) * stride + columns % stride).expand(64, 1, size, size)
    wanted = 4 * stride**2
    seen = Positions(phase.shape, -3, 0, 64, wanted).take(phase).flatten()
    counts = torch.bincount(seen, minlength=stride**2).double()
    assert counts.min() > 0.6 * counts.mean() and counts.max() < 1.4 * counts.mean()


def test_how_many():
    assert positions_per_sample(16, 64) == 128 and positions_per_sample(2048, 64) == 8
    assert positions_per_sample(16, 10**6) == 2 and positions_per_sample(0, 0) > 0


@pytest.mark.parametrize(("kernel", "n"), [(2, 16), (8, 4)])
def test_common_mode_behind_transposed_convolutions(kernel, n):
    """A grid in step with the stride saw one phase: common_mode was worse than paired on 8 of 8 chips."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose2d(16, 8, kernel, stride=kernel)).eval()
    images, x = torch.rand(32, 16, n, n), torch.rand(64, 16, n, n)
    chip = nabn.convert_to_noise_aware(net, nabn.presets.GaussianWeightNoisePreset(sigma=0.1))
    errors = {"none": [], "paired": [], "common_mode": []}
    for seed in range(8):
        nabn.program_chip(chip, seed=seed)
        for method, found in errors.items():
            if method != "none":
                nabn.calibrate(chip, list(images.split(8)), method, reference=net)
            with torch.no_grad():
                found.append((chip(x) - net(x)).square().mean().sqrt())
    none, paired, common = (torch.stack(found) for found in errors.values())
    assert common.mean() < paired.mean() < none.mean() and (common < none).all()


@pytest.mark.parametrize("rows_per_sample", [1, 4, 30])
def test_halves_are_made_of_whole_samples(rows_per_sample):
    """Windows of one image lie in the same half, also where batches are cut elsewhere."""
    halves = []
    for sizes in ([6], [1, 2, 3]):
        first, found = 0, []
        for n in sizes:
            shape = torch.Size((n * rows_per_sample, 5, 3))
            places = Positions(shape, -1, first, n, wanted=2)
            samples = torch.arange(first, first + shape[0]) // rows_per_sample
            numbers = samples.view(-1, 1, 1).expand(shape)
            found.append(places.is_second_half(torch.device("cpu")))
            assert torch.equal(found[-1], places.take(numbers)[0] % 2 == 1)
            first += shape[0]
        halves.append(torch.cat(found))
    assert torch.equal(*halves)
