"""What torchvision's detectors and segmenters share: reading their weights' files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.models import WeightsEnum

from aihwkit_nabn.data.state_dicts import find_weights
from aihwkit_nabn.data.weights import count_classes, read_checkpoint, tensor_names
from aihwkit_nabn.workloads.torchvision import published_weights


@dataclass(frozen=True, kw_only=True)
class ReadWeights:
    """A file's tensors, by the names that a network of torchvision's has for them.

    Attributes:
        state: The tensors.
        outputs: How many classes the network tells apart, the background included where it counts as one.
        published: Which of torchvision's own they are, or None.
        source: What they are called in messages.
        notes: Lines on what was taken of several.
    """

    state: Mapping[str, Tensor]
    outputs: int
    published: WeightsEnum | None
    source: str
    notes: list[str]

    @property
    def categories(self) -> list[str] | None:
        """The names of the classes, of torchvision's own weights."""
        return None if self.published is None else list(self.published.meta["categories"])


def read_weights(
    name: str,
    checkpoint: str,
    build: Callable[[int], nn.Module],
    *,
    take: str | None,
    rename: Callable[[str], str] | None = None,
) -> ReadWeights:
    """Read a network's weights.

    Args:
        name: torchvision's.
        checkpoint: The file.
        build: Makes the network for a number of classes.
        take: Which of several weights.
        rename: Returns today's name of a tensor for one that older files have.

    Raises:
        NabnError: they cannot be read, or are another network's.
    """
    source = f"weights {checkpoint}"
    found = find_weights(read_checkpoint(checkpoint), tensor_names(build), source, take=take, rename=rename)
    return ReadWeights(
        state=found.state,
        outputs=count_classes(found.state, build, source),
        published=published_weights(name, checkpoint),
        source=source,
        notes=found.notes(source),
    )
