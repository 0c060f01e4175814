"""Which forward pass a detector or segmentor is calibrated through: the one that is tested, or one like it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from aihwkit_nabn.calibration.input_ranges import exact_products
from aihwkit_nabn.nn.alignment import OutputAlignment
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm
from aihwkit_nabn.nn.calibration_state import batchnorms
from aihwkit_nabn.nn.calls import unwatched, watched
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.seeding import isolated_rng

TESTED, SHORT = "predict", "tensor"
"""Names that mmengine has for the pass that is tested and for the one without post-processing."""

# What boxes are divided by before masks are pasted: in no time, and without the errors that some networks end in
# (QueryInst) where a poor chip finds things outside the image.
_SHRINK = 1e12

_PASSES: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def calibration_pass(network: nn.Module, data: Any) -> str:
    """Return the name of the pass that a network is calibrated through.

    A chip and its digital model take the same one: what either of them finds in an image may decide whether a layer
    runs at all. `data`, a batch from the `data_preprocessor`, is what a network is tried on the first time.
    """
    if network not in _PASSES:
        known = next((name for other, name in list(_PASSES.items()) if _same_network(network, other)), None)
        _PASSES[network] = known or _choose(network, data)
    return _PASSES[network]


def run_pass(network: Callable[..., Any], data: Any, name: str) -> Any:
    """Call a network on what its `data_preprocessor` made of a batch, without the labels in it.

    What is tested is run image by image, as the standard configs test: some networks fail on a batch in one image of
    which they find nothing (PointRend), and what a chip finds is not known beforehand.
    """
    if name == TESTED and _is_divisible(data):
        return [found for part in _images(data) for found in network(**_unlabelled(part), mode=name)]
    return network(**_unlabelled(data), mode=name) if isinstance(data, dict) else network(*data, mode=name)


def _is_divisible(data: Any) -> bool:
    if not isinstance(data, dict) or set(data) != {"inputs", "data_samples"}:
        return False
    inputs, samples = data["inputs"], data["data_samples"]
    return isinstance(inputs, Tensor) and isinstance(samples, (list, tuple)) and len(inputs) == len(samples)


def _images(data: Any) -> Iterator[dict[str, Any]]:
    for index, sample in enumerate(data["data_samples"]):
        yield {"inputs": data["inputs"][index : index + 1], "data_samples": [sample]}


def _choose(network: nn.Module, data: Any) -> str:
    with _undisturbed(network):
        wanted = _calls(network, data, TESTED)
        try:
            found = _calls(network, data, SHORT)
        except Exception:  # whatever a network says that has no such pass, or one for training only
            return TESTED
    return SHORT if found == wanted else TESTED


def _calls(network: nn.Module, data: Any, name: str) -> Counter[str]:
    """Return how often each layer is called."""
    calls: Counter[str] = Counter()
    with watched(_layers(network), lambda layer, *_: calls.update([layer])):
        # A chip whose noise moves counts what goes through it in a hook, which `forward` alone does not call.
        for part in _images(data) if _is_divisible(data) else [data]:
            run_pass(network.forward, part, name)
    return calls


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that calibration may change; of a digital model all that may become such layers."""
    analog = named_analog_layers(network)
    if analog:
        return {**analog, **batchnorms(network)}
    return {name: module for name, module in network.named_modules() if name and module._parameters}


def _same_network(a: nn.Module, b: nn.Module) -> bool:
    """Whether one is a chip of the other, or both are of the same network."""
    if type(a) is not type(b) or getattr(a, "test_cfg", None) != getattr(b, "test_cfg", None):
        return False
    chips = [model for model in (a, b) if named_analog_layers(model)]
    if not chips:
        return False
    names = set(dict((b if chips[0] is a else a).named_modules()))
    return names.issuperset(named_analog_layers(chips[0]))


def _unlabelled(data: dict[str, Any]) -> dict[str, Any]:
    """Return a batch whose samples are copies without labels, to be predicted on the images as the network gets them.

    Post-processing maps what was found to the original image. That takes time and keys that training pipelines do not
    always give, and no layer runs after it.
    """
    samples, inputs = data.get("data_samples"), data.get("inputs")
    if not isinstance(samples, (list, tuple)):
        return data
    size = tuple(inputs.shape[-2:]) if isinstance(inputs, Tensor) else None
    return {**data, "data_samples": [_copied(sample, size) for sample in samples]}


def _copied(sample: Any, size: tuple[int, ...] | None) -> Any:
    if not isinstance(sample, BaseDataElement):
        return sample
    shape = sample.metainfo.get("img_shape", size)
    border = None if size is None else (0, size[0], 0, size[1])  # that CenterNet takes off its boxes
    given = {"batch_input_shape": size, "pad_shape": size, "img_shape": shape, "border": border, **sample.metainfo}
    given |= {"ori_shape": shape, "scale_factor": (_SHRINK, _SHRINK), "flip": False}
    copied = type(sample)(metainfo={key: value for key, value in given.items() if value is not None})
    copied.set_data({key: value for key, value in sample.items() if not key.startswith(("gt_", "ignored_"))})
    return copied


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Let a network be tried out inside the block: no noise is drawn, and whoever watches it sees nothing."""
    parts = [m for m in network.modules() if isinstance(m, (OutputAlignment, NoiseAwareBatchNorm))]
    kept = [(part, name, getattr(part, name)) for part in parts for name in ("observer", "live") if hasattr(part, name)]
    with torch.no_grad(), unwatched(), exact_products(network), isolated_rng(0):
        try:
            for part, name, _ in kept:
                setattr(part, name, None)
            yield
        finally:
            for part, name, value in kept:
                setattr(part, name, value)
