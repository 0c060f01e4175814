"""Phase-change memory: programming noise, drift and 1/f read noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from aihwkit_nabn.errors import check_number
from aihwkit_nabn.noise.base import State
from aihwkit_nabn.noise.conductance import ScaledNoise
from aihwkit_nabn.noise.registration import register_noise_model

#: Weights are worked on this many at a time: with the scratch space they fit the processor's second-level cache.
_CHUNK = 1 << 16
_ZERO = 1e-7  # aihwkit's smallest weight and smallest relative conductance
_SIGMA = (0.26348 / 25, 1.9650 / 25, -1.1731 / 25)
_T_0_S, _T_READ_S = 20.0, 250e-9


def program_(
    weights: Tensor, exponents: Tensor, generator: torch.Generator, *, prog_scale: float, drift_scale: float
) -> None:
    """Overwrite target weights with programmed ones, and `exponents` with the drift exponents, as in `PCM`.

    Args:
        weights: Contiguous, of one tile, in any unit.
        exponents: The same shape; written only.
        generator: Source of the three normal draws per weight.
        prog_scale: Factor on the programming noise.
        drift_scale: Factor on the exponents.
    """
    unit = _largest(weights)
    flat = weights.view(-1)
    scratch = flat.new_empty(3, min(_CHUNK, flat.numel()))
    signed_unit = flat.new_tensor(unit)
    for w, nu in zip(flat.split(_CHUNK), exponents.view(-1).split(_CHUNK), strict=True):
        target, net, noise = (row[: w.numel()] for row in scratch)
        torch.abs(w, out=target).mul_(1.0 / unit)
        sigma = torch.mul(target, _SIGMA[2], out=nu).add_(_SIGMA[1]).mul_(target).add_(_SIGMA[0])
        _normal_(noise, generator).mul_(sigma)
        torch.add(target, noise, alpha=prog_scale, out=net).clamp_(min=0.0)
        # The other device of the pair, at zero conductance.
        net.sub_(_normal_(noise, generator).clamp_(min=0.0), alpha=prog_scale * _SIGMA[0])
        # Where that one came out stronger it is the one that drifts: its target is 0, below what the fit tells apart.
        torch.minimum(target, torch.mul(net, 1e30, out=noise), out=target).clamp_(min=_ZERO).log_()
        torch.mul(target, -0.0155, out=nu).add_(0.0244).clamp_(0.049, 0.1)
        spread = target.mul_(-0.0125).sub_(0.0059).clamp_(0.008, 0.045)
        nu.addcmul_(spread, _normal_(noise, generator)).abs_().mul_(drift_scale)
        torch.copysign(signed_unit, w, out=w).mul_(net)


def drift_(
    weights: Tensor, exponents: Tensor, t_inference: float, generator: torch.Generator, *, read_scale: float
) -> None:
    """Overwrite programmed weights with those `t_inference` seconds later, read noise included, as in `PCM`.

    Args:
        weights: Contiguous, of one tile, in any unit.
        exponents: What `program_` made; left as they are.
        t_inference: Seconds.
        generator: Source of the normal draw per weight.
        read_scale: Factor on the read noise.
    """
    t = t_inference + _T_0_S
    octaves = math.log2(t / _T_0_S)
    growth = read_scale * math.sqrt(math.log((t + _T_READ_S) / (2 * _T_READ_S)))
    unit = _largest(weights)
    flat = weights.view(-1)
    scratch = flat.new_empty(2, min(_CHUNK, flat.numel()))
    for w, nu in zip(flat.split(_CHUNK), exponents.view(-1).split(_CHUNK), strict=True):
        factor, noise = (row[: w.numel()] for row in scratch)
        torch.abs(w, out=factor).mul_(1.0 / unit).log2_()  # of 0: -inf, which the cap below catches
        spread = factor.mul_(-0.65).add_(math.log2(0.0088)).clamp_(max=math.log2(0.2)).exp2_()
        _normal_(noise, generator).mul_(spread).mul_(growth).add_(1.0).clamp_(min=0.0)
        if octaves > 0.0:
            noise.mul_(torch.mul(nu, -octaves, out=factor).exp2_())
        w.mul_(noise)


def _largest(weights: Tensor) -> float:
    low, high = weights.aminmax()
    return max(-float(low), float(high), _ZERO)


def _normal_(out: Tensor, generator: torch.Generator) -> Tensor:
    return out.normal_(generator=generator)


@register_noise_model("pcm")
class PCM(ScaledNoise):
    """aihwkit's phase-change memory model (Nandakumar et al., ICECS 2019).

    The same distribution of weights as aihwkit's ``PCMLikeNoiseModel``, from fewer draws: of a pair only the device
    that conducts after programming drifts and is read, so one exponent and one read noise per weight are enough.

    One differential pair per weight. With g in uS, ``x = g / g_max`` and N standard normal:

    * programming: ``g_p = max(0, g + s N)``, ``s = (0.26348 + 1.9650 x - 1.1731 x^2) g_max / 25``;
    * drift: ``g_d = g_p ((t + t0) / t0)^-nu``, ``t0 = 20 s``, ``nu = |m + d N|``,
      ``m = clamp(-0.0155 ln x + 0.0244, 0.049, 0.1)``, ``d = clamp(-0.0125 ln x - 0.0059, 0.008, 0.045)``;
    * read: ``g_d (1 + q sqrt(ln((t + t0 + t_r) / (2 t_r))) N)``, ``t_r = 250 ns``,
      ``q = min(0.0088 / max(x^0.65, 0.001), 0.2)``; cut off at 0. It acts at every drift call, at 0 s too.

    Times: 0 s to 10 years. See `ConductanceNoise` for how weights become conductances.

    Args:
        g_max_us: Conductance of the tile's largest weight, in uS; the fit was made at 25. aihwkit scales all noise with
            it, so the noise of the *weights* does not depend on it.
        **options: Factors on the noise (`ScaledNoise`; ``drift_scale`` is one on the exponents), and the options of
            cells (`ConductanceNoise`).

    Raises:
        NabnError: `g_max_us` is not positive, or an option is out of range.
    """

    def __init__(self, g_max_us: float = 25.0, **options: Any) -> None:
        super().__init__(**options)
        self.g_max_us = check_number("g_max_us", g_max_us, exclusive_minimum=0.0)

    def program_devices(self, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, State]:
        """Return the programmed weights, with the drift exponent ``nu`` of the device of each pair that conducts."""
        weights = weights.contiguous()
        exponents = torch.empty_like(weights)
        program_(
            weights,
            exponents,
            generator,
            prog_scale=self.noise_scale * self.prog_noise_scale,
            drift_scale=self.noise_scale * self.drift_scale,
        )
        return weights, {"nu": exponents}

    def drift_devices(self, programmed: Tensor, state: State, t_inference: float, generator: torch.Generator) -> Tensor:
        """Return the weights after drift and accumulated read noise."""
        self.require_state(state, "nu")
        programmed = programmed.contiguous()
        drift_(programmed, state["nu"], t_inference, generator, read_scale=self.noise_scale * self.read_noise_scale)
        return programmed
