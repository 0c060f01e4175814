"""Does the analog model compute what the digital one does? Both are run on the same inputs, the chip without noise."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from aihwkit_nabn.errors import VerificationError
from aihwkit_nabn.nn.attention import split_attention
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm
from aihwkit_nabn.nn.keeping import copied, kept
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.nn.moment import ChipMoment
from aihwkit_nabn.nn.own_forward import watched_outputs
from aihwkit_nabn.nn.probe import has_stock_forward
from aihwkit_nabn.nn.report import UNVERIFIED
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


# While a digital model is watched, its layers' forward passes are others: one thread at a time.
_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_locking = threading.Lock()


def in_one_thread(model: nn.Module) -> Any:
    """Return a lock of the model's own, for a ``with`` block."""
    with _locking:
        return _LOCKS.setdefault(model, threading.RLock())


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
) -> Verification | None:
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
        What was found, also noted on the analog model and in its `conversion_report`; None where the inputs show
        nothing, being empty or not finite.

    Raises:
        VerificationError: a layer ran in one of the two only, or gives something else; the layer is named.
    """
    layers = named_analog_layers(analog)
    norms = {name: m for name, m in analog.named_modules() if isinstance(m, NoiseAwareBatchNorm)}
    with in_one_thread(reference), split_attention(reference) as split:
        twins = dict(split.named_modules())
        expected = _Digital({name: twins[name] for name in (*layers, *norms) if name in twins}, layers)
        with kept(split), isolated_rng(0), expected.recording():
            digital_result = copied(run(split))
    moment = ChipMoment.take(analog)
    got = _OnChip(layers, norms, expected, strict)
    try:
        with kept(analog), isolated_rng(0), got.comparing():
            analog_result = copied(run(analog))
    finally:
        moment.restore()
    _compare_runs(reference, expected, got)
    apart = _compare_results(digital_result, analog_result) if strict and not got.read else 0.0
    largest = max(got.largest, apart)
    ran = [name for name in layers if got.calls.get(name)]
    report: Any = getattr(analog, "conversion_report", None)
    if not got.compared and not got.unmeasured:
        if report is not None:
            report.verified = f"{UNVERIFIED}no layer gave a finite value on {inputs}"
        return None
    found = Verification(
        n_layers=len(ran) - len(got.unmeasured),
        largest=largest,
        inputs=inputs,
        silent=tuple(name for name in layers if not got.calls.get(name) and name not in expected.used),
        unmeasured=tuple(got.unmeasured),
    )
    analog.__dict__["verification"] = found
    if report is not None:
        report.verified = str(found)
    return found


@dataclass
class _Digital:
    """One pass of the reference: the outputs of each layer's calls, and which weights were used however it was called.

    Attributes:
        outputs: By layer, call by call, in the order of the first calls.
        used: How many operations each layer's weight went into.
    """

    twins: Mapping[str, nn.Module]
    layers: Mapping[str, nn.Module]
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    used: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def recording(self) -> Iterator[None]:
        found = {name: self.twins[name]._parameters.get("weight") for name in self.layers if name in self.twins}
        weights: dict[int, list[str]] = {}
        for name, weight in found.items():
            if weight is not None and weight.numel():
                weights.setdefault(weight.untyped_storage().data_ptr(), []).append(name)

        def seen(name: str, output: Any) -> None:
            self.outputs.setdefault(name, []).append(output.detach().clone() if isinstance(output, Tensor) else output)

        with watched_outputs(self.layers, self.twins, seen), _Uses(weights, self.used):
            yield


class _Uses(TorchFunctionMode):
    """Counts the operations that weights, or views of them, go into; a layer's own call is only one way to use them.

    Tied weights count once for each of their layers. Looking up embeddings is no product.
    """

    def __init__(self, weights: Mapping[int, list[str]], used: Counter[str]) -> None:
        super().__init__()
        self.weights, self.used = weights, used

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            given = [part for value in (*args, *kwargs.values()) for part in _flat(value)]
            places = {_place(part) for part in given} & self.weights.keys()
            if places and isinstance(result, Tensor) and func is not F.embedding and _place(result) not in places:
                self.used.update(name for place in places for name in self.weights[place])
        return result


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [part for part in value if isinstance(part, Tensor)] if isinstance(value, (list, tuple)) else []


def _place(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse tensors and wrapped ones have none
        return 0


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
    compared: int = 0

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
            if not bool(torch.isfinite(output).all()):
                return expected.clone()
            if not off <= _TOLERANCE and not self.strict:
                self.unmeasured.append(name)
                return expected.clone()
            if not off <= _TOLERANCE:
                raise VerificationError(
                    f"layer {name!r} gives something else on the chip without noise than in the model: they differ by "
                    f"{off:.1e} of the output's largest value; are these the weights it was converted with?"
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
    ran_tied = {id(w) for name in got.calls if (w := _weight(expected.twins.get(name))) is not None}
    names = dict.fromkeys((*expected.outputs, *got.layers, *got.norms))
    for name in names:
        digital, chip = len(expected.outputs.get(name, [])), got.calls.get(name, 0)
        if name in got.norms:  # one may normalise several times in a call
            digital, chip = bool(digital), bool(chip)
        twin = expected.twins.get(name)
        kind = type(twin).__name__ if twin is not None else "layer"
        if chip and not digital:
            raise VerificationError(f"layer {name!r} ran on the chip but not in the reference; is it the same network?")
        if name in got.read and not chip:
            continue  # programming noise acts there; `calibrate` and the report tell of it
        past = name in got.layers and expected.used[name] > digital and twin is not None and has_stock_forward(twin)
        if past and digital == 0 and id(_weight(twin)) in ran_tied:
            past = False  # another layer with the same weight
        if digital:  # a use beside its own calls is not told: packed projections are such
            past = False
        if digital == chip and not past:
            continue
        wrapped = " (its forward is an attribute of the model: convert before wrapping)"
        hint = wrapped if "forward" in reference.__dict__ else ""
        ran = f"{digital} times" if not past else "past its own call" if not digital else "also past its own call"
        raise VerificationError(
            f"layer {name!r} ({kind}) ran {ran} in the model and {chip} times on the chip: {_ELSEWHERE}{hint}"
        )


def _weight(twin: nn.Module | None) -> Tensor | None:
    return None if twin is None else twin._parameters.get("weight")


def _compare_results(digital: Any, analog: Any) -> float:
    largest = 0.0
    expected, got = list(leaves(digital)), list(leaves(analog))
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
    got, expected = _plain(got), _plain(expected)
    if expected.numel() == 0 or got.shape != expected.shape:
        return 0.0 if got.shape == expected.shape else float("inf")
    same = (got == expected) | (got.isnan() & expected.isnan())
    apart = (got - expected).abs().masked_fill(same, 0.0)
    finite = expected[expected.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    off = float(apart.max())
    return off / scale if scale else (0.0 if off == 0.0 else float("inf"))


def _plain(value: Tensor) -> Tensor:
    value = value.detach()
    if value.is_quantized:
        value = value.dequantize()
    if value.layout is not torch.strided:
        value = value.to_dense()
    return (torch.view_as_real(value) if value.is_complex() else value).double()


def leaves(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yield the tensors inside a result: of containers, and of objects such as OpenMMLab's data samples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from leaves(part, depth)
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            yield from leaves(part, depth)
    elif depth < 3 and not isinstance(value, (nn.Module, type)) and hasattr(value, "__dict__"):
        for part in vars(value).values():
            yield from leaves(part, depth + 1)
