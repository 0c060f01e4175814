"""A table of classes by name, which checks its entries and suggests the nearest to a mistyped name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from aihwkit_nabn.errors import NabnError, UnknownNameError

T = TypeVar("T")

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Registry(Generic[T]):
    """Entries of one kind, by name.

    Args:
        kind: What the entries are, in the singular, for messages: ``"noise model"``.
        check: Called as ``check(name, entry)`` before an entry is taken in; raises to refuse it.
    """

    def __init__(self, kind: str, check: Callable[[str, T], None] | None = None) -> None:
        self.kind = kind
        self._check = check
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters a class or function under `name`.

        Registering the same class again (a module reloaded, a notebook cell run twice) replaces it.

        Raises:
            NabnError: `name` is not lower_snake_case, or another entry has it.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise NabnError(f"{self.kind} name must be lower_snake_case, got {name!r}")

        def enter(entry: T) -> T:
            known = self._entries.get(name)
            if known is not None and _origin(known) != _origin(entry):
                raise NabnError(f"{self.kind} {name!r} is already registered by {_origin(known)}")
            if self._check is not None:
                self._check(name, entry)
            self._entries[name] = entry
            return entry

        return enter

    def unregister(self, name: str) -> None:
        """Take the entry out.

        Raises:
            UnknownNameError: there is none of this name.
        """
        self.get(name)
        del self._entries[name]

    def get(self, name: str) -> T:
        """Return the entry.

        Raises:
            UnknownNameError: there is none of this name; the message suggests the nearest.
        """
        if not isinstance(name, str) or name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        return self._entries[name]

    def names(self) -> list[str]:
        """Return the names in the order of registration."""
        return list(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _origin(entry: object) -> str:
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', repr(entry))}"
