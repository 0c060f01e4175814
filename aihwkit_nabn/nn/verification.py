"""Does the analog model compute what the digital one does? Both are run on the same inputs, the chip without noise."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from aihwkit_nabn.errors import VerificationError
from aihwkit_nabn.nn.attention import split_attention
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.nn.moment import ChipMoment
from aihwkit_nabn.nn.own_forward import watched_outputs
from aihwkit_nabn.seeding import isolated_rng
from aihwkit_nabn.simulator.tiles import fixed_weight, target_weight

# Largest difference of an output, in parts of its largest value.
_TOLERANCE = 1e-5
_ELSEWHERE = (
    "the network reaches it by another way than its module tree (a closure, a kept method, a wrapped forward), which "
    "holds the digital layer"
)


@dataclass(frozen=True)
class Verification:
    """What a noise-free pass has shown.

    Args:
        n_layers: Analog layers that ran and gave what the digital ones gave.
        largest: Largest difference of an output, in parts of the output's largest value.
        inputs: What was put in.
        silent: Layers that did not run, in neither model.
        unmeasured: Layers that ran, but whose results were not compared: aihwkit's own, and those whose digital weights
            have changed since the conversion.
    """

    n_layers: int
    largest: float
    inputs: str
    silent: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"verified on {self.inputs}: {self.n_layers} layers give what the digital ones give"
        text += f" (largest difference {self.largest:.1e} of an output's largest value)"
        for names, what in ((self.silent, "did not run"), (self.unmeasured, "ran, their results not compared")):
            if names:
                text += f"; {len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        return text


# The digital model of each converted one, as long as both are there.
_REFERENCES: WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = WeakKeyDictionary()


def remember_reference(analog: nn.Module, reference: nn.Module) -> None:
    """Note which digital model an analog one was made of."""
    _REFERENCES[analog] = weakref.ref(reference)


def reference_of(analog: nn.Module) -> nn.Module | None:
    """Return the digital model that an analog one was made of, if it is still there."""
    found = _REFERENCES.get(analog)
    return None if found is None else found()


def verification_of(analog: nn.Module) -> Verification | None:
    """Return what has been shown of an analog model so far; None: nothing."""
    found: Verification | None = analog.__dict__.get("verification")
    return found


@torch.no_grad()
def verify(
    reference: nn.Module,
    analog: nn.Module,
    run: Callable[[nn.Module], Any],
    inputs: str,
    *,
    strict: bool = True,
) -> Verification:
    """Run both models on the same inputs, the chip with the weights that were to be programmed and without converters.

    Every analog layer's outputs are held against the digital layer's, call by call, and the digital ones go on, so that
    the rounding of one layer cannot be taken for a fault of another. Which layers ran must agree, and what the models
    return.

    Args:
        reference: The digital model in eval mode.
        analog: Its conversion in eval mode, programmed or not; comes out as it was, but for what is noted on it.
        run: ``run(model)`` runs a model on the inputs.
        inputs: What these are, for the report.
        strict: Whether the values must agree. Not where the digital model may have changed since its conversion: then
            only which layers ran and the shapes must.

    Returns:
        What was found; also noted on the analog model and in its `conversion_report`.

    Raises:
        VerificationError: a layer ran in one of the two only, or gives something else; the layer is named.
    """
    layers = {name: layer for name, layer in named_analog_layers(analog).items()}
    norms = {name: m for name, m in analog.named_modules() if isinstance(m, NoiseAwareBatchNorm)}
    with split_attention(reference) as split:
        twins = dict(split.named_modules())
        expected = _Digital({name: twins[name] for name in (*layers, *norms) if name in twins}, layers)
        with isolated_rng(0), expected.recording():
            digital_result = run(split)
    moment = ChipMoment.take(analog)
    got = _OnChip(layers, norms, expected, strict)
    try:
        with isolated_rng(0), got.comparing():
            analog_result = run(analog)
    finally:
        moment.restore()
    _compare_runs(reference, expected, got)
    apart = _compare_results(digital_result, analog_result) if strict and not got.read else 0.0
    largest = max(got.largest, apart)
    ran = [name for name in layers if got.calls.get(name)]
    found = Verification(
        n_layers=len(ran) - len(got.unmeasured),
        largest=largest,
        inputs=inputs,
        silent=tuple(name for name in layers if not got.calls.get(name) and name not in expected.used),
        unmeasured=tuple(got.unmeasured),
    )
    analog.__dict__["verification"] = found
    report: Any = getattr(analog, "conversion_report", None)
    if report is not None:
        report.verified = str(found)
    return found


@dataclass
class _Digital:
    """One pass of the reference: the outputs of each layer's calls, and which weights were used however it was called.

    Attributes:
        outputs: By layer, call by call, in the order of the first calls.
        used: Layers whose weight went into an operation.
    """

    twins: Mapping[str, nn.Module]
    layers: Mapping[str, nn.Module]
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    @contextmanager
    def recording(self) -> Iterator[None]:
        found = {name: twin._parameters.get("weight") for name, twin in self.twins.items()}
        weights = {id(weight): name for name, weight in found.items() if weight is not None}

        def seen(name: str, output: Any) -> None:
            self.outputs.setdefault(name, []).append(output.detach().clone() if isinstance(output, Tensor) else output)

        with watched_outputs(self.layers, self.twins, seen), _Uses(weights, self.used):
            yield


class _Uses(TorchFunctionMode):
    """Notes which weights operations are given; a layer's own call is only one way to use them."""

    def __init__(self, weights: Mapping[int, str], used: set[str]) -> None:
        super().__init__()
        self.weights, self.used = weights, used

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") != "__get__":
            self.used.update(self.weights[id(a)] for a in (*args, *kwargs.values()) if id(a) in self.weights)
        return func(*args, **kwargs)


@dataclass
class _OnChip:
    """One pass of the chip, each layer's outputs held against the reference's and replaced by them.

    Attributes:
        calls: How often each layer ran.
        read: Layers whose weights the network read.
        largest: Largest difference so far.
        unmeasured: Layers whose noise-free results are not to be had.
    """

    layers: Mapping[str, Any]
    norms: Mapping[str, NoiseAwareBatchNorm]
    expected: _Digital
    strict: bool
    calls: dict[str, int] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    largest: float = 0.0
    unmeasured: list[str] = field(default_factory=list)

    @contextmanager
    def comparing(self) -> Iterator[None]:
        reads = {name: getattr(layer, "weight_reads", 0) for name, layer in self.layers.items()}
        with ExitStack() as stack:
            for name, layer in self.layers.items():
                if isinstance(layer, NoiseAwareLayer):
                    stack.enter_context(self._observed(name, layer))
                    if not stack.enter_context(_noise_free(layer)):
                        self.unmeasured.append(name)
                else:
                    self.unmeasured.append(name)
                    handle = layer.register_forward_hook(functools.partial(self._replace, name))
                    stack.callback(handle.remove)
            for name, norm in self.norms.items():
                stack.enter_context(_set(norm, "observer", self._counter(name)))
            yield
        self.read = {name for name, n in reads.items() if getattr(self.layers[name], "weight_reads", 0) > n}
        self.unmeasured = [name for name in self.unmeasured if self.calls.get(name)]

    @contextmanager
    def _observed(self, name: str, layer: Any) -> Iterator[None]:
        def observe(output: Tensor, input_mean: Any) -> Tensor:
            return self._compare(name, output)

        with _set(layer.alignment, "observer", observe):
            yield

    def _counter(self, name: str) -> Callable[..., Any]:
        def observe(x: Tensor, bn: NoiseAwareBatchNorm) -> tuple[Tensor, Tensor]:
            self._count(name)
            return bn.trained_statistics()

        return observe

    def _replace(self, name: str, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        return self._compare(name, output)

    def _count(self, name: str) -> int:
        self.calls[name] = self.calls.get(name, 0) + 1
        return self.calls[name] - 1

    def _compare(self, name: str, output: Tensor) -> Tensor:
        call = self._count(name)
        outputs = self.expected.outputs.get(name, [])
        if call >= len(outputs):
            return output  # told when all have run
        expected = outputs[call]
        if not isinstance(expected, Tensor) or expected.shape != output.shape:
            shape = tuple(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
            raise VerificationError(
                f"layer {name!r} gives {shape} in the model and {tuple(output.shape)} on the chip: not the same layer"
            )
        if name not in self.unmeasured:
            off = difference(output, expected)
            # NaN is for whoever measures to tell, with the place it came from.
            if not off <= _TOLERANCE and not (self.strict and bool(torch.isfinite(output).all())):
                self.unmeasured.append(name)
                return expected.clone()
            if not off <= _TOLERANCE:
                raise VerificationError(
                    f"layer {name!r} gives something else on the chip without noise than in the model: they differ by "
                    f"{off:.1e} of the output's largest value; are these the weights it was converted with?"
                )
            self.largest = max(self.largest, off)
        return expected.clone()


@contextmanager
def _noise_free(layer: NoiseAwareLayer) -> Iterator[bool]:
    """Let a layer multiply exactly with the weights that its tiles were to hold; gives whether these are known."""
    matrix = target_weight(layer.analog_module)
    if matrix is None:
        yield False
        return
    with _set(layer, "exact", True), fixed_weight(layer.analog_module, matrix):
        yield True


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _compare_runs(reference: nn.Module, expected: _Digital, got: _OnChip) -> None:
    for name in (*expected.outputs, *(n for n in (*got.layers, *got.norms) if n not in expected.outputs)):
        digital, chip = len(expected.outputs.get(name, [])), got.calls.get(name, 0)
        if digital == chip and (digital or name not in expected.used or name in got.read):
            continue
        if name in got.read and not chip:
            continue  # programming noise acts there; `calibrate` and the report tell of it
        kind = type(expected.twins[name]).__name__ if name in expected.twins else "layer"
        if chip and not digital:
            raise VerificationError(f"layer {name!r} ran on the chip but not in the reference; is it the same network?")
        wrapped = " (its forward is an attribute of the model: convert before wrapping)"
        hint = wrapped if "forward" in reference.__dict__ else ""
        ran = f"{digital} times" if digital else "past its own call"
        raise VerificationError(
            f"layer {name!r} ({kind}) ran {ran} in the model and {chip} times on the chip: {_ELSEWHERE}{hint}"
        )


def _compare_results(digital: Any, analog: Any) -> float:
    largest = 0.0
    expected, got = list(_leaves(digital)), list(_leaves(analog))
    shapes, got_shapes = [tuple(t.shape) for t in expected], [tuple(t.shape) for t in got]
    if shapes != got_shapes:
        raise VerificationError(
            f"the model returns tensors of shapes {shapes[:5]}, its chip without noise {got_shapes[:5]}"
        )
    for one, other in zip(expected, got, strict=True):
        off = difference(other, one)
        if not off <= _TOLERANCE:
            raise VerificationError(
                f"all layers give the same on the chip without noise, but the results differ by {off:.1e} of the "
                "largest value: something else than layers differs between the two models"
            )
        largest = max(largest, off)
    return largest


def difference(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference in parts of the largest value; NaN and infinite values must be the same ones."""
    if expected.numel() == 0:
        return 0.0
    got, expected = got.detach().double(), expected.detach().double()
    same = (got == expected) | (got.isnan() & expected.isnan())
    apart = (got - expected).abs().masked_fill(same, 0.0)
    finite = expected[expected.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    off = float(apart.max())
    return off / scale if scale else (0.0 if off == 0.0 else float("inf"))


def _leaves(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yield the tensors inside a result: of containers, and of objects such as OpenMMLab's data samples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _leaves(part, depth)
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            yield from _leaves(part, depth)
    elif depth < 3 and not isinstance(value, (nn.Module, type)) and hasattr(value, "__dict__"):
        for part in vars(value).values():
            yield from _leaves(part, depth + 1)
