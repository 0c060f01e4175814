"""Networks without BatchNorm on scikit-learn's digits, trained when they are first asked for (a minute or two)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn
from torch.nn import functional as F
from train_digits import train

from aihwkit_nabn.commands.demo import one_thread
from aihwkit_nabn.data.digits import MAX_SHIFT, load_digits, shift_images
from aihwkit_nabn.data.image_folder import choose
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.files import write_bytes
from aihwkit_nabn.seeding import isolated_rng
from aihwkit_nabn.workloads import CalibrationRequest, Workload
from aihwkit_nabn.workloads._images import MemoryImages
from networks._base import Options
from networks._classifier import classifier

REQUEST = CalibrationRequest(n=64, batch_size=32)


class Enlarged(nn.Module):
    """A network for colour images, ``[N, 3, size, size]``, on grey ones of another size."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, 1, H, W]`` to the network's output."""
        x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        return self.network(x.expand(-1, 3, -1, -1))


def load_digits_network(
    name: str, build: Callable[[], nn.Module], options: Options, *, epochs: int, learning_rate: float
) -> Workload:
    """Return a network on the digits, its weights from ``NAME.safetensors`` beside the results or trained now.

    With ``train`` it is measured on the validation images, which it was not trained on. `build` makes the untrained
    network, which takes ``[N, 1, 8, 8]``.
    """
    path = options.out / "trained" / f"{name}.safetensors"
    images = MemoryImages(data=load_digits("train"), normalise=lambda x: x, augment=shift_images)
    tested = load_digits("val" if options.split == "train" else "test").shuffled(options.seed)
    return classifier(
        _trained(path, build, epochs=epochs, learning_rate=learning_rate),
        calibration=images,
        numbers=choose(len(images.labels), REQUEST.n, options.seed),
        seed=options.seed,
        tested=tested if options.test_images is None else tested.first(options.test_images),
    )


def _trained(path: Path, build: Callable[[], nn.Module], **settings: Any) -> nn.Module:
    with isolated_rng(0), one_thread():
        model = build()
        if not path.is_file():
            train(model, batch_size=64, max_shift=MAX_SHIFT, seed=0, **settings)
            state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
            write_bytes(path, safetensors.torch.save(state))
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise NabnError(f"{path} does not hold this network ({' '.join(str(error).split())}); remove it") from error
    return model.eval()
