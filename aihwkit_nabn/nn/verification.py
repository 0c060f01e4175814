"""Does the analog model compute what the digital one does? Both are run on the same inputs, the chip without noise."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from aihwkit_nabn.errors import VerificationError, some
from aihwkit_nabn.nn.attention import split_attention
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm
from aihwkit_nabn.nn.comparing import difference, leaves
from aihwkit_nabn.nn.keeping import copied, kept
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.nn.noise_free import TOLERANCE, ChipPass, DigitalPass
from aihwkit_nabn.nn.probe import has_stock_forward
from aihwkit_nabn.nn.report import LayerEntry
from aihwkit_nabn.nn.unregistered import note_kept
from aihwkit_nabn.results import UNVERIFIED
from aihwkit_nabn.seeding import isolated_rng

_ELSEWHERE = (
    "the network reaches it outside its module tree (through a global variable or a view of its weight), where the "
    "digital layer stays; call the layer as an attribute of its module instead (self.conv(x))"
)

_BRANCHES = (
    "they differ in something other than their layers; code that checks the class of a layer "
    "(isinstance(layer, nn.Conv2d)) must take the same branch on the chip; if the model has changed, convert it again"
)
_READ = "programming noise acts on their weights; converters, read noise and calibration do not"


@dataclass(frozen=True)
class Verification:
    """What a noise-free pass has shown.

    Args:
        n_layers: Analog layers that ran and gave what the digital ones gave.
        largest: Largest difference of an output, in parts of the output's largest value.
        inputs: What was put in.
        silent: Layers that did not run, in neither model.
        unmeasured: Layers that ran, but whose results were not compared, and why.
        read: Layers that the network does not call while it reads their weights.
        others: Weights that are multiplied with outside of layers.
    """

    n_layers: int
    largest: float
    inputs: str
    silent: tuple[str, ...] = ()
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    read: tuple[str, ...] = ()
    others: tuple[LayerEntry, ...] = ()

    def __str__(self) -> str:
        text = f"verified on {self.inputs}: {self.n_layers} layers give what the digital ones give"
        text += f" (largest difference {self.largest:.1e} of an output's largest value)"
        if not self.n_layers:
            text = f"{UNVERIFIED}no layer's results could be compared on {self.inputs}"
        groups = [(self.silent, "did not run")]
        for reason in dict.fromkeys(self.unmeasured.values()):
            names = tuple(name for name, why in self.unmeasured.items() if why == reason)
            groups.append((names, f"ran, not compared ({reason})"))
        groups.append((self.read, f"read instead of called ({_READ})"))
        return text + "".join(f"; {len(names)} {what}: {some(names)}" for names, what in groups if names)


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


def has_other_weights(reference: nn.Module | None, analog: nn.Module) -> bool:
    """Whether a reference is like the network that an analog model was made of but for its values: another checkpoint.

    Not where there is no reference, or that network is gone.
    """
    converted = reference_of(analog)
    if reference is None or converted is None or converted is reference:
        return False
    mine, theirs = reference.state_dict(), converted.state_dict()
    return mine.keys() == theirs.keys() and any(
        isinstance(value, Tensor) and not (value.shape == theirs[name].shape and value.equal(theirs[name].to(value)))
        for name, value in mine.items()
    )


def verification_of(analog: nn.Module) -> Verification | None:
    """Return what has been shown of an analog model so far; None: nothing."""
    found: Verification | None = analog.__dict__.get("verification")
    return found


@torch.no_grad()
def verify(
    reference: nn.Module, analog: nn.Module, run: Callable[[nn.Module], Any], inputs: str, *, strict: bool = True
) -> Verification | None:
    """Run both models on the same inputs, the chip with the weights that were to be programmed and without converters.

    Every analog layer's outputs are held against the digital layer's, call by call, and the digital ones go on, so that
    the rounding of one layer cannot be taken for a fault of another. Which layers ran must agree, and what the models
    return.

    Args:
        reference: The digital model in eval mode.
        analog: Its conversion in eval mode, programmed or not; comes out as it was, but for what is noted on it. A
            chip whose noise moves counts the samples (`aihwkit_nabn.chip.moment` goes back).
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
        expected = DigitalPass(split, {name: twins[name] for name in (*layers, *norms) if name in twins}, layers)
        with kept(split), isolated_rng(0), expected.recording():
            digital_result = copied(run(split))
    got = ChipPass(layers, norms, expected, strict)
    with kept(analog), isolated_rng(0), got.comparing():
        analog_result = copied(run(analog))
    _compare_runs(expected, got)
    apart = _compare_results(digital_result, analog_result) if strict and not got.read else 0.0
    largest = max(got.largest, apart)
    ran = [name for name in layers if got.calls.get(name)]
    report: Any = getattr(analog, "conversion_report", None)
    read = tuple(name for name in layers if name in got.read and not got.calls.get(name))
    if not got.compared and not got.unmeasured and not read:
        if report is not None:
            report.verified = f"{UNVERIFIED}no layer gave a finite value on {inputs}"
        return None
    found = Verification(
        n_layers=len(ran) - len(got.unmeasured),
        largest=largest,
        inputs=inputs,
        silent=tuple(name for name in layers if not got.calls.get(name) and name not in expected.used),
        unmeasured=got.unmeasured,
        read=read,
        others=expected.others,
    )
    if read:
        warnings.warn(
            f"the network reads the weights of {len(read)} analog layers ({some(read)}) instead of calling them: "
            f"{_READ}",
            stacklevel=3,
        )
    note_verification(analog, found)
    return found


def note_verification(analog: nn.Module, found: Verification) -> None:
    """Note on an analog model and in its report what a pass of it, or of an earlier conversion, has shown."""
    analog.__dict__["verification"] = found
    report: Any = getattr(analog, "conversion_report", None)
    if report is not None:
        report.verified = str(found)
        note_kept(report, found.others)


def _compare_runs(expected: DigitalPass, got: ChipPass) -> None:
    names = dict.fromkeys((*expected.outputs, *got.layers, *got.norms))
    for name in names:
        digital, chip = len(expected.outputs.get(name, [])), got.calls.get(name, 0)
        if name in got.norms:  # one may normalise several times in a call
            digital, chip = min(digital, 1), min(chip, 1)
        if chip and not digital:
            raise VerificationError(
                f"layer {name!r} ran on the chip but not in the reference; pass the model that was converted"
            )
        past = name in got.layers and not digital and _is_used_past_calls(name, expected, got)
        if (digital == chip and not past) or (name in got.read and not chip):
            continue  # where weights are read, programming noise acts; `calibrate` and the report tell of it
        kind = type(expected.twins[name]).__name__
        if past:
            raise VerificationError(
                f"layer {name!r} ({kind}) stays digital: its weight is used without calling it; {_ELSEWHERE}"
            )
        raise VerificationError(
            f"layer {name!r} ({kind}) ran {digital} times in the model and {chip} times on the chip: {_ELSEWHERE}"
        )


def _is_used_past_calls(name: str, expected: DigitalPass, got: ChipPass) -> bool:
    """Whether an operation was given the weight of a layer that was not called, nor any that shares the weight.

    Uses beside a layer's own calls are not told: packed projections are such.
    """
    twin = expected.twins[name]
    sharing = [other for other in got.calls if expected.twins[other]._parameters.get("weight") is twin.weight]
    return bool(expected.used[name]) and not sharing and has_stock_forward(twin)


def _compare_results(digital: Any, analog: Any) -> float:
    largest = 0.0
    expected, got = list(leaves(digital)), list(leaves(analog))
    shapes, got_shapes = [tuple(t.shape) for t in expected], [tuple(t.shape) for t in got]
    if shapes != got_shapes:
        raise VerificationError(
            f"the model returns tensors of shapes {shapes[:5]}, its chip without noise {got_shapes[:5]}: {_BRANCHES}"
        )
    for one, other in zip(expected, got, strict=True):
        off = difference(other, one)
        if not off <= TOLERANCE:
            raise VerificationError(
                f"all layers give the same on the chip without noise, but the results differ by {off:.1e} of the "
                f"largest value: {_BRANCHES}"
            )
        largest = max(largest, off)
    return largest
