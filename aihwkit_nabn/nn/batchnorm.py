"""Batch normalization that keeps the trained statistics and those of the chip side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn.alignment import adopt_optional_buffers
from aihwkit_nabn.nn.carry_over import carry_over

Statistics = tuple[Tensor, Tensor]


class NoiseAwareBatchNorm(_BatchNorm):
    """BatchNorm over ``[batch, channels, *spatial]`` of any rank, with a second set of statistics for the chip.

    Args are those of `torch.nn.BatchNorm2d`, and a checkpoint of one loads with no missing key: `running_mean` and
    `running_var` stay the trained ones. In training mode it is torch's layer.

    Attributes:
        calibrated_mean: ``[channels]``, the chip's statistics, or None before calibration.
        calibrated_var: ``[channels]``, likewise.
        calibration_enabled: Whether the calibrated statistics are used; the trained ones otherwise.
        live: Called with each input in eval mode and the layer itself, returns the mean and variance to normalise with:
            for statistics that are taken from the batch at hand or follow it (methods ``batch`` and ``online``).
        observer: The same while a calibration runs; goes before everything else.

    Source: noise-aware batch normalization, Tsai et al., arXiv 2007.03230 (abstract).
    """

    calibrated_mean: Tensor | None
    calibrated_var: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("calibrated_mean", None)
        self.register_buffer("calibrated_var", None)
        self.calibration_enabled = True
        self.live: Callable[[Tensor, NoiseAwareBatchNorm], Statistics] | None = None
        self.observer: Callable[[Tensor, NoiseAwareBatchNorm], Statistics] | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise NabnError(f"batch normalization needs [batch, channels, ...], got shape {tuple(input.shape)}")

    @property
    def is_calibrated(self) -> bool:
        """Whether calibrated or live statistics are there."""
        return self.calibrated_mean is not None or self.live is not None

    def trained_statistics(self) -> Statistics:
        """Return the trained mean and variance, each ``[channels]``.

        Raises:
            NabnError: the layer tracks none.
        """
        if self.running_mean is None or self.running_var is None:
            raise NabnError("this batch normalization keeps no trained statistics (track_running_stats=False)")
        return self.running_mean, self.running_var

    def set_calibrated(self, mean: Tensor, var: Tensor) -> None:
        """Take over the chip's statistics, each ``[channels]``; stored in the trained ones' dtype and device.

        Raises:
            NabnError: a shape is wrong, a value is not finite, or a variance is negative.
        """
        like = self.trained_statistics()[0]
        for field, value in (("mean", mean), ("variance", var)):
            if value.shape != (self.num_features,):
                raise NabnError(f"calibrated {field} must have shape ({self.num_features},), got {tuple(value.shape)}")
            if not bool(torch.isfinite(value).all()):
                raise NabnError(f"calibrated {field} must be finite")
        if bool((var < 0).any()):
            raise NabnError("calibrated variance must be >= 0")
        self.calibrated_mean = mean.to(like, copy=True)
        self.calibrated_var = var.to(like, copy=True)

    def reset_calibration(self) -> None:
        """Forget the chip's statistics."""
        self.calibrated_mean = None
        self.calibrated_var = None
        self.live = None

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``[batch, channels, *spatial]`` with the statistics in force."""
        if self.training or self.running_mean is None:
            return super().forward(input)
        self._check_input_dim(input)
        return self._normalized(input, self.weight, self.bias, self.eps)

    def _normalized(self, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """Normalise with the statistics in force, then scale and shift."""
        if self.observer is not None:
            mean, var = self.observer(input, self)
        elif self.calibration_enabled and self.live is not None:
            mean, var = self.live(input, self)
        elif self.calibration_enabled and self.calibrated_mean is not None and self.calibrated_var is not None:
            mean, var = self.calibrated_mean, self.calibrated_var
        else:
            mean, var = self.trained_statistics()
        if eps > 0:
            return F.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)
        return _without_eps(input, mean, var, weight, bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        adopt_optional_buffers(self, ("calibrated_mean", "calibrated_var"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @classmethod
    def from_digital(
        cls, module: Any, rpu_config: object = None, tile_module_class: object = None
    ) -> NoiseAwareBatchNorm:
        """Return the noise-aware form of a BatchNorm, SyncBatchNorm or frozen BatchNorm; values and hooks are copied.

        `rpu_config` and `tile_module_class` are there for aihwkit's ``convert_to_analog`` and not used.
        """
        mean = getattr(module, "running_mean", None)
        weight = getattr(module, "weight", None)
        frozen = weight is not None and not isinstance(weight, nn.Parameter)
        n_channels = getattr(module, "num_features", None)
        if n_channels is None:
            n_channels = len(next(t for t in (mean, weight) if t is not None))
        like = next((t for t in (mean, weight) if t is not None), torch.empty(0))
        new = cls(
            n_channels,
            eps=getattr(module, "eps", 1e-5),
            momentum=getattr(module, "momentum", 0.1),
            affine=weight is not None,
            track_running_stats=mean is not None,
            device=like.device,
            dtype=like.dtype,
        )
        state = {key: value for key, value in module.state_dict().items() if key in new.state_dict()}
        new.load_state_dict(state, strict=False)
        for name, parameter in list(new.named_parameters()):
            own = getattr(module, name, None)
            if own is None:
                new.register_parameter(name, None)
            else:
                parameter.requires_grad_(not frozen and own.requires_grad)
        carry_over(module, new)
        return new.train(module.training)

    @classmethod
    def to_digital(cls, module: NoiseAwareBatchNorm, realistic: bool = False) -> nn.Module:
        """Return torch's BatchNorm with the statistics in force (calibrated ones where there are any)."""
        torch_class = next((c for c in (nn.BatchNorm1d, nn.BatchNorm3d) if isinstance(module, c)), nn.BatchNorm2d)
        new = torch_class(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        state = module.state_dict()
        mean, var = state.pop("calibrated_mean", None), state.pop("calibrated_var", None)
        if mean is not None and module.calibration_enabled:
            state.update(running_mean=mean, running_var=var)
        new.to(next((value for value in state.values() if value.is_floating_point()), torch.empty(0)))
        new.load_state_dict(state)
        return new.train(module.training)


def _without_eps(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Normalise with the bare variance, as frozen layers with ``eps=0`` do; torch's own function refuses that."""
    scale = var.rsqrt() if weight is None else weight * var.rsqrt()
    offset = -mean * scale if bias is None else bias - mean * scale
    shape = (1, -1, *(1,) * (x.dim() - 2))
    return x * scale.view(shape) + offset.view(shape)


class NoiseAwareBatchNorm1d(NoiseAwareBatchNorm, nn.BatchNorm1d):
    """`NoiseAwareBatchNorm` for ``[batch, channels]`` or ``[batch, channels, length]``."""

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class NoiseAwareBatchNorm2d(NoiseAwareBatchNorm, nn.BatchNorm2d):
    """`NoiseAwareBatchNorm` for ``[batch, channels, height, width]``."""

    _check_input_dim = nn.BatchNorm2d._check_input_dim


class NoiseAwareBatchNorm3d(NoiseAwareBatchNorm, nn.BatchNorm3d):
    """`NoiseAwareBatchNorm` for ``[batch, channels, depth, height, width]``."""

    _check_input_dim = nn.BatchNorm3d._check_input_dim
