"""mmcv's operators on torchvision's and plain torch, for where mmcv is not compiled.

These are the functions of `mmcv._ext` that models of mmdetection and mmsegmentation call, with mmcv's own signatures:
results are written into tensors that the caller made. They run on CPU and GPU, in double, single and half precision.
Every other name exists too, and when called says how to have it. `finder` makes this package `mmcv._ext`, so its
modules import each other relatively and nothing of OpenMMLab.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
import torchvision

from . import attention, deformable, focal_loss, masks, rois, suppression, sync_bn, upsampling
from .missing import refusal


def get_compiler_version() -> str:
    """Return what mmcv's report on its environment shows for the compiler."""
    return f"none: operators of aihwkit_nabn on torchvision {torchvision.__version__}"


def get_compiling_cuda_version() -> str:
    """Return what mmcv's report on its environment shows for the CUDA compiler."""
    return "not available"


# Compiled operators break the graph of torch.compile, and so do these. Traced into these functions, which write into
# tensors they are given, it would lose the gradients.
__all__: list[str] = []
for _home in (attention, deformable, focal_loss, masks, rois, suppression, sync_bn, upsampling, sys.modules[__name__]):
    for _name, _function in list(vars(_home).items()):
        if inspect.isfunction(_function) and _function.__module__ == _home.__name__ and not _name.startswith("_"):
            globals()[_name] = torch.compiler.disable(_function)
            setattr(_home, _name, globals()[_name])  # where pickle looks for it
            __all__.append(_name)


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return refusal(name)
