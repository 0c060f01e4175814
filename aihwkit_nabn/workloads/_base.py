"""What a workload is, what it is asked for, and the table of kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.data.classification import ImageSet
from aihwkit_nabn.errors import NabnError, check_count, suggestion
from aihwkit_nabn.evaluation import EvaluationResult, MethodSpec, Scenario, evaluate
from aihwkit_nabn.evaluation.methods import AUGMENTED, PLAIN, suiting_set
from aihwkit_nabn.evaluation.plan import EvalFn, Plan, has_input_ranges, make_plan
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.registry import Registry
from aihwkit_nabn.seeding import check_seed

if TYPE_CHECKING:
    from aihwkit_nabn.training import TrainedModel, TrainingNoise
    from aihwkit_nabn.training.recipe import Recipe

SOURCES = ("representative", "one_class", "other_data")
"""Where calibration images come from: the train set; one class of it, another for each chip; another data set."""

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
CHECKPOINT = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """Which unlabelled images a method calibrates with.

    Attributes:
        n: How many; where there are fewer, all of them, unless `exact`. None: all.
        images: ``"plain"``, as at test time, or ``"augmented"``, as in training.
        seed: Chooses the images, their order and their augmentation. A smaller set is the beginning of a larger one.
        source: Where they come from, one of `SOURCES`.
        chip_seed: Chooses the class of ``one_class``.
        reference_skips: Transforms that the digital model's images do not go through, such as ``"CompressJPEG"``: each
            batch is then a pair, see `Workload.reference_forward_fn`.
        batch_size: Images per batch; None: what suits the workload.
        exact: Whether fewer images than `n` are an error.
    """

    n: int | None = 256
    images: str = PLAIN
    seed: int = 0
    source: str = SOURCES[0]
    chip_seed: int = 0
    reference_skips: tuple[str, ...] = ()
    batch_size: int | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        for name in ("n", "batch_size"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), minimum=1)
        if self.images not in (PLAIN, AUGMENTED):
            raise NabnError(f"images must be {PLAIN!r} or {AUGMENTED!r}, got {self.images!r}")
        for name in ("seed", "chip_seed"):
            check_seed(name, getattr(self, name))
        skips = self.reference_skips
        if isinstance(skips, str) or not all(isinstance(skip, str) for skip in skips or ()):
            raise NabnError(f"reference_skips must be a tuple of names of transforms, got {skips!r}")
        object.__setattr__(self, "reference_skips", tuple(skips or ()))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A trained model, its data, and how to measure it.

    Attributes:
        model: The digital model, in eval mode, on its device.
        eval_fn: Called as ``eval_fn(model)``; returns metric names to numbers, higher being better.
        calibration: Called with a `CalibrationRequest`; returns batches; those of a generator are kept.
        forward_fn: Called as ``forward_fn(model, batch)`` when calibrating; None: as `aihwkit_nabn.calibrate` does.
        reference_forward_fn: The same for the digital model.
        train: Trains the model at a noise, on a chip's configuration, by a recipe; None where there are no labels.
        check_recipe: Raises a `NabnError` where a recipe cannot be followed; None: it always can.
        compressed: Called with a JPEG quality; returns the workload with its images compressed. None: it cannot.
        test_set: Returns the test images as the network takes them, for streams; None: it cannot.
        write_examples: Draws test images as chips see them, see `aihwkit_nabn.evaluation.examples`; None: it cannot.
        held_back: Called with a number of images and a `CalibrationRequest`; returns an ``eval_fn`` on at most so many
            labelled images of the train set that are not among those requested, None where none are left. None: it
            cannot.
        sources: Which of `SOURCES` it has.
        description: Lines that say what is measured, for the user.
        facts: More about its data, as plain values by name; under ``setup`` what must be the same for measurements to
            belong together.
        rank: Of this process, among those that measure together.
        broadcast: Returns the first process's object in all of them.
    """

    model: nn.Module
    eval_fn: EvalFn
    calibration: Callable[[CalibrationRequest], Iterable[Any]]
    forward_fn: Callable[[nn.Module, Any], Any] | None = None
    reference_forward_fn: Callable[[nn.Module, Any], Any] | None = None
    train: Callable[[TrainingNoise, Any, Recipe], TrainedModel] | None = None
    check_recipe: Callable[[Recipe], None] | None = None
    compressed: Callable[[int], Workload] | None = None
    test_set: Callable[[], ImageSet] | None = None
    write_examples: Callable[..., Path] | None = None
    held_back: Callable[[int, CalibrationRequest], EvalFn | None] | None = None
    sources: tuple[str, ...] = SOURCES[:1]
    description: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    rank: int = 0
    broadcast: Callable[[Any], Any] = lambda found: found

    def __post_init__(self) -> None:
        object.__setattr__(self, "calibration", _kept(self.calibration))

    def protocol(self, seed: int, model: nn.Module | None = None, **more: Any) -> EvaluationProtocol:
        """Return how the model, or another network in its place, is measured.

        Args:
            seed: Of the run.
            model: The other network.
            more: What else `EvaluationProtocol` takes.
        """
        return EvaluationProtocol(
            self.model if model is None else model,
            self.eval_fn,
            seed=seed,
            forward_fn=self.forward_fn,
            reference_forward_fn=self.reference_forward_fn,
            **more,
        )

    def calibration_sets(
        self, methods: Iterable[MethodSpec], request: CalibrationRequest, *, ranges: bool = False
    ) -> dict[str, Iterable[Any]] | None:
        """Return what `aihwkit_nabn.evaluate` takes as ``calibration_batches``: the sets that methods name.

        Args:
            methods: The methods; one that names no set takes the one that suits it.
            request: How many images, and which.
            ranges: Whether input ranges are set, from plain images.
        """
        names = {name for spec in methods if (name := _set_of(spec)) is not None} | ({PLAIN} if ranges else set())
        return {name: self.calibration(replace(request, images=name)) for name in sorted(names)} or None

    def evaluate(
        self,
        scenarios: Iterable[Scenario],
        methods: Iterable[MethodSpec],
        request: CalibrationRequest,
        *,
        chips: int = 5,
        **more: Any,
    ) -> EvaluationResult:
        """Measure scenarios x chips x methods, see `aihwkit_nabn.evaluate`; the request's seed is the first chip's.

        Args:
            scenarios: Noise settings and times.
            methods: Each with the set that suits it.
            request: Which calibration images.
            chips: Chips per scenario.
            more: What else `aihwkit_nabn.evaluate` takes.
        """
        return evaluate(self.model, **{**self.arguments(scenarios, methods, request, chips=chips), **more})

    def arguments(
        self,
        scenarios: Iterable[Scenario],
        methods: Iterable[MethodSpec],
        request: CalibrationRequest,
        *,
        chips: int = 5,
    ) -> dict[str, Any]:
        """Return what `evaluate` hands to `aihwkit_nabn.evaluate`."""
        scenarios, methods = list(scenarios), list(methods)
        ranges = any(has_input_ranges(getattr(scenario, "rpu_config", None)) for scenario in scenarios)
        return {
            "scenarios": scenarios,
            "methods": methods,
            "chips": chips,
            "seed": request.seed,
            "calibration_batches": self.calibration_sets(methods, request, ranges=ranges),
            "eval_fn": self.eval_fn,
            "forward_fn": self.forward_fn,
            "reference_forward_fn": self.reference_forward_fn,
            "progress": self.rank == 0,
        }

    def plan(
        self,
        scenarios: Iterable[Scenario],
        methods: Iterable[MethodSpec],
        request: CalibrationRequest,
        *,
        chips: int,
        seed: int,
    ) -> Plan:
        """Return what `evaluate` would do, checked, with the first chip's seed."""
        given = self.arguments(scenarios, methods, request, chips=chips) | {"seed": seed}
        del given["progress"]
        return make_plan(self.model, **given)


def _kept(
    calibration: Callable[[CalibrationRequest], Iterable[Any]],
) -> Callable[[CalibrationRequest], Iterable[Any]]:
    """Return the same with batches that can be run through again: those of a generator are kept in a list."""

    def batches(request: CalibrationRequest) -> Iterable[Any]:
        found = calibration(request)
        if not isinstance(found, Iterator):
            return found
        kept = list(found)
        if not kept:
            raise NabnError("calibration of the workload gave an iterator that is used up; give a list or a DataLoader")
        return kept

    return batches


def _set_of(spec: MethodSpec) -> str | None:
    if spec.batches is not None or spec.method not in CALIBRATION_METHODS:
        return spec.batches
    method = CALIBRATION_METHODS.get(spec.method)
    return suiting_set(method) if method.needs_batches else None


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """What every kind of workload is told.

    Attributes:
        seed: Chooses the test images.
        test_images: How many; None: all.
        batch_size: Images per forward pass when testing; None: what suits the workload. A config has its own.
        loader_workers: Processes that read images; None: what suits the workload.
        work_dir: Folder for logs.
        launcher: How the processes of a distributed run were started, one of `LAUNCHERS`.
    """

    seed: int = 0
    test_images: int | None = None
    batch_size: int | None = None
    loader_workers: int | None = None
    work_dir: Path | None = None
    launcher: str = "none"

    def __post_init__(self) -> None:
        if self.launcher not in LAUNCHERS:
            raise NabnError(f"launcher must be one of {', '.join(LAUNCHERS)}, got {self.launcher!r}")
        for name, minimum in (("test_images", 1), ("batch_size", 1), ("loader_workers", 0)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), minimum=minimum)


Check = Callable[[str, Any], Any]


@dataclass(frozen=True, kw_only=True)
class WorkloadKind:
    """A kind of workload.

    Attributes:
        load: Called as ``load(name, settings, **options)``; returns a `Workload`. ``name`` is the part behind the colon
            of ``KIND:NAME``.
        options: Checks of its own options by name, each called as ``check(field, value)``.
        required: Those that must be given.
        named: Whether it is written ``KIND:NAME``.
        instead: What serves in place of an option that other kinds have, by its name, for messages.
        build: Returns the network of a name with random weights, without any data; None: it always has its weights.
        explained: What an option that is missing must be, by its name, for messages.
        of_names: Names with options of their own, and the kind in whose place they are taken.
    """

    load: Callable[..., Workload]
    options: Mapping[str, Check] = field(default_factory=dict)
    required: Sequence[str] = ()
    named: bool = False
    instead: Mapping[str, str] = field(default_factory=dict)
    build: Callable[..., nn.Module] | None = None
    explained: Mapping[str, str] = field(default_factory=dict)
    of_names: dict[str, WorkloadKind] = field(default_factory=dict)

    def checked(
        self,
        text: str,
        options: Mapping[str, Any],
        *,
        partial: bool = False,
        named: Callable[[str], str] = lambda name: name,
    ) -> dict[str, Any]:
        """Return the options, checked.

        Args:
            text: The workload, for messages.
            options: By name.
            partial: Whether required ones may be missing.
            named: Returns how the user writes an option, for messages.

        Raises:
            NabnError: one is unknown, missing, or has a value that is not allowed.
        """
        for name in options:
            if name not in self.options:
                instead = f"; use {self.instead[name]}" if name in self.instead else ""
                known = ", ".join(map(named, self.options)) or "no options"
                near = "" if instead else suggestion(name, self.options)
                raise NabnError(f"{text} takes no {named(name)}{near}{instead}; it takes {known}")
        for name in self.required:
            if name not in options and not partial:
                explained = {**_EXPLAINED, **self.explained}.get(name, "")
                raise NabnError(f"{text} needs {named(name)}{explained}")
        return {name: self.options[name](f"{named(name)} of {text}", value) for name, value in options.items()}


_EXPLAINED = {
    CHECKPOINT: ": the file with its trained weights",
    "data": ": the folder with train/CLASS/images and val/CLASS/images",
}


def check_source(source: str, known: Sequence[str]) -> None:
    """Raise unless a workload has calibration images from there.

    Raises:
        NabnError: it has none.
    """
    if source not in known:
        raise NabnError(f"calibration must be one of {', '.join(known)}, got {source!r}{suggestion(source, known)}")


WORKLOADS: Registry[WorkloadKind] = Registry("kind of workload")
