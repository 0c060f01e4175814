"""Which of a network's labels the classes of some data are, by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from aihwkit_nabn.errors import NabnError, some


def is_nameless(labels: Mapping[int, str]) -> bool:
    """Whether a network's labels are but numbered, as transformers does it where nobody names them."""
    return all(name == f"LABEL_{label}" for label, name in labels.items())


def labels_of_names(names: Sequence[str], labels: Mapping[int, str], data: str, network: str) -> list[int]:
    """Return a network's label of each class of some data.

    Names are compared without regard to capitals, hyphens and underscores. Labels without names are taken in order.

    Args:
        names: Of the data's classes.
        labels: The network's, with their names.
        data: What the names are, for messages: ``"class folders of DATA"``.
        network: What the labels are, for messages.

    Raises:
        NabnError: the network has no label of a name; of labels without names, there are more or fewer.
    """
    if is_nameless(labels):
        if len(labels) != len(names):
            raise NabnError(f"{network} has {len(labels)} labels without names, but there are {len(names)} {data}")
        return list(labels)
    known = {_plain(name): label for label, name in sorted(labels.items(), reverse=True)}
    lacking = [name for name in names if _plain(name) not in known]
    if lacking:
        raise NabnError(
            f"{len(lacking)} of the {len(names)} {data} are none of the labels of {network}: {some(lacking)}; its "
            f"id2label has {len(labels)}: {some(list(labels.values()))}; where it means them, in another language or "
            "code, write their names there"
        )
    found = [known[_plain(name)] for name in names]
    twice = next((name for name, label in zip(names, found, strict=True) if found.count(label) > 1), None)
    if twice is not None:
        raise NabnError(f"several of the {data} are one label of {network}, {twice!r} among them")
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
