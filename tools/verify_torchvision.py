"""Compare every classifier of torchvision with its noise-free chip.

``python tools/verify_torchvision.py`` tries all of them, with random weights and on small random images (an hour on two
cores, 12 GB); names on the command line choose some. Prints one line each and ends with 1 if one failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import get_model, get_model_weights, list_models

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn.verification import verification_of

#: Models that are built for one image size; the others take the smaller one.
SIZES = {"vit_h_14": 224, "vit_": 224, "inception": 299, "maxvit": 224, "": 96}


def classifiers() -> list[str]:
    """Return the names of all classifiers, those with few weights first."""
    sizes = {name: get_model_weights(name).DEFAULT.meta["num_params"] for name in list_models(module=models)}
    return sorted(sizes, key=lambda name: sizes[name])


def images_for(name: str) -> Tensor:
    """Return two random images that a model takes."""
    size = next(size for start, size in SIZES.items() if name.startswith(start))
    return torch.randn(2, 3, size, size)


def verified(name: str) -> str:
    """Convert one model, run both, and return what was found.

    Raises:
        NabnError: they do not agree.
    """
    torch.manual_seed(0)
    model = get_model(name, weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    preset = nabn.presets.GaussianWeightNoisePreset(sigma=0.1)
    chip: Any = nabn.convert_to_noise_aware(model, preset, example_inputs=images_for(name))
    return f"{chip.conversion_report.analog_share:.1%} on tiles, {verification_of(chip)}"


def main() -> int:
    """Verify the chosen models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="default: all classifiers")
    failed = 0
    for name in parser.parse_args().names or classifiers():
        begin = time.perf_counter()
        try:
            text = verified(name)
        except NabnError as error:
            failed += 1
            text = f"FAILED: {error}"
        print(f"{name}: {text} [{time.perf_counter() - begin:.0f} s]", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
