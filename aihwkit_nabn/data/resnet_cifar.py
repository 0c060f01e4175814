"""The CIFAR ResNets of He et al. 2016, section 4.2, with shortcuts that have no parameters."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aihwkit_nabn.errors import NabnError, check_count, first_line


class CifarBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm beside a shortcut of "option A".

    The shortcut takes every second pixel where the block halves the image, and fills the new channels with zeros, half
    of them before and half after its input's: `outputs` is `inputs` or more by an even number.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.new_channels = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, H / stride, W / stride]``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(out + F.pad(shortcut, (0, 0, 0, 0, self.new_channels, self.new_channels)))


class CifarResNet(nn.Module):
    """ResNet for 32 x 32 images: a convolution, three stages of 16, 32 and 64 channels, a linear classifier.

    Three blocks per stage make ResNet-20. Its modules are called ``conv1``, ``bn1``, ``layer1`` to ``layer3`` and
    ``linear``, as in the usual checkpoints.
    """

    def __init__(self, blocks: int = 3, classes: int = 10) -> None:
        super().__init__()
        check_count("blocks", blocks, minimum=1)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, check_count("classes", classes, minimum=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images ``[N, 3, 32, 32]`` to logits ``[N, classes]``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean(dim=(2, 3)))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = CifarBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(CifarBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def load_resnet20(path: str | Path) -> CifarResNet:
    """Return ResNet-20 with the weights of a state dict file, in eval mode.

    Raises:
        NabnError: the file is missing, is no checkpoint, or is one of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise NabnError(f"checkpoint {path} does not exist")
    model = CifarResNet(blocks=3)
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch has many errors for files that are not what they should be
        raise NabnError(f"checkpoint {path} is not one of ResNet-20: {first_line(error)}") from error
    return model.eval()
