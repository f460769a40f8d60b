"""What a verifier remembers, so that no request gets through twice."""

from __future__ import annotations

import heapq
import math
import threading


class NonceMemory:
    """The nonces of one key; whatever is forgotten can no longer be replayed.

    A nonce is kept while a signature as old as its own would still be taken. If more than
    `max_nonces` would have to be kept, those of the oldest signatures go, and no other signature as
    old as they were is taken any more: a flood makes the window shorter, and never lets a replay
    through. May be used from several threads.

    Args:
        window: Seconds a signature is taken for.
        max_nonces: How many are kept; at least 1.
    """

    def __init__(self, window: float, max_nonces: int) -> None:
        self._window = window
        self._max_nonces = max_nonces
        self._by_age: list[tuple[int, str]] = []
        self._known: set[str] = set()
        self._forgotten = -math.inf
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many nonces are kept."""
        return len(self._known)

    def add(self, nonce: str, created: int, now: float) -> bool:
        """Take note of a nonce; False if it may have been here before.

        Args:
            nonce: The nonce.
            created: When its signature was made, in seconds since 1970.
            now: The time, likewise.
        """
        with self._lock:
            while self._by_age and self._by_age[0][0] < now - self._window:
                self._forget_oldest()
            if nonce in self._known or created <= self._forgotten:
                return False
            heapq.heappush(self._by_age, (created, nonce))
            self._known.add(nonce)
            if len(self._known) > self._max_nonces:
                self._forget_oldest()
            return True

    def _forget_oldest(self) -> None:
        self._forgotten, nonce = heapq.heappop(self._by_age)
        self._known.discard(nonce)
