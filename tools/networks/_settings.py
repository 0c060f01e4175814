"""The noise settings of the set, one table."""

from __future__ import annotations

from dataclasses import dataclass

from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.evaluation import Scenario
from aihwkit_nabn.simulator import parse_preset


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A noise setting.

    Attributes:
        preset: As `aihwkit_nabn.simulator.parse_preset` takes it.
        time: After programming.
        networks: Those that are measured at it where no settings are asked for; empty: all.
    """

    preset: str
    time: str = "0s"
    networks: tuple[str, ...] = ()


def _additive(sigma: float, *networks: str, relative_to: str = "max") -> Setting:
    return Setting(preset=f"gaussian:sigma={sigma},relative_to={relative_to}", networks=networks)


_EXACT = "gaussian:sigma=0"  # weights as they are: a converter effect alone

SETTINGS = {
    "additive-0.01": _additive(0.01),
    "additive-0.02": _additive(0.02),
    "additive-0.04": _additive(0.04),
    "additive-0.05": _additive(0.05, "shapes_detector"),
    "additive-0.06": _additive(0.06),
    "additive-0.10": _additive(0.10, "resnet20", "shapes_detector"),
    "column-0.01": _additive(0.01, relative_to="column"),
    "column-0.02": _additive(0.02, relative_to="column"),
    "column-0.04": _additive(0.04, relative_to="column"),
    "column-0.06": _additive(0.06, relative_to="column"),
    "multiplicative-0.1": _additive(0.1, relative_to="weight"),
    "multiplicative-0.2": _additive(0.2, relative_to="weight"),
    "pcm-1d": Setting(preset="pcm", time="1d"),
    "pcm-1y": Setting(preset="pcm", time="1y"),
    "reram_wan-1d": Setting(preset="reram_wan", time="1d"),
    "reram_cmo-1d": Setting(preset="reram_cmo", time="1d"),
    "hermes-1d": Setting(preset="hermes", time="1d"),
    "stuck": Setting(preset="stuck:p_off=0.01"),
    "crossbar-1d": Setting(preset="crossbar", time="1d"),
    "crossbar-mapped-1d": Setting(preset="crossbar:replicate_rows=true,output_range=true", time="1d"),
    "8-bit": Setting(preset=f"{_EXACT},inp_bits=8,out_bits=8"),
    "output-noise": Setting(preset=f"{_EXACT},out_noise=0.04"),
    "read-noise": Setting(preset=f"{_EXACT},w_noise=0.0175"),
    "ir-drop": Setting(preset=f"{_EXACT},ir_drop=1.0"),
}


def build_scenario(key: str) -> Scenario:
    """Return the scenario of a setting.

    Raises:
        UnknownNameError: there is no such setting.
        NabnError: this version has no such noise.
    """
    if key not in SETTINGS:
        raise UnknownNameError("setting", key, SETTINGS)
    setting = SETTINGS[key]
    try:
        return Scenario(name=key, rpu_config=parse_preset(setting.preset), t_inference=setting.time)
    except NabnError as error:
        raise NabnError(f"setting {key!r} ({setting.preset}) is not available in this version: {error}") from error


def settings_of(network: str) -> list[str]:
    """Return the settings that a network is measured at where none are asked for."""
    return [key for key, setting in SETTINGS.items() if not setting.networks or network in setting.networks]
