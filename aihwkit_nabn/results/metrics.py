"""Which metrics are parts of others: ``mIoU/car`` is a part of ``mIoU``."""

from __future__ import annotations

from collections.abc import Iterable


def detail_metrics(names: Iterable[str]) -> dict[str, str]:
    """Return the metrics that are a part of another, such as one class of it, with the name of that other.

    Args:
        names: All metrics. ``"mIoU/car"`` is a part of ``"mIoU"`` if that is among them.
    """
    known = list(names)
    parents = {name: name.rpartition("/")[0] for name in known}
    return {name: parent for name, parent in parents.items() if parent in known}


def main_metrics(names: Iterable[str]) -> list[str]:
    """Return the metrics that are no part of another, in their order."""
    known = list(names)
    details = detail_metrics(known)
    return [name for name in known if name not in details]
