"""Where in a network the chip is held against the reference: the outputs of its blocks."""

from __future__ import annotations

from torch import nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from aihwkit_nabn.nn.layers import named_analog_layers

# A block holds at most this many analog layers; larger modules are whole stages, necks or heads.
_LARGEST_BLOCK = 8
# What these return is found in the image: other boxes, in another order, on another chip.
_FINDING = (RegionProposalNetwork, RoIHeads)


def matching_points(model: nn.Module) -> list[str]:
    """Return the names of the modules whose outputs stand for the network's inner signals.

    Blocks: modules of a class of their own (not a plain Sequential or list) with a few analog layers inside and not
    within another block: a residual block, a ConvModule, a transformer layer. Analog layers outside every block are
    points themselves, so that each analog layer acts on at least one point. Behind normalization, shortcut and
    activation a block's output tells what the rest of the network sees, which the layers' raw outputs do not.
    """
    layers = set(named_analog_layers(model))
    points: list[str] = []
    _visit(model, "", layers, points)
    return points


def _visit(module: nn.Module, name: str, layers: set[str], points: list[str]) -> None:
    if name in layers:
        points.append(name)
        return
    inside = sum(layer.startswith(f"{name}.") for layer in layers) if name else len(layers)
    if not inside:
        return
    plain = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict, *_FINDING))
    if name and not plain and inside <= _LARGEST_BLOCK:
        points.append(name)
        return
    for child_name, child in module.named_children():
        _visit(child, f"{name}.{child_name}" if name else child_name, layers, points)
