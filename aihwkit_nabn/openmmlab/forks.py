"""What the maintained forks of OpenMMLab's packages leave undone."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys


def find_mmseg_configs() -> None:
    """Let mmengine find ``mmseg::`` configs in the maintained fork.

    mmengine looks for them in a distribution named mmsegmentation, which the fork is not; by the name of the module it
    finds them. Nothing changes where upstream's package is installed, or none.
    """
    try:
        importlib.metadata.version("mmsegmentation")
    except importlib.metadata.PackageNotFoundError:
        if importlib.util.find_spec("mmseg") is not None:
            from mmengine.config import utils

            utils.MODULE2PACKAGE["mmseg"] = "mmseg"


def mend_ssd_head() -> None:
    """Give mmdet's `SSDHead` the attribute that its own prediction reads and its constructor forgets.

    Without it SSD and SSDLite can be trained but not tested, on a chip or off it. None means: plain softmax scores.
    Nothing is done where mmdet has not been imported.
    """
    heads = sys.modules.get("mmdet.models.dense_heads")
    SSDHead = getattr(heads, "SSDHead", None)
    if SSDHead is not None and not hasattr(SSDHead, "loss_cls"):
        SSDHead.loss_cls = None
