"""``tiny:net``: a network of a few exact numbers, the same on every machine, for files that must stay readable."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aihwkit_nabn.workloads import WORKLOADS, LoadSettings, Workload, WorkloadKind
from aihwkit_nabn.workloads._checks import check_text


def exact(*shape: int, step: int) -> Tensor:
    """Return numbers between -1 and 1 that a float holds exactly."""
    n = torch.Size(shape).numel()
    return ((torch.arange(n) * step) % 101 - 50).float().view(shape) / 64


def tiny_network() -> nn.Module:
    """Return a convolution, BatchNorm and a linear layer."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        for step, parameter in enumerate(model.parameters(), start=17):
            parameter.copy_(exact(*parameter.shape, step=step))
    return model.eval()


def tiny_images() -> Tensor:
    """Return eight images."""
    return exact(8, 1, 4, 4, step=37)


def load(name: str, settings: LoadSettings, *, checkpoint: str, data: str) -> Workload:
    """Return the network; what is measured is no accuracy, but tells chips apart."""
    images = tiny_images()
    return Workload(
        model=tiny_network(),
        eval_fn=lambda model: {"mean": float(model(images).mean())},
        calibration=lambda request: [images if request.images == "plain" else images.flip(-1)],
    )


WORKLOADS.register("tiny")(WorkloadKind(load=load, options={"checkpoint": check_text, "data": check_text}, named=True))
