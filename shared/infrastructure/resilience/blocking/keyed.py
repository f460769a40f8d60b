"""One value for each key, asked for by many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from shared.infrastructure.resilience.keyed import Keyed

T_co = TypeVar("T_co", covariant=True)


class BlockingKeyed(Keyed[T_co]):
    """A `Keyed` for threads: each value is built once, whoever asks at the same time.

    The factory and `keep` run under the lock of the registry: they should be quick.

    Args:
        factory: As for `Keyed`.
        max_keys: As for `Keyed`.
        keep: As for `Keyed`.
    """

    def __init__(
        self,
        factory: Callable[[Any], T_co],
        *,
        max_keys: int = 1000,
        keep: Callable[[T_co], bool] | None = None,
    ) -> None:
        super().__init__(factory, max_keys=max_keys, keep=keep)
        self._lock = threading.RLock()

    def get(self, key: Hashable) -> T_co:
        with self._lock:
            return super().get(key)

    def discard(self, key: Hashable) -> None:
        with self._lock:
            super().discard(key)

    def snapshot(self) -> dict[Hashable, Any]:
        with self._lock:
            return super().snapshot()
