"""Each layer alone on a chip, the others digital: what it disturbs, and what it costs."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from aihwkit_nabn.calibration.batches import batch_size, default_forward
from aihwkit_nabn.calibration.matching import matching_points
from aihwkit_nabn.calibration.session import match_reference
from aihwkit_nabn.chip import set_read_noise_seed
from aihwkit_nabn.evaluation import Scenario
from aihwkit_nabn.evaluation.plan import PlannedMethod
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.nn.attention import split_attention
from aihwkit_nabn.nn.calibration_state import batchnorms
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.nn.reparametrization import copy_model
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.studies.layers import swapped
from aihwkit_nabn.studies.placement.groups import Group, count_multiplications
from aihwkit_nabn.studies.placement.signals import Comparison
from aihwkit_nabn.workloads import CalibrationRequest, Workload

COMPARED = 64
"""Images that single layers are compared on."""


@dataclass(frozen=True, kw_only=True)
class Alone:
    """A layer, or layers that go together, alone on a chip.

    Attributes:
        name: Of the group.
        disagreement: Of the outputs with the digital ones.
        multiplications: In parts of the network's.
        call: Place of its first call among those of all layers.
    """

    name: str
    disagreement: float
    multiplications: float
    call: int


class SingleLayers:
    """Puts one layer after the other on chips that are calibrated as a whole.

    Args:
        workload: Model and images.
        protocol: Converts, programs and calibrates, with every layer on tiles.
        scenario: The noise setting.
        groups: The layers to choose from.
        request: Which images the methods calibrate with; layers are compared on others.
        chip_seed: Of any chip, to count multiplications on.
    """

    def __init__(
        self,
        workload: Workload,
        protocol: EvaluationProtocol,
        scenario: Scenario,
        groups: Iterable[Group],
        request: CalibrationRequest,
        chip_seed: int,
    ) -> None:
        self.protocol, self.scenario, self.groups = protocol, scenario, {group.name: group for group in groups}
        self.analog: Any = protocol.convert(scenario.rpu_config)
        self.layers = named_analog_layers(self.analog)
        with split_attention(copy_model(workload.model)) as split:
            self.twins = match_reference(self.analog, split)  # copies: the reference's own modules stay out of the chip
        forward = workload.forward_fn or default_forward
        batches = _unseen(workload, request)
        modules = dict(workload.model.named_modules())
        points = [name for name in matching_points(self.analog) if name in modules]
        reference_forward = workload.reference_forward_fn or forward
        self.comparison = Comparison(workload.model, batches, forward, reference_forward, points)
        protocol.program(self.analog, scenario, chip_seed)
        with evaluation_mode(self.analog):
            self.costs = count_multiplications(self.analog, functools.partial(forward, self.analog, batches[0]))

    def on_chip(self, chip_seed: int, method: PlannedMethod, names: Iterable[str]) -> Iterator[Alone]:
        """Yield what each of the named groups does on a chip."""
        order, total = list(self.costs), max(sum(self.costs.values()), 1.0)
        self.protocol.program(self.analog, self.scenario, chip_seed)
        with evaluation_mode(self.analog):
            whole = self.protocol.calibrate(self.analog, chip_seed, method)
            # A BatchNorm's statistics of inputs from other layers on the chip are wrong behind digital ones.
            again = any(_is_calibrated(norm) for norm in batchnorms(self.analog).values())
            if again:
                whole.undo()
            for name in names:
                own = self.groups[name].layers
                yield Alone(
                    name=name,
                    disagreement=self._alone(own, chip_seed, method if again else None),
                    multiplications=sum(self.costs[layer] for layer in own) / total,
                    call=min(order.index(layer) for layer in own),
                )
            if not again:
                whole.undo()

    def _alone(self, own: Iterable[str], chip_seed: int, method: PlannedMethod | None) -> float:
        away = [(layer, self.twins[name]) for name, layer in self.layers.items() if name not in own]
        with swapped(self.analog, away):
            report = None if method is None else self.protocol.calibrate(self.analog, chip_seed, method)
            set_read_noise_seed(self.analog, derive_seed(chip_seed, "evaluate"))
            try:
                return self.comparison.disagreement(self.analog)
            finally:
                if report is not None:
                    report.undo()


def _is_calibrated(norm: Any) -> bool:
    return norm.calibrated_mean is not None or norm.live is not None


def _unseen(workload: Workload, request: CalibrationRequest) -> list[Any]:
    """Return calibration images behind those that the methods see; the same ones where there are no others."""
    request = replace(request, images="plain", exact=False)
    seen = list(workload.calibration(request))
    every = seen if request.n is None else list(workload.calibration(replace(request, n=request.n + COMPARED)))
    found: list[Any] = []
    n = 0
    for batch in every[len(seen) :] or seen:
        if n < COMPARED:
            found.append(batch)
            n += batch_size(batch)
    return found
