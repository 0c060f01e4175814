"""Subclasses of torch's layers with a forward pass of their own: around the plain operation, and others."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StaticSame(nn.Conv2d):
    """Pads by a child of its own, as EfficientNet's layers for one image size do."""

    def __init__(self, *args, pads=(0, 1, 0, 1), **options) -> None:
        super().__init__(*args, **options)
        self.static_padding = nn.ZeroPad2d(pads)

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class DynamicSame(nn.Conv2d):
    """Pads by the size of its input, so that the output has a stride-th of it, rounded up."""

    def pads(self, x: Tensor) -> list[int]:
        found: list[int] = []
        for size, kernel, step, gap in zip(
            x.shape[-2:], self.weight.size()[-2:], self.stride, self.dilation, strict=True
        ):
            missing = max((math.ceil(size / step) - 1) * step + (kernel - 1) * gap + 1 - size, 0)
            found = [missing // 2, missing - missing // 2, *found]
        return found

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.pads(x)))


class DynamicSameByKeyword(DynamicSame):
    def forward(self, x: Tensor) -> Tensor:
        return torch.conv2d(
            weight=self.weight.to(x.dtype),
            input=F.pad(x, self.pads(x)),
            groups=self.groups,
            stride=list(self.stride),
            dilation=self.dilation[0],
            bias=self.bias,
        )


class Reflecting(nn.Conv2d):
    """Pads in its own way behind torch's forward pass."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(F.pad(x, (2, 1, 0, 2), mode="reflect"), weight, bias)


class OtherGeometry(nn.Conv2d):
    """Its attributes say nothing of what it does."""

    def forward(self, x: Tensor) -> Tensor:
        convolve = functools.partial(F.conv2d, stride=(2, 1), padding="valid", dilation=2)
        return convolve(x, self.weight, bias=self.bias)


class BiasBehind(nn.Conv2d):
    """Adds its bias by itself, then goes on with the output."""

    def forward(self, x: Tensor) -> Tensor:
        out = self._conv_forward(x, self.weight, None)
        return F.gelu(out * 2 + self.bias.view(-1, 1, 1)).flip(1)


class OwnBias(nn.Conv2d):
    """Its bias is computed, and another parameter of its own takes part."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.full((self.in_channels, 1, 1), 1.5))
        self.register_buffer("shift", torch.full((1,), 0.25), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x * self.gain, self.weight, self.bias * 2 + self.shift)


class TwoOutputs(nn.Conv2d):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = super().forward(x)
        return {"out": out, "pooled": out.mean((2, 3))}


class BothWays(nn.Conv2d):
    """The same product twice."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(x.flip(-1)).flip(-1)


class Pooled(nn.Linear):
    """Takes the mean over tokens first."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.mean(dim=1))


class Standardised(nn.Conv2d):
    """Weight standardisation, by arithmetic."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StandardisedByNorm(DynamicSame):
    """Weight standardisation, by batch normalization, with a gain of its own."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, self.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, self.gain, training=True, eps=1e-6).reshape_as(self.weight)
        return self._conv_forward(F.pad(x, self.pads(x)), weight, self.bias)


class Upsampling(nn.ConvTranspose2d):
    """Cuts off what hangs over."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.conv_transpose2d(x, self.weight, self.bias, self.stride, groups=self.groups, dilation=self.dilation)
        return out[..., : x.shape[-2] * self.stride[0], : x.shape[-1] * self.stride[1]]


class Causal(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class WithNorm(nn.Conv2d):
    """Holds layers of its own."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.before = nn.Conv2d(self.in_channels, self.in_channels, 1)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(self.before(x)))


# Each with a shape of its input.
AROUND: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "static same": (lambda: StaticSame(3, 8, 3, stride=2), (2, 3, 16, 16)),
    "static same, depthwise": (lambda: StaticSame(4, 4, 5, stride=2, groups=4, bias=False, pads=2), (2, 4, 15, 18)),
    "dynamic same": (lambda: DynamicSame(3, 6, (3, 5), stride=(2, 3)), (2, 3, 11, 16)),
    "dynamic same, tiny": (lambda: DynamicSame(3, 6, 5, stride=2, dilation=2), (1, 3, 1, 3)),
    "by keyword": (lambda: DynamicSameByKeyword(4, 6, 3, stride=2, groups=2), (2, 4, 8, 9)),
    "reflecting": (lambda: Reflecting(3, 4, 3, stride=2, bias=False), (2, 3, 9, 8)),
    "other geometry": (lambda: OtherGeometry(3, 4, 3, padding=4), (2, 3, 9, 8)),
    "bias behind": (lambda: BiasBehind(3, 4, 3), (2, 3, 9, 8)),
    "own bias": (lambda: OwnBias(3, 4, 3), (2, 3, 9, 8)),
    "two outputs": (lambda: TwoOutputs(3, 4, 3), (2, 3, 9, 8)),
    "both ways": (lambda: BothWays(3, 4, 3), (2, 3, 9, 8)),
    "pooled": (lambda: Pooled(6, 4), (3, 5, 6)),
    "standardised": (lambda: Standardised(3, 4, 3), (2, 3, 9, 8)),
    "standardised by norm": (lambda: StandardisedByNorm(3, 4, 3, stride=2), (2, 3, 9, 8)),
    "upsampling": (lambda: Upsampling(4, 6, 3, stride=2, groups=2), (2, 4, 5, 6)),
    "causal": (lambda: Causal(3, 4, 3, dilation=2), (2, 3, 4)),
    "with norm": (lambda: WithNorm(3, 4, 3), (2, 3, 9, 8)),
}


class Multiplied(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight.t()) + self.bias


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight.norm()


class TwoSizes(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        wide = F.conv2d(x, self.weight, self.bias, padding=2, dilation=2)
        return super().forward(F.pad(x, (1, 1, 1, 1))) + wide


class ByTheInput(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * x.mean().sigmoid(), self.bias)


class Choosing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(self.weight.sum()) > -1e9 else x


class Turned(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight)


class AsItsOwnInput(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.weight, x).t()


class Merged(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.repeat(2, 1, 1, 1))


class BiasTwice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


class Written(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, torch.zeros_like(x)], -1)
        x[..., x.shape[-1] // 2 :] = self.weight.mean()
        return super().forward(x[..., : x.shape[-1] // 2] + x[..., x.shape[-1] // 2 :])


class Called(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 2)


class NamedAsOurs(nn.Linear):
    alignment = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.alignment)


class AttributeNamedAsOurs(nn.Linear):
    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.exact = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.exact)


class TwoArguments(nn.Linear):
    def forward(self, x: Tensor, scale: float) -> Tensor:
        return super().forward(x) * scale


# Each with what is said of it.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "multiplied": (lambda: Multiplied(4, 3), "uses the weight for more than torch.nn.functional.linear"),
    "scaled": (lambda: Scaled(4, 3), "uses the weight for more than torch.nn.functional.linear"),
    "two sizes": (lambda: TwoSizes(2, 3, 3), "with its weight twice, in different geometry"),
    "by the input": (lambda: ByTheInput(2, 3, 3), "a weight that depends on the input"),
    "choosing": (lambda: Choosing(4, 3), "looks at values of the weight"),
    "turned": (lambda: Turned(3, 3, 3), "uses the weight for more than torch.nn.functional.conv2d"),
    "as its own input": (lambda: AsItsOwnInput(4, 3), "as the input or bias of torch.nn.functional.linear"),
    "merged": (lambda: Merged(2, 3, 3), r"makes a weight of shape \(6, 2, 3, 3\) of \(3, 2, 3, 3\)"),
    "bias twice": (lambda: BiasTwice(4, 3), "uses the bias for more than"),
    "written": (lambda: Written(4, 3), "computes something different|never gives"),
    "called": (lambda: Called(4, 3), "a __call__ of its own"),
    "named as ours": (lambda: NamedAsOurs(4, 3), "attribute 'alignment' has a name that NoiseAwareOwnForward uses"),
    "attribute named as ours": (lambda: AttributeNamedAsOurs(4, 3), "attribute 'exact' has a name"),
    "two arguments": (lambda: TwoArguments(4, 3), "forward pass failed on a trial input"),
}
