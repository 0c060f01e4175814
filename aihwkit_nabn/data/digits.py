"""The demo task: scikit-learn's digits, 1,797 real scans of 8 x 8 pixels, and a small network that reads them.

The scans are part of scikit-learn (from the UCI "Optical Recognition of Handwritten Digits" set), so nothing is
downloaded. The checkpoint beside this file was trained by ``tools/train_digits.py``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from aihwkit_nabn.data.classification import ImageSet, cropped_at_random
from aihwkit_nabn.data.weights import fill_model, read_checkpoint
from aihwkit_nabn.errors import NabnError, suggestion
from aihwkit_nabn.seeding import check_seed

CHECKPOINT = Path(__file__).parent / "checkpoints" / "digits.safetensors"
CLASSES = 10
MAX_SHIFT = 2  # pixels

# Of every twenty images of a class, in the data set's order (which goes from writer to writer), these go to test and
# to validation. A rule and no random numbers: the split is the same with every version of every library.
_TEST = (3, 7, 11, 15, 19)
_VAL = (1, 8, 14)
SPLITS = ("train", "val", "test")


def load_digits(split: str) -> ImageSet:
    """Return one part of the digits: ``train`` (about 60%), ``val`` (15%) or ``test`` (25%), equal in every class.

    ``val`` is for choosing training settings, ``train`` gives the calibration images; nothing is chosen on ``test``.

    Returns:
        Images ``[N, 1, 8, 8]`` in [0, 1], black 0, and labels 0 to 9.

    Raises:
        NabnError: `split` is none of the three.
    """
    if split not in SPLITS:
        raise NabnError(f"split must be one of {', '.join(SPLITS)}, got {split!r}{suggestion(split, SPLITS)}")
    from sklearn.datasets import load_digits as load_sklearn_digits

    data = load_sklearn_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16.0
    labels = torch.tensor(data.target, dtype=torch.int64)
    place = torch.empty_like(labels)
    for digit in range(CLASSES):
        of_class = labels == digit
        place[of_class] = torch.arange(int(of_class.sum())) % 20
    in_test = torch.isin(place, torch.tensor(_TEST))
    in_val = torch.isin(place, torch.tensor(_VAL))
    keep = {"test": in_test, "val": in_val, "train": ~(in_test | in_val)}[split]
    return ImageSet(images=images[keep], labels=labels[keep])


def shift_images(images: Tensor, *, max_shift: int = MAX_SHIFT, seed: int = 0) -> Tensor:
    """Move each image by its own random whole number of pixels, filling with black: the training augmentation.

    Args:
        images: ``[N, C, H, W]`` with black as 0.
        max_shift: Largest shift in pixels, to each side.
        seed: Fixes the shifts.

    Returns:
        The shifted images, of the same shape.
    """
    return cropped_at_random(images, max_shift, torch.Generator().manual_seed(check_seed("seed", seed)))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each with BatchNorm, beside a shortcut; its first convolution has the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, H / stride, W / stride]``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """A small residual network for 8 x 8 images: six convolutions, each with BatchNorm, and a linear classifier.

    Args:
        width: Channels of the first half; the second half has twice as many.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.block1 = ResidualBlock(width, width)
        self.block2 = ResidualBlock(width, 2 * width, stride=2)
        self.linear = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, 1, 8, 8]`` in [0, 1] to logits ``[N, 10]``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.block2(self.block1(out))
        return self.linear(out.mean(dim=(2, 3)))


def load_demo_model(path: str | Path | None = None) -> DigitsNet:
    """Return the trained network, in eval mode; from the checkpoint that comes with the package if no other is given.

    Raises:
        NabnError: the file is missing, is no safetensors file, or holds another network.
    """
    path = CHECKPOINT if path is None else Path(path)
    if not path.is_file():
        raise NabnError(f"demo checkpoint {path} does not exist; tools/train_digits.py writes it")
    model = DigitsNet()
    fill_model(model, read_checkpoint(path), f"demo checkpoint {path}")
    return model.eval()
