"""One pass of the digital model and one of its noise-free chip, compared layer by layer."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.errors import VerificationError
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm
from aihwkit_nabn.nn.comparing import difference
from aihwkit_nabn.nn.keeping import assigned
from aihwkit_nabn.nn.layers import NoiseAwareLayer
from aihwkit_nabn.nn.own_forward import watched_outputs
from aihwkit_nabn.nn.report import LayerEntry
from aihwkit_nabn.nn.weight_watch import WeightWatch
from aihwkit_nabn.simulator.product.tiles import fixed_weight, target_weight

TOLERANCE = 1e-5
"""Largest difference of an output, in parts of its largest value."""


@dataclass
class DigitalPass:
    """One pass of the reference: the outputs of each layer's calls, and which weights were used however it was called.

    Attributes:
        outputs: By layer, call by call, in the order of the first calls.
        used: How many operations each layer's weight went into.
        others: Weights that were multiplied with outside of layers, see `WeightWatch`.
    """

    model: nn.Module
    twins: Mapping[str, nn.Module]
    layers: Mapping[str, nn.Module]
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    used: Counter[str] = field(default_factory=Counter)
    others: tuple[LayerEntry, ...] = ()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note what happens inside the block."""
        names = [name for name in self.layers if name in self.twins]
        watch = WeightWatch(self.model, {name: self.twins[name]._parameters.get("weight") for name in names})

        def seen(name: str, output: Any) -> None:
            self.outputs.setdefault(name, []).append(output.detach().clone() if isinstance(output, Tensor) else output)

        with watched_outputs(self.layers, self.twins, seen), watch:
            yield
        self.used, self.others = watch.used, tuple(watch.others.values())


@dataclass
class ChipPass:
    """One pass of the chip, each layer's outputs held against the reference's and replaced by them.

    Attributes:
        calls: How often each layer ran.
        read: Layers whose weights the network read.
        largest: Largest difference so far.
        unmeasured: Layers whose results say nothing, and why.
    """

    layers: Mapping[str, Any]
    norms: Mapping[str, NoiseAwareBatchNorm]
    expected: DigitalPass
    strict: bool
    calls: Counter[str] = field(default_factory=Counter)
    read: set[str] = field(default_factory=set)
    largest: float = 0.0
    unmeasured: dict[str, str] = field(default_factory=dict)
    compared: int = 0

    @contextmanager
    def comparing(self) -> Iterator[None]:
        """Hold what happens inside the block against the reference's pass."""
        reads = {name: getattr(layer, "weight_reads", 0) for name, layer in self.layers.items()}
        with ExitStack() as stack:
            for name, layer in self.layers.items():
                if isinstance(layer, NoiseAwareLayer):
                    compare = functools.partial(self._compare, name)
                    stack.enter_context(assigned(layer.alignment, "observer", compare))
                    if not stack.enter_context(_noise_free(layer)):
                        self.unmeasured[name] = "the weights to be programmed are not known"
                else:
                    self.unmeasured[name] = "aihwkit's own layer, whose noise cannot be left out"
                    handle = layer.register_forward_hook(lambda _, args, out, name=name: self._compare(name, out))
                    stack.callback(handle.remove)
            for name, norm in self.norms.items():
                stack.enter_context(assigned(norm, "observer", functools.partial(self._note_norm, name)))
            yield
        self.read = {name for name, n in reads.items() if getattr(self.layers[name], "weight_reads", 0) > n}
        self.unmeasured = {name: why for name, why in self.unmeasured.items() if self.calls.get(name)}

    def _note_norm(self, name: str, x: Tensor, bn: NoiseAwareBatchNorm) -> tuple[Tensor, Tensor]:
        self.calls[name] += 1
        return bn.trained_statistics()

    def _compare(self, name: str, output: Tensor, given: object = None) -> Tensor:
        call = self.calls[name]
        self.calls[name] += 1
        outputs = self.expected.outputs.get(name, [])
        if call >= len(outputs):
            return output  # told when all have run
        expected = outputs[call]
        if not isinstance(expected, Tensor) or expected.shape != output.shape:
            shape = tuple(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
            raise VerificationError(
                f"layer {name!r} gives {shape} in the model and {tuple(output.shape)} on the chip: "
                "convert the model again, or pass the reference that was converted"
            )
        if name not in self.unmeasured:
            off = difference(output, expected)
            # NaN is for whoever measures to tell, with the place it came from.
            if not bool(torch.isfinite(output).all()):
                return expected.clone()
            if not off <= TOLERANCE and not self.strict:
                self.unmeasured[name] = "the digital weights have changed since the conversion"
                return expected.clone()
            if not off <= TOLERANCE:
                raise VerificationError(
                    f"layer {name!r} gives another result on the chip without noise than in the model: they differ by "
                    f"{off:.1e} of the output's largest value; if the digital weights have changed since, convert the "
                    "model again"
                )
            self.largest = max(self.largest, off)
            self.compared += bool(output.numel())
        return expected.clone()


@contextmanager
def _noise_free(layer: NoiseAwareLayer) -> Iterator[bool]:
    """Let a layer multiply exactly with the weights that its tiles were to hold; gives whether these are known."""
    matrix = target_weight(layer.analog_module)
    if matrix is None:
        yield False
        return
    with assigned(layer, "exact", True), fixed_weight(layer.analog_module, matrix):
        yield True
