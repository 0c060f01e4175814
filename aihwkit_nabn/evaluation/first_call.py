"""What a model is first called with while it is measured: inputs to verify its conversion on."""

from __future__ import annotations

import copy
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from aihwkit_nabn.nn.keeping import copied

# Samples that are kept, where they can be told.
_SAMPLES = 2


class FirstCall:
    """Keeps a copy of the arguments of the first call of a model inside the block.

    Args:
        model: The model.
        stop: Leave the block at that call.

    Attributes:
        whole: Positional and keyword arguments; None if there was no call, or they cannot be copied.
        arguments: The same with the first samples only, where they can be told.
        described: What `arguments` are.
    """

    def __init__(self, model: nn.Module, *, stop: bool = False) -> None:
        self.model = model
        self.stop = stop
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.described = ""
        self.whole: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __enter__(self) -> FirstCall:
        self._handle = self.model.register_forward_pre_hook(self._note, with_kwargs=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        self._handle.remove()
        return isinstance(error, _SeenEnough)

    def _note(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._handle.remove()
        try:
            self.whole = copy.deepcopy(copied((args, kwargs)))  # tensors with a history cannot be deep-copied
        except Exception:  # whatever is in there; then it cannot be verified on it, which the caller tells
            self.whole = None
        self.arguments, self.described = self.whole, "the first test batch"
        if self.whole and len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].dim() > 1:
            images = args[0][:_SAMPLES].detach().clone()
            self.arguments, self.described = ((images,), {}), f"{len(images)} of the test samples"
        if self.stop:
            raise _SeenEnough


class _SeenEnough(BaseException):
    """No error: what the block was for is there."""
