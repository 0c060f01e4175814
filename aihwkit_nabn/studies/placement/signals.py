"""How far a network with one layer on the chip is from the digital one, without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.calibration.batches import tensors_in
from aihwkit_nabn.calibration.matching import relative_error
from aihwkit_nabn.nn.calls import watched

Signals = list[Tensor]


class Comparison:
    """Compares networks on a few batches by what they return; by their blocks' outputs where that is no tensors.

    Args:
        model: The digital network.
        batches: Unlabelled images.
        forward: Runs a network on a batch.
        reference_forward: Runs the digital network on a batch.
        points: Names of the modules whose outputs stand in where a network returns objects, such as detections.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        forward: Callable[[nn.Module, Any], Any],
        reference_forward: Callable[[nn.Module, Any], Any],
        points: Iterable[str],
    ) -> None:
        self.batches, self.forward, self.points = batches, forward, list(points)
        self.by_blocks = False
        with torch.no_grad():
            outputs = [reference_forward(model, batch) for batch in batches]
            self.by_blocks = not all(_is_tensors(output) for output in outputs)
            if self.by_blocks:
                self.expected = [self._signals(model, batch, reference_forward) for batch in batches]
            else:
                self.expected = [_floats(output) for output in outputs]

    def disagreement(self, network: nn.Module) -> float:
        """Return the squared difference in parts of the digital signals' variance, at most 1 each, their mean."""
        errors = []
        with torch.no_grad():
            for batch, expected in zip(self.batches, self.expected, strict=True):
                got = self._signals(network, batch, self.forward)
                if len(got) != len(expected):
                    errors.append(1.0)
                    continue
                found = [relative_error(y, target) for y, target in zip(got, expected, strict=True)]
                known = [min(1.0, float(error)) for error in found if error is not None]
                errors += [sum(known) / len(known)] if known else []
        return sum(errors) / len(errors) if errors else 0.0

    def _signals(self, network: nn.Module, batch: Any, forward: Callable[[nn.Module, Any], Any]) -> Signals:
        if not self.by_blocks:
            return _floats(forward(network, batch))
        modules = dict(network.named_modules())
        seen: Signals = []

        def keep(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            seen.extend(_floats(output))

        with watched({name: modules[name] for name in self.points if name in modules}, keep):
            forward(network, batch)
        return seen


def _floats(output: Any) -> Signals:
    return [y.detach().clone() for y in tensors_in(output) if y.is_floating_point()]


def _is_tensors(output: Any) -> bool:
    if isinstance(output, Mapping):
        return bool(output) and all(_is_tensors(part) for part in output.values())
    if isinstance(output, (list, tuple)):
        return bool(output) and all(_is_tensors(part) for part in output)
    return isinstance(output, Tensor)
