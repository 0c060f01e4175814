"""mmcv's operators on torchvision's and plain torch, for where mmcv is not compiled.

These are the functions of `mmcv._ext` that models of mmdetection and mmsegmentation call, with mmcv's own signatures:
results are written into tensors that the caller made. They run on CPU and GPU, in double, single and half precision.
Every other name exists too, and when called says how to have it. `finder` makes this package `mmcv._ext`, so its
modules import each other relatively and nothing of OpenMMLab.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torchvision

from .attention import ms_deform_attn_backward, ms_deform_attn_forward
from .deformable import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from .focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from .masks import masked_col2im_forward, masked_im2col_forward, psamask_backward, psamask_forward
from .missing import refusal
from .rois import (
    deform_roi_pool_backward,
    deform_roi_pool_forward,
    roi_align_backward,
    roi_align_forward,
    roi_pool_backward,
    roi_pool_forward,
)
from .suppression import line_nms_forward, nms, nms_match, softnms
from .sync_bn import (
    sync_bn_backward_data,
    sync_bn_backward_param,
    sync_bn_forward_mean,
    sync_bn_forward_output,
    sync_bn_forward_var,
)
from .upsampling import carafe_backward, carafe_forward, carafe_naive_backward, carafe_naive_forward


def get_compiler_version() -> str:
    """Return what mmcv's report on its environment shows for the compiler."""
    return f"none: operators of aihwkit_nabn on torchvision {torchvision.__version__}"


def get_compiling_cuda_version() -> str:
    """Return what mmcv's report on its environment shows for the CUDA compiler."""
    return "not available"


__all__ = [
    "carafe_backward",
    "carafe_forward",
    "carafe_naive_backward",
    "carafe_naive_forward",
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "deform_roi_pool_backward",
    "deform_roi_pool_forward",
    "get_compiler_version",
    "get_compiling_cuda_version",
    "line_nms_forward",
    "masked_col2im_forward",
    "masked_im2col_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
    "nms",
    "nms_match",
    "psamask_backward",
    "psamask_forward",
    "roi_align_backward",
    "roi_align_forward",
    "roi_pool_backward",
    "roi_pool_forward",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softmax_focal_loss_backward",
    "softmax_focal_loss_forward",
    "softnms",
    "sync_bn_backward_data",
    "sync_bn_backward_param",
    "sync_bn_forward_mean",
    "sync_bn_forward_output",
    "sync_bn_forward_var",
]


# What is compiled breaks the graph of torch.compile, and so does this. Followed into these functions, which write into
# tensors they are given, it would lose the gradients.
for _name in __all__:
    _opaque = torch.compiler.disable(globals()[_name])
    globals()[_name] = _opaque
    setattr(sys.modules[_opaque.__module__], _name, _opaque)  # where pickle looks for it


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return refusal(name)
