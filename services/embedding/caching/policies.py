"""Which entry goes first when there is no room for all."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from services.embedding.outcome import Embedded


class Policy(Protocol):
    """Entries in the order in which they will go."""

    def __len__(self) -> int: ...

    def use(self, key: bytes) -> Embedded | None:
        """Return an entry, and take note that it was used."""
        ...

    def peek(self, key: bytes) -> Embedded | None:
        """Return an entry."""
        ...

    def add(self, key: bytes, entry: Embedded) -> None:
        """Add an entry under a key that has none."""
        ...

    def pop(self, key: bytes) -> Embedded | None:
        """Remove an entry and return it."""
        ...

    def evict(self) -> tuple[bytes, Embedded]:
        """Remove the entry that is missed least; there must be one."""
        ...


class LeastRecentlyUsed:
    """What was used longest ago goes first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, Embedded] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def use(self, key: bytes) -> Embedded | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def peek(self, key: bytes) -> Embedded | None:
        return self._entries.get(key)

    def add(self, key: bytes, entry: Embedded) -> None:
        self._entries[key] = entry

    def pop(self, key: bytes) -> Embedded | None:
        return self._entries.pop(key, None)

    def evict(self) -> tuple[bytes, Embedded]:
        return self._entries.popitem(last=False)


class Sieve:
    """What was not used since the hand last came by goes first.

    The hand walks from old to new and round again. An entry that was used stays where it is, so
    that one long scan, which uses nothing twice, mostly evicts itself.

    Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024.
    """

    def __init__(self) -> None:
        # The queue, oldest first, is `_behind`, the hand, `_ahead`.
        self._behind: OrderedDict[bytes, Embedded] = OrderedDict()
        self._ahead: OrderedDict[bytes, Embedded] = OrderedDict()
        self._used: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._behind) + len(self._ahead)

    def use(self, key: bytes) -> Embedded | None:
        entry = self.peek(key)
        if entry is not None:
            self._used.add(key)
        return entry

    def peek(self, key: bytes) -> Embedded | None:
        return self._ahead.get(key) or self._behind.get(key)

    def add(self, key: bytes, entry: Embedded) -> None:
        self._ahead[key] = entry

    def pop(self, key: bytes) -> Embedded | None:
        self._used.discard(key)
        return self._ahead.pop(key, None) or self._behind.pop(key, None)

    def evict(self) -> tuple[bytes, Embedded]:
        while True:
            if not self._ahead:
                self._ahead, self._behind = self._behind, self._ahead
            key, entry = self._ahead.popitem(last=False)
            if key not in self._used:
                return key, entry
            self._used.remove(key)
            self._behind[key] = entry
