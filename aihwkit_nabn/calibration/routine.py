"""`calibrate`: check everything, run the method, and leave the model as it was if anything goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import nn

from aihwkit_nabn.calibration.batches import ForwardFn, check_batches, default_forward
from aihwkit_nabn.calibration.method import DEFAULT_METHOD, CalibrationMethod, build_method
from aihwkit_nabn.calibration.ranks import union_of_ranks
from aihwkit_nabn.calibration.report import CalibrationReport
from aihwkit_nabn.calibration.session import CalibrationSession, match_reference
from aihwkit_nabn.chip.programming import check_programmed
from aihwkit_nabn.errors import CalibrationError, check_count
from aihwkit_nabn.nn.attention import split_attention
from aihwkit_nabn.nn.calibration_state import CalibrationSnapshot, alignments, check_not_folded, clear_calibration
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.nn.inference_mode import outside_inference_mode
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.nn.report import NOT_VERIFIED
from aihwkit_nabn.nn.verification import has_other_weights, in_one_thread, reference_of, verification_of


@outside_inference_mode()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    method: str | CalibrationMethod = DEFAULT_METHOD,
    *,
    reference: nn.Module | None = None,
    max_samples: int | None = None,
    forward_fn: ForwardFn | None = None,
    reference_forward_fn: ForwardFn | None = None,
    progress: bool = False,
    sharded: bool = True,
    **options: Any,
) -> CalibrationReport:
    """Calibrate the chip that is on `model`, in place, without labels; an earlier calibration is replaced.

    Before a model's first calibration the chip, noise left out, is run beside the digital model on two samples, and
    must agree (`nn.verification`). The batches are read once and kept until it ends. `model.train()` is never called:
    analog tiles stay in eval mode.

    In a torch.distributed run every rank must call this. Each calibrates on the batches of all ranks, so that all hold
    the chip that one process would have with the union of the data; shards may be uneven or empty.

    Args:
        model: A programmed analog model.
        batches: Any iterable of batches: a DataLoader, a list, a generator. Methods ``batch`` and ``online`` need none.
        method: Name of a registered method, or an instance.
        reference: The digital model, for the methods that compare with it (``auto``, ``paired``, ``low_rank``, ...).
        max_samples: Stop after this many samples; None takes all.
        forward_fn: ``forward_fn(model, batch)`` runs a model on a batch. Default: ``model(batch)`` for a tensor,
            ``model(batch[0])`` for a tuple.
        reference_forward_fn: The same for the reference alone, where it is to see something else than the chip: with
            batches of pairs (clean image, compressed twin), ``forward_fn=lambda m, b: m(b[1])`` and
            ``reference_forward_fn=lambda m, b: m(b[0])`` let the chip learn what the reference makes of the clean one.
            Both parts must show the same samples in the same order. Default: `forward_fn`.
        progress: Show a progress bar.
        sharded: Whether, in a torch.distributed run, `batches` are this rank's part of the calibration set. False:
            each rank has the whole set, or calibrates for itself.
        options: The method's own options.

    Returns:
        A report: the method taken, what corrections cost, each layer's shift before and after, the samples seen, the
        time it took, and `undo()`.

    Raises:
        UnknownNameError: there is no such method.
        NotProgrammedError: no chip has been programmed.
        CalibrationError: the calibration set is empty or not finite, the reference does not fit, or a batch cannot be
            run, here or on another rank. Whatever is raised, the model is as it was.
    """
    report: CalibrationReport | None = None
    try:
        with union_of_ranks(batches, sharded) as own:
            run = build_method(method, **options)
            forward_fns = forward_fn, reference_forward_fn
            report = _calibrate(model, own, run, reference, max_samples, forward_fns, progress)
    except BaseException:
        if report is not None:  # another rank failed at the very end
            report.undo()
        raise
    return report


def _calibrate(
    model: nn.Module,
    batches: Iterable[Any] | None,
    run: CalibrationMethod,
    reference: nn.Module | None,
    max_samples: int | None,
    forward_fns: tuple[ForwardFn | None, ForwardFn | None],
    progress: bool,
) -> CalibrationReport:
    forward_fn, reference_forward_fn = forward_fns
    if max_samples is not None:
        check_count("max_samples", max_samples, minimum=1)
    for name, function in (("forward_fn", forward_fn), ("reference_forward_fn", reference_forward_fn)):
        if function is not None and not callable(function):
            raise CalibrationError(f"{name} must be callable or None, got {function!r}")
    check_programmed(model)
    if run.needs_batches:
        check_batches(batches, f"method {run.name!r}")
    if run.needs_reference:
        if not isinstance(reference, nn.Module):
            raise CalibrationError(f"method {run.name!r} compares with the digital model; pass reference=model")
        with split_attention(reference) as split:
            match_reference(model, split)
    check_not_folded(model)
    alignments(model)  # aihwkit's own layers get theirs here, before the snapshot
    before = CalibrationSnapshot.take(model)
    begin = time.perf_counter()
    try:
        with (
            evaluation_mode(model, reference),
            nullcontext() if reference is None else in_one_thread(reference),
            nullcontext() if reference is None else split_attention(reference) as split,
            _progress_bar(progress, batches, max_samples, run.name) as bar,
        ):
            clear_calibration(model)
            session = CalibrationSession(
                model, split, batches, forward_fn or default_forward, max_samples, *bar, reference_forward_fn
            )
            is_shown = verification_of(model) is not None and not has_other_weights(reference, model)
            if not is_shown and batches is not None:
                known = split if split is not None else reference_of(model)
                if known is not None and not named_analog_layers(known):
                    with evaluation_mode(known):
                        session.verify(known, strict=split is not None)
            run.calibrate(session)
    except BaseException:
        before.restore()
        raise
    return CalibrationReport(
        method=run.name,
        n_samples=session.n_samples,
        n_batches=session.n_batches,
        seconds=time.perf_counter() - begin,
        layers=session.layers,
        n_passes=session.n_passes,
        notes=session.notes,
        verified=str(verification_of(model) or NOT_VERIFIED),
        taken=session.taken or run.name,
        corrections=session.corrections,
        loss_before=None if session.losses is None else session.losses[0],
        loss_after=None if session.losses is None else session.losses[1],
        _model=model,
        _before=before,
    )


@contextmanager
def _progress_bar(
    show: bool, batches: Iterable[Any] | None, max_samples: int | None, title: str
) -> Iterator[tuple[Callable[[int], None] | None, Callable[[int, int], None] | None]]:
    """Yield what to call after each batch with its samples, and after each step with its number and the last one's."""
    if not show or batches is None:
        yield None, None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} {task.fields[unit]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        total = max_samples
        if isinstance(getattr(batches, "dataset", None), Sized):
            n = len(batches.dataset)  # type: ignore[attr-defined]
            total = n if max_samples is None else min(n, max_samples)
        task = bar.add_task(f"calibrating ({title})", total=total, unit="samples")
        steps: list[TaskID] = []

        def step_done(step: int, last: int) -> None:
            if not steps:
                steps.append(bar.add_task(f"computing ({title})", total=last, unit="steps"))
            bar.update(steps[0], completed=step, total=last)

        yield lambda size: bar.advance(task, size), step_done
