"""Devices as they were measured: from rows of a file to the parameters of a noise model; no torch."""

from aihwkit_nabn.devices.curve import Curve
from aihwkit_nabn.devices.fit_file import DeviceFit, read_fit, write_fit
from aihwkit_nabn.devices.fitting import FittedDevice, fit_device
from aihwkit_nabn.devices.measurements import Measurements, read_measurements

__all__ = [
    "Curve",
    "DeviceFit",
    "FittedDevice",
    "Measurements",
    "fit_device",
    "read_fit",
    "read_measurements",
    "write_fit",
]
