"""Redirecting what one thread draws from torch's global generators to other generators."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

#: Gives the generator of a device, or None where torch's own is to be drawn from.
GeneratorOf = Callable[[torch.device], torch.Generator | None]

# What takes a generator.
_DRAWS = {
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli, torch.multinomial),
    *(torch.poisson, torch.binomial, torch._standard_gamma, torch._sample_dirichlet),
    *(Tensor.normal_, Tensor.uniform_, Tensor.random_, Tensor.bernoulli, Tensor.bernoulli_, Tensor.exponential_),
    *(Tensor.geometric_, Tensor.cauchy_, Tensor.log_normal_, Tensor.multinomial),
    *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_),
}
# What draws into a new tensor like another, and takes none in every version of torch.
_DRAWS_LIKE = {torch.rand_like: "uniform_", torch.randn_like: "normal_", torch.randint_like: "random_"}
# What draws and takes none.
_DRAWS_GLOBALLY = {
    *(torch.dropout, torch.dropout_, torch.alpha_dropout, torch.alpha_dropout_, torch.feature_dropout),
    *(torch.feature_dropout_, torch.feature_alpha_dropout, torch.feature_alpha_dropout_, torch.native_dropout),
    *(torch.rrelu, torch.rrelu_, F.rrelu, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout),
    *(F.feature_alpha_dropout, F.gumbel_softmax, F.scaled_dot_product_attention, F.multi_head_attention_forward),
}

_ALL = {*_DRAWS, *_DRAWS_LIKE, *_DRAWS_GLOBALLY}

_CPU = torch.device("cpu")
_local = threading.local()
_lending = threading.RLock()


def current_generator(device: torch.device = _CPU) -> torch.Generator:
    """Return what this thread's draws on a device come from: torch's global generator unless they are redirected."""
    stack: list[GeneratorOf] = _local.__dict__.get("stack", [])
    for generator_of in reversed(stack):
        found = generator_of(device)
        if found is not None:
            return found
    return _global_generator(device)


def _global_generator(device: torch.device) -> torch.Generator:
    if device.type != "cuda":
        return torch.random.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


@contextmanager
def lending(own: torch.Generator) -> Iterator[None]:
    """Let torch's global generator of the same device stand where `own` does, for what cannot be redirected.

    One thread at a time; draws of others in the meantime come from it too.
    """
    with _lending:
        shared = _global_generator(own.device)
        saved = shared.get_state()
        shared.set_state(own.get_state())
        try:
            yield
        finally:
            own.set_state(shared.get_state())
            shared.set_state(saved)


def drawing_from(generator: torch.Generator) -> Redirected:
    """Return a context in which what this thread draws on the generator's device comes from it."""
    return Redirected(lambda device: generator if device.type == generator.device.type else None)


class Redirected(TorchFunctionMode):
    """A context in which what this thread draws from torch's global generators comes from others.

    Args:
        generator_of: Says from which.
    """

    def __init__(self, generator_of: GeneratorOf) -> None:
        super().__init__()
        self.generator_of = generator_of

    def __enter__(self) -> Redirected:
        _local.__dict__.setdefault("stack", []).append(self.generator_of)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _local.stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, with the generator of its device if it draws."""
        kwargs = kwargs or {}
        if func not in _ALL:
            return func(*args, **kwargs)
        if func in _DRAWS:
            if kwargs.get("generator") not in (None, torch.random.default_generator):
                return func(*args, **kwargs)
            return func(*args, **{**kwargs, "generator": self.generator_of(_device(args, kwargs))})
        if func in _DRAWS_LIKE:
            return self._like(_DRAWS_LIKE[func], *args, **kwargs)
        own = self.generator_of(_device(args, kwargs))
        with nullcontext() if own is None else lending(own):
            return func(*args, **kwargs)

    def _like(self, fill: str, like: Tensor, *limits: int, requires_grad: bool = False, **kwargs: Any) -> Tensor:
        limits += tuple(kwargs.pop(name) for name in ("low", "high") if name in kwargs)
        generator = kwargs.pop("generator", None)
        out = torch.empty_like(like, **kwargs)
        generator = self.generator_of(out.device) if generator is None else generator
        return getattr(out, fill)(*limits, generator=generator).requires_grad_(requires_grad)


def _device(args: Any, kwargs: Any) -> torch.device:
    """Return the device that a function which draws makes its result on."""
    given = kwargs.get("device")
    if given is not None:
        return torch.device(given)
    tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    first = next(tensors, None)
    return torch.get_default_device() if first is None else first.device
