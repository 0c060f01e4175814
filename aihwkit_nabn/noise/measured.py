"""A device as it was measured: the noise model that `nabn fit` writes a file for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from aihwkit_nabn.devices.curve import Curve
from aihwkit_nabn.devices.fit_file import fit_from_json, read_fit
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.noise.base import State
from aihwkit_nabn.noise.conductance import ScaledNoise, join_pair, split_pair, unit_noise
from aihwkit_nabn.noise.registration import register_noise_model

EXAMPLE = Path(__file__).with_name("example_device.json")


def _at(curve: Curve, x: Tensor) -> Tensor:
    return torch.from_numpy(curve(x.double().numpy())).to(x)


@register_noise_model("measured")
class MeasuredNoise(ScaledNoise):
    """Your own device, from measured rows: ``nabn fit measurements.csv`` fits what this model reads.

    One differential pair per weight; the idle device of a pair has the target 0. For a device of target g, with
    ``x = g / g_max`` and N standard normal, and o, s, m, d and r the fitted curves (beyond the measured targets each
    keeps its value at the last of them):

    * programming: ``g_p = max(0, g + o(x) + s(x) N)``, o and s in uS;
    * drift, where it was fitted: ``g_d = g_p (t / t_1)^-nu``, ``nu = m(x) + d(x) N``, from the time t_1 of the first
      reading on; before it the device is as programmed;
    * read noise, where it was fitted: ``g_d (1 + r(x) N)``, cut off at 0. It acts at every drift call, at 0 s too.

    The model holds the fit itself, not the file's name: so do chip files, and results with other numbers are other
    results wherever the file lies. Times: 0 s to 10 years; what lies beyond the last reading is extrapolated.

    Args:
        fit: File that `nabn fit` wrote; its content; or ``"example"``, a made-up device.
        **options: Factors on the noise (`ScaledNoise`; ``prog_noise_scale`` is one on o and s, ``drift_scale`` on m and
            d), and the options of cells (`ConductanceNoise`).

    Raises:
        NabnError: there is no such file, it holds something else, or an option is out of range.
    """

    main_option: ClassVar[str | None] = "fit"
    reads_file: ClassVar[bool] = True

    def __init__(self, fit: str | Path | Mapping[str, Any] = "example", **options: Any) -> None:
        super().__init__(**options)
        if isinstance(fit, Mapping):
            self._device = fit_from_json(fit)
        elif isinstance(fit, (str, Path)):
            self._device = read_fit(EXAMPLE if fit == "example" else fit)
        else:
            raise NabnError(f"fit must be a file that nabn fit wrote, or its content, got {fit!r}")
        self.fit = self._device.to_json()

    @property
    def drifts(self) -> bool:  # type: ignore[override]
        """Whether drift was fitted."""
        return self._device.exponent is not None

    @property
    def changes_with_time(self) -> bool:
        """Whether drift or read noise was fitted."""
        return self.drifts or self._device.read_spread is not None

    def program_devices(self, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, State]:
        """Return the programmed weights, with the conductances of the pairs, ``[2, *shape]``, and their exponents."""
        device, scales = self._device, self.scales()
        us_per_weight = device.g_max_us / weights.abs().amax().clamp(min=1e-7)
        target = split_pair(weights * us_per_weight)
        error = _at(device.offset_us, target / device.g_max_us)
        error += _at(device.spread_us, target / device.g_max_us) * unit_noise(target, generator)
        pair = (target + scales["prog_noise_scale"] * error).clamp(min=0.0)
        state = {"pair_us": pair, "us_per_weight": us_per_weight}
        if device.exponent is not None and device.exponent_spread is not None:
            spread = _at(device.exponent_spread, target / device.g_max_us) * unit_noise(target, generator)
            state["exponent"] = scales["drift_scale"] * (_at(device.exponent, target / device.g_max_us) + spread)
        if device.read_spread is not None:
            state["read_spread"] = scales["read_noise_scale"] * _at(device.read_spread, target / device.g_max_us)
        return join_pair(pair) / us_per_weight, state

    def drift_devices(self, programmed: Tensor, state: State, t_inference: float, generator: torch.Generator) -> Tensor:
        """Return the weights after drift and read noise."""
        self.require_state(state, "pair_us")
        pair = state["pair_us"]
        # The difference is what other effects of a composition have done to the weights since.
        others = programmed - (join_pair(pair) / state["us_per_weight"]).to(programmed)
        if "exponent" in state:
            decades = math.log(max(t_inference / (self._device.first_reading_s or 1.0), 1.0))
            pair = pair * torch.exp(-decades * state["exponent"])
        if "read_spread" in state:
            pair = pair * (1.0 + state["read_spread"] * unit_noise(pair, generator))
        return join_pair(pair) / state["us_per_weight"] + others

    def __str__(self, exclude_keys: list[str] | None = None, keys: list[str] | None = None) -> str:
        return super().__str__(exclude_keys, keys).replace(f"fit={self.fit!r}", f"fit=<{self._device.digest}>")
