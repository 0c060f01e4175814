"""Copying a model before it is converted."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import ConversionError


def test_models_that_cannot_be_copied_get_one_line() -> None:
    rpu = nabn.presets.GaussianWeightNoisePreset(sigma=0.1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Linear(4, 2))).eval()
    model[1].lock = threading.Lock()
    with pytest.raises(ConversionError, match=r"cannot be copied: attribute '1.lock', a lock: cannot pickle"):
        nabn.convert_to_noise_aware(model, rpu)
    with torch.device("meta"):
        empty = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ConversionError, match="'0.weight' is on the meta device and has no values"):
        nabn.convert_to_noise_aware(empty.eval(), rpu)
