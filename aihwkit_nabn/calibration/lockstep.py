"""Run all calibration batches side by side, so that a layer is measured on all before any goes on."""

from __future__ import annotations

import contextvars
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from aihwkit_nabn.calibration.batches import tensors_in
from aihwkit_nabn.chip.moment import ChipMoment

#: A gate, and which of a batch's calls of it.
Stop = tuple[str, int]

HELD_BYTES = 4 * 2**30
"""What halted passes may hold in all on a CPU; on a GPU it is half of what is free."""

# Threads in all of torch's pools: each Python thread gets a pool of its own.
_POOL_THREADS = 1024


class Lockstep:
    """Passes of one network that halt at every gate until all of them are there; one runs at a time.

    A gate is a place in the network, such as a layer's output, where something is measured over all batches before any
    goes on. Passes run in the order of the batches from gate to gate, so what is drawn there is drawn in that order.
    Where the halted passes would hold too much memory, they are given up at that gate and begin again; gates that are
    done let them through.

    Args:
        chip: The analog model; what moves while it runs moves for each batch as if that ran alone.
        forwards: Each runs the chip on one batch.
        order: Where passes have come to different gates, those at the first in this order go on.
        on_stop: Called with the number of stops done so far.
        one_by_one: Give every pass up at every gate, so that never two are under way.
        patience: Seconds that a pass may take from one stop to the next; None: any.
        last: The stop that passes end behind, if that is known.

    Attributes:
        batch: Which of the batches is running.
        n_passes: How often the network began on the batches.
        late: Gates that a batch came to, by a way of its own, when the others had gone on.
    """

    def __init__(
        self,
        chip: nn.Module,
        forwards: Sequence[Callable[[], Any]],
        order: Mapping[str, int],
        on_stop: Callable[[int], None] | None = None,
        *,
        one_by_one: bool = False,
        patience: float | None = None,
        last: Stop | None = None,
    ) -> None:
        self.batch = 0
        self.n_passes = 0
        self._start = ChipMoment.take(chip)
        self._forwards = list(forwards)
        self._order = order
        self._on_stop = on_stop
        self._one_by_one = one_by_one
        self._patience = patience
        self._done: set[Stop] = set()
        self._too_large: dict[Stop, bool] = {}
        self._seen: dict[tuple[int, Stop], None] = {}
        self._calls: dict[str, int] = {}
        self._running: _Pass | None = None
        self._last = last
        self.late: set[str] = set()

    def next_call(self, gate: str) -> Stop:
        """Return the stop that the running batch has come to; to be asked once per call of the gate."""
        self._calls[gate] = self._calls.get(gate, -1) + 1
        return gate, self._calls[gate]

    def is_new(self, stop: Stop) -> bool:
        """Whether the running batch is there for the first time; a pass that began again is not."""
        seen = (self.batch, stop)
        if seen in self._seen:
            return False
        self._seen[seen] = None
        if stop in self._done:
            self.late.add(stop[0])
        return True

    def ways(self) -> list[list[str]]:
        """Return the gates that each batch has come to, in its order."""
        found: dict[int, list[str]] = {}
        for batch, (gate, _) in self._seen:
            found.setdefault(batch, []).append(gate)
        return list(found.values())

    def halt(self, stop: Stop) -> None:
        """Wait until every batch has come to the stop, or has gone another way."""
        if self._running is not None and stop not in self._done:
            self._running.halt(stop, weigh=stop not in self._too_large)

    def run(self) -> None:
        """Run all passes to their ends.

        Raises:
            StuckError: a pass waits for another one.
            BaseException: whatever a pass raised; the others are stopped then.
        """
        again = True
        while again:
            if self.n_passes:
                self._start.restore()
            self.n_passes += 1
            try:
                again = self._run_once()
            except _NoThreadError:  # the system has a limit; one at a time needs one
                if self._one_by_one:
                    raise
                self._one_by_one, self._too_large = True, {}

    def _run_once(self) -> bool:
        """Run the passes; return whether they must begin again."""
        if len(self._forwards) == 1:
            self._calls = {}
            self._forwards[0]()
            return False
        passes = [_Pass(forward, index, self._patience) for index, forward in enumerate(self._forwards)]
        try:
            with _bounded_pools(len(passes)):
                for one in passes:
                    self._advance(one)
                while True:
                    stops = {one.at for one in passes if one.at is not None}
                    if not stops:
                        return False
                    stop = min(stops, key=lambda stop: (stop[1], self._order.get(stop[0], len(self._order))))
                    self._done.add(stop)
                    if self._on_stop is not None:
                        self._on_stop(len(self._done))
                    if self._too_large[stop]:
                        return True
                    # Contexts around whole passes are left in the opposite order in which they were entered.
                    is_last = stop == self._last
                    for one in reversed(passes) if is_last else passes:
                        if one.at == stop:
                            self._advance(one)
        finally:
            self._running = None
            for one in passes:
                one.give_up()

    def _advance(self, one: _Pass) -> None:
        """Let a pass go on to its next stop, and give it up there if it holds too much."""
        self._running, self._calls, self.batch = one, one.calls, one.index
        self._start.enter(one.place)
        one.advance()
        one.place = self._start.leave()
        if one.at is not None:
            if one.at not in self._too_large:
                self._too_large[one.at] = self._one_by_one or one.live_bytes * len(self._forwards) > self._limit(one)
            if self._too_large[one.at]:
                one.give_up()

    @staticmethod
    def _limit(one: _Pass) -> int:
        return torch.cuda.mem_get_info()[0] // 2 if one.on_gpu else HELD_BYTES


class StuckError(RuntimeError):
    """A pass waits for one that is halted, as for a lock."""


class _NoThreadError(RuntimeError):
    """The system gives no more threads."""


class _GivenUp(BaseException):
    """Ends a pass from inside; no error, so that no network's own ``except Exception`` catches it."""


class _Pass:
    """One pass, on a thread of its own, which runs only inside `advance`.

    Attributes:
        at: Where it waits or has been given up; None before it begins and once it has ended.
        calls: How often it has come to each gate.
        live_bytes: What it holds where it waits, as far as was asked.
        on_gpu: Whether any of that is on a GPU.
        place: What `ChipMoment.leave` gave when it halted.
    """

    def __init__(self, forward: Callable[[], Any], index: int, patience: float | None) -> None:
        self.index = index
        self._patience = patience
        self.at: Stop | None = None
        self.calls: dict[str, int] = {}
        self.live_bytes = 0
        self.on_gpu = False
        self.place: Any = None
        self._forward = forward
        self._error: BaseException | None = None
        self._stopped = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        # What torch keeps per thread goes along.
        self._contexts = _thread_state()
        body = functools.partial(contextvars.copy_context().run, self._body)
        self._thread = threading.Thread(target=body, name=f"calibration batch {index}", daemon=True)

    def advance(self) -> None:
        """Run on to the next stop or to the end."""
        self.at = None
        if self._thread.ident is None:
            try:
                self._thread.start()
            except RuntimeError as error:
                raise _NoThreadError(str(error)) from error
        else:
            self._go.release()
        if not self._back.acquire(timeout=self._patience):
            raise StuckError
        if self._error is not None:
            raise self._error

    def halt(self, stop: Stop, weigh: bool) -> None:
        """Called on the pass's thread: wait there for `advance`."""
        if self._stopped:  # given up before, and caught by a bare ``except`` of the network's own
            raise _GivenUp
        if weigh:
            with torch._C.DisableTorchFunction():  # whatever mode the layer runs under
                self.live_bytes, self.on_gpu = _live(sys._getframe(1))
        self.at = stop
        self._back.release()
        self._go.acquire()
        if self._stopped:
            raise _GivenUp

    def give_up(self) -> None:
        """End it where it is; nothing happens if it has ended."""
        if self._thread.ident is not None and self._thread.is_alive():
            self._stopped = True
            self._go.release()
            self._thread.join()

    def _body(self) -> None:
        try:
            with ExitStack() as stack:
                for make in self._contexts:
                    stack.enter_context(make())
                self._forward()
        except _GivenUp:
            return
        except BaseException as error:
            self._error = error
        self.at = None
        self._back.release()


def _thread_state() -> list[Callable[[], Any]]:
    """Return what makes contexts that give another thread what torch keeps per thread: gradients, autocast, modes."""
    wanted: list[Callable[[], Any]] = [torch.enable_grad if torch.is_grad_enabled() else torch.no_grad]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        wanted.append(functools.partial(torch.cuda.device, torch.cuda.current_device()))
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            wanted.append(functools.partial(torch.autocast, kind, dtype=torch.get_autocast_dtype(kind)))
    return wanted + [lambda mode=mode: mode for mode in _get_current_function_mode_stack()]


@contextmanager
def _bounded_pools(n_threads: int) -> Iterator[None]:
    """Keep torch's pools small where there are very many passes."""
    before = torch.get_num_threads()
    allowed = max(1, _POOL_THREADS // n_threads)
    try:
        if allowed < before:
            torch.set_num_threads(allowed)
        yield
    finally:
        if allowed < before:
            torch.set_num_threads(before)


def _live(frame: FrameType | None) -> tuple[int, bool]:
    """Return how many bytes the tensors in the local variables of a call and of its callers take, and if on a GPU."""
    found: dict[int, int] = {}
    on_gpu = False
    while frame is not None:
        for tensor in tensors_in(list(frame.f_locals.values())):
            if type(tensor) is Tensor and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
                on_gpu = on_gpu or tensor.is_cuda
        frame = frame.f_back
    return sum(found.values()), on_gpu
