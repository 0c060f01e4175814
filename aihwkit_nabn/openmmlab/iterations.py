"""A test's iterations on a chip, everything around them on the digital model."""

from __future__ import annotations

from typing import Any

from mmengine.model import is_model_wrapper
from torch import nn

from aihwkit_nabn.errors import NabnError


class ChipIterations:
    """Lets a loop's iterations, and nothing else, meet a chip as the runner's model.

    Whatever raises inside an iteration, the runner has its digital model back.

    Args:
        chip: The analog model.
        runner: Whose model is replaced.
        loop: Its validation or test loop, which runs each batch through `run_iter` as mmengine's do.

    Attributes:
        digital: The runner's own model, in its wrapper if it has one.

    Raises:
        NabnError: the loop has no `run_iter`.
    """

    def __init__(self, chip: nn.Module, runner: Any, loop: Any) -> None:
        if not callable(getattr(loop, "run_iter", None)):
            raise NabnError(
                f"AnalogHook tests on a chip what a loop does in run_iter, and {type(loop).__name__} has none; derive "
                "it from mmengine's ValLoop or TestLoop"
            )
        self.chip = chip
        self.digital = runner.model
        self._loop = loop
        self._own = loop.__dict__.get("run_iter")
        self._count = 0
        original = loop.run_iter

        def run_iter(*args: Any, **kwargs: Any) -> Any:
            self._count += 1
            runner.model = chip
            try:
                return original(*args, **kwargs)
            finally:
                runner.model = self.digital

        loop.run_iter = run_iter

    def check_ran(self) -> None:
        """Raise unless the loop ran its batches on the chip.

        Raises:
            NabnError: it took another way, so the digital model was measured.
        """
        if self._count == 0 and len(self._loop.dataloader):
            raise NabnError(
                f"{type(self._loop).__name__} measured the digital model: it ran no batch through run_iter, which is "
                "where AnalogHook has the chip"
            )

    def end(self) -> None:
        """Give the loop its own iterations back."""
        if self._own is None:
            self._loop.__dict__.pop("run_iter", None)
        else:
            self._loop.run_iter = self._own


def unwrapped(model: Any) -> nn.Module:
    """Return the model inside a wrapper for several processes."""
    inner: nn.Module = model.module if is_model_wrapper(model) else model
    return inner
