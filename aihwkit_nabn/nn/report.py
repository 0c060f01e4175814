"""What a conversion did, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from aihwkit_nabn.results import UNVERIFIED

NOT_VERIFIED = UNVERIFIED + "no inputs were given to run both models on (convert_to_noise_aware takes example_inputs=)"


@dataclass(frozen=True, kw_only=True)
class LayerEntry:
    """One module of the model.

    Args:
        name: Its name in the model.
        kind: Its class.
        n_weights: Matrix weights it owns (biases, norms and their like are not counted).
        reason: Why it was treated as it was; empty for a plain conversion.
        n_tiles: Tiles it lies on.
        mapping: How its weights lie on them; empty if that is not known.
        copies: How often each column stands on its tile.
        n_cells: Cells in use, copies included.
    """

    name: str
    kind: str
    n_weights: int = 0
    reason: str = ""
    n_tiles: int = 0
    mapping: str = ""
    copies: int = 1
    n_cells: int = 0


@dataclass(kw_only=True)
class ConversionReport:
    """Every module with weights or with running statistics in exactly one of the lists.

    Args:
        converted: On tiles now.
        normalization: BatchNorm layers, and others with running statistics, that became noise-aware.
        kept_digital: Left as they were on purpose or because they have no analog form.
        refused: Of a kind that goes on tiles, but these cannot, each for its reason.
        verified: What a noise-free pass of both models has shown; empty if none was made.
    """

    converted: list[LayerEntry] = field(default_factory=list)
    normalization: list[LayerEntry] = field(default_factory=list)
    kept_digital: list[LayerEntry] = field(default_factory=list)
    refused: list[LayerEntry] = field(default_factory=list)
    verified: str = ""

    @property
    def n_weights(self) -> int:
        """Matrix weights in the model."""
        return sum(entry.n_weights for entry in self)

    @property
    def analog_share(self) -> float:
        """Share of the matrix weights that lie on tiles, 0 to 1."""
        return sum(entry.n_weights for entry in self.converted) / max(self.n_weights, 1)

    def __iter__(self) -> Iterator[LayerEntry]:
        yield from (*self.converted, *self.normalization, *self.kept_digital, *self.refused)

    def mappings(self) -> list[str]:
        """Return a line for each way in which layers lie on tiles, with what copied columns cost."""
        ways: dict[str, list[LayerEntry]] = {}
        for entry in self.converted:
            if entry.mapping:
                ways.setdefault(entry.mapping, []).append(entry)
        lines = []
        for way, members in ways.items():
            line = f"mapping of {len(members)} {'layer' if len(members) == 1 else 'layers'}: {way}"
            low, high = (pick(entry.copies for entry in members) for pick in (min, max))
            if high > 1:
                held = sum(entry.n_cells // entry.copies for entry in members)
                times = f"{low}" if low == high else f"{low} to {high}"
                line += f" ({times} times: {sum(entry.n_cells for entry in members):,} cells for {held:,} weights)"
            lines.append(line)
        return lines

    def __str__(self) -> str:
        tiles = sum(entry.n_tiles for entry in self.converted)
        lines = [
            f"{self.analog_share:.1%} of {self.n_weights:,} matrix weights on {tiles} tiles "
            f"({len(self.converted)} layers); {len(self.normalization)} normalization layers made noise-aware"
        ]
        for title, entries in (("kept digital", self.kept_digital), ("refused", self.refused)):
            if entries:
                share = sum(entry.n_weights for entry in entries) / max(self.n_weights, 1)
                lines.append(f"{title}: {len(entries)} layers, {share:.1%} of the weights")
                lines.extend(f"  {e.name or '(root)'} [{e.kind}, {e.n_weights:,}]: {e.reason}" for e in entries)
        lines += [*self.mappings(), self.verified or NOT_VERIFIED]
        return "\n".join(lines)
