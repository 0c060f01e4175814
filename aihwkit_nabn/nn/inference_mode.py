"""Tensors that stay usable where the caller runs under `torch.inference_mode`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Leave the caller's inference mode, if any, for `torch.no_grad`; also a decorator.

    What is made in inference mode can neither be tuned nor trained later, and does not count its changes.
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
