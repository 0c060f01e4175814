"""Noise-aware layers, the conversion of models to them, and the calibration they carry."""

from aihwkit_nabn.nn.alignment import OutputAlignment
from aihwkit_nabn.nn.attention import NoiseAwareMultiheadAttention, split_attention
from aihwkit_nabn.nn.batchnorm import (
    NoiseAwareBatchNorm,
    NoiseAwareBatchNorm1d,
    NoiseAwareBatchNorm2d,
    NoiseAwareBatchNorm3d,
)
from aihwkit_nabn.nn.calibration_state import (
    CalibrationSnapshot,
    FoldHandle,
    calibration_disabled,
    clear_calibration,
    fold_calibration,
    freeze_calibration,
)
from aihwkit_nabn.nn.calibration_tensors import calibration_tensors, load_calibration_tensors
from aihwkit_nabn.nn.conversion import convert_to_noise_aware, register_analog_form
from aihwkit_nabn.nn.layers import (
    NoiseAwareConv1d,
    NoiseAwareConv2d,
    NoiseAwareConv3d,
    NoiseAwareLayer,
    NoiseAwareLinear,
    named_analog_layers,
)
from aihwkit_nabn.nn.own_forward import NoiseAwareOwnForward
from aihwkit_nabn.nn.own_normalization import NoiseAwareNormalization
from aihwkit_nabn.nn.registration import register, unregister
from aihwkit_nabn.nn.report import ConversionReport, LayerEntry
from aihwkit_nabn.nn.transposed import NoiseAwareConvTranspose1d, NoiseAwareConvTranspose2d, NoiseAwareConvTranspose3d

__all__ = [
    "CalibrationSnapshot",
    "ConversionReport",
    "FoldHandle",
    "LayerEntry",
    "NoiseAwareBatchNorm",
    "NoiseAwareBatchNorm1d",
    "NoiseAwareBatchNorm2d",
    "NoiseAwareBatchNorm3d",
    "NoiseAwareConv1d",
    "NoiseAwareConv2d",
    "NoiseAwareConv3d",
    "NoiseAwareConvTranspose1d",
    "NoiseAwareConvTranspose2d",
    "NoiseAwareConvTranspose3d",
    "NoiseAwareLayer",
    "NoiseAwareLinear",
    "NoiseAwareMultiheadAttention",
    "NoiseAwareNormalization",
    "NoiseAwareOwnForward",
    "OutputAlignment",
    "calibration_disabled",
    "calibration_tensors",
    "clear_calibration",
    "convert_to_noise_aware",
    "fold_calibration",
    "freeze_calibration",
    "load_calibration_tensors",
    "named_analog_layers",
    "register",
    "register_analog_form",
    "split_attention",
    "unregister",
]
