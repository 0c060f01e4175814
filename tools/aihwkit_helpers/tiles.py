"""Kinds of tiles, each with the configuration that makes it; `NAMECuda` is the same on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aihwkit.simulator import configs
from aihwkit.simulator.configs import (
    QuantizedTorchInferenceRPUConfig,
    TorchInferenceRPUConfig,
    compounds,
    devices,
)
from aihwkit.simulator.parameters import IOParameters
from aihwkit.simulator.rpu_base import tiles as compiled
from aihwkit.simulator.tiles.custom import CustomRPUConfig, CustomSimulatorTile
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from aihwkit.simulator.tiles.transfer import TorchTransferTile, TransferSimulatorTile

# The tests import these names from here.
__all__ = ["QuantizedTorchInferenceRPUConfig", "TorchInferenceRPUConfig"]

Make = Callable[[], Any]
SAME_BOUNDS = {"w_max_dtod": 0, "w_min_dtod": 0}  # no variation from device to device


def _device(name: str, **more: Any) -> Make:
    return lambda: configs.SingleRPUConfig(device=getattr(devices, name)(**SAME_BOUNDS, **more))


def _cell(name: str, *inside: str, **options: Any) -> Make:
    def make() -> Any:
        parts = [getattr(devices, part)(**SAME_BOUNDS) for part in inside]
        return configs.UnitCellRPUConfig(device=getattr(compounds, name)(unit_cell_devices=parts, **options))

    return make


def _perfect(make: Make) -> Make:
    def perfect() -> Any:
        config = make()
        config.forward.is_perfect = True
        if hasattr(config, "backward"):
            config.backward.is_perfect = True
        return config

    return perfect


def _torch_transfer() -> Any:
    config = _cell(
        "ChoppedTransferCompound",
        *["SoftBoundsDevice"] * 2,
        in_chop_prob=0.0,
        transfer_forward=IOParameters(is_perfect=True),
        transfer_every=1,
        units_in_mbatch=True,
    )()
    config.tile_class = TorchTransferTile
    return config


def _mixed_precision() -> Any:
    device = devices.SoftBoundsDevice(**SAME_BOUNDS)
    compound = compounds.MixedPrecisionCompound(device=device, transfer_every=1)
    return configs.DigitalRankUpdateRPUConfig(device=compound)


def _learn_out_scaling() -> Any:
    config = configs.InferenceRPUConfig()
    config.mapping.learn_out_scaling = True
    return config


_SOFT = ("SoftBoundsDevice",) * 2
_TRANSFER = {"transfer_forward": IOParameters(is_perfect=True), "transfer_every": 1, "gamma": 0.1}
_EXACT_STEPS = {"dw_min_std": 0.0, "dw_min": 0.0001, "dw_min_dtod": 0.0, "up_down_dtod": 0.0, "w_max": 1.0, "w_min": -1}
# Name: configuration, class of the simulator's tile, first of its hidden parameters.
KINDS: dict[str, tuple[Make, type | str, str | None]] = {
    "FloatingPoint": (configs.FloatingPointRPUConfig, "FloatingPointTile", None),
    "Ideal": (_perfect(lambda: configs.SingleRPUConfig(device=devices.IdealDevice())), "AnalogTile", None),
    "Custom": (_perfect(CustomRPUConfig), CustomSimulatorTile, None),
    "ConstantStep": (_device("ConstantStepDevice", up_down_dtod=0.0), "AnalogTile", "max_bound"),
    "IdealizedConstantStep": (_perfect(_device("ConstantStepDevice", **_EXACT_STEPS)), "AnalogTile", "max_bound"),
    "LinearStep": (_device("LinearStepDevice"), "AnalogTile", "max_bound"),
    "SoftBounds": (_device("SoftBoundsDevice"), "AnalogTile", "max_bound"),
    "SoftBoundsPmax": (_device("SoftBoundsPmaxDevice"), "AnalogTile", "max_bound"),
    "SoftBoundsReference": (_device("SoftBoundsReferenceDevice"), "AnalogTile", "max_bound"),
    "ExpStep": (_device("ExpStepDevice"), "AnalogTile", "max_bound"),
    "PowStep": (_device("PowStepDevice"), "AnalogTile", "max_bound"),
    "PowStepReference": (_device("PowStepReferenceDevice"), "AnalogTile", "max_bound"),
    "PiecewiseStep": (_device("PiecewiseStepDevice"), "AnalogTile", "max_bound"),
    "Vector": (_cell("VectorUnitCell", *["ConstantStepDevice"] * 2), "AnalogTile", "max_bound_0"),
    "Reference": (_cell("ReferenceUnitCell", *_SOFT), "AnalogTile", "max_bound_0"),
    "OneSided": (_cell("OneSidedUnitCell", "ConstantStepDevice"), "AnalogTile", "max_bound_0"),
    "Transfer": (_cell("TransferCompound", *_SOFT, **_TRANSFER), "AnalogTile", "max_bound_0"),
    "BufferedTransfer": (_cell("BufferedTransferCompound", *_SOFT, **_TRANSFER), "AnalogTile", "max_bound_0"),
    "TorchTransfer": (_torch_transfer, TransferSimulatorTile, "max_bound_0"),
    "MixedPrecision": (_mixed_precision, "AnalogTile", "max_bound"),
    "Inference": (_perfect(configs.InferenceRPUConfig), "AnalogTile", None),
    "InferenceLearnOutScaling": (_perfect(_learn_out_scaling), "AnalogTile", None),
    "TorchInference": (_perfect(configs.TorchInferenceRPUConfig), TorchSimulatorTile, None),
    "TorchInferenceIRDropT": (
        _perfect(configs.TorchInferenceRPUConfigIRDropT),
        configs.TorchInferenceRPUConfigIRDropT.simulator_tile_class,
        None,
    ),
    "QuantizedTorchInference": (_perfect(QuantizedTorchInferenceRPUConfig), TorchSimulatorTile, None),
}


def _kind(name: str, make: Make, tile: type | str, hidden: str | None, cuda: bool) -> type:
    def get_rpu_config(self: object) -> Any:
        return make()

    def get_tile(self: Any, out_size: int, in_size: int, rpu_config: Any = None, **kwargs: Any) -> Any:
        config = rpu_config or self.get_rpu_config()
        config.tile_class = make().tile_class
        made = config.tile_class(out_size, in_size, config, **kwargs)
        return made.cuda() if cuda else made

    return type(
        f"{name}Cuda" if cuda else name,
        (),
        {
            "simulator_tile_class": getattr(compiled, f"Cuda{tile}" if cuda else tile, None)
            if isinstance(tile, str)
            else tile,
            "first_hidden_field": hidden,
            "use_cuda": cuda,
            "get_rpu_config": get_rpu_config,
            "get_tile": get_tile,
        },
    )


for _name, _entry in KINDS.items():
    for _cuda in (False, True):
        _made = _kind(_name, *_entry, _cuda)
        globals()[_made.__name__] = _made
