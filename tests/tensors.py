"""What a model holds, to compare before and after."""

from __future__ import annotations

from torch import Tensor, nn

# aihwkit keeps a parameter beside each tile that stands for its weights and holds none; from 1.2 on, reading it raises.
PLACEHOLDER = "analog_ctx"


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, those outside the state dict included."""
    found = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in found if not name.endswith(PLACEHOLDER)}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the tensors of the state dict."""
    state = [(name, value) for name, value in model.state_dict().items() if not name.endswith(PLACEHOLDER)]
    return {
        name: value.clone() for name, value in state if isinstance(value, Tensor) and not name.endswith(PLACEHOLDER)
    }
