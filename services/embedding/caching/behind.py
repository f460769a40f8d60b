"""What slower tiers have in common: written to behind the caller's back, and done without."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context

from services.embedding.caching.records import Kept
from shared.infrastructure.resilience import MONOTONIC, Clock

_log = logging.getLogger(__name__)


class Outage:
    """Whether something is out of order, told once at its beginning and once at its end.

    Args:
        what: What it is about, as the subject of a sentence.
        without: What happens as long as it lasts.
        retry_every: Seconds between attempts as long as it lasts.
        clock: Source of monotonic time.

    Attributes:
        is_on: Whether the last attempt failed.
        count: Attempts that failed.
    """

    def __init__(
        self, what: str, without: str, *, retry_every: float = 0.0, clock: Clock = MONOTONIC
    ) -> None:
        self._what = what
        self._without = without
        self._retry_every = retry_every
        self._now = clock.now
        self._retry_at = 0.0
        self.is_on = False
        self.count = 0

    @property
    def pauses(self) -> bool:
        """Whether it is too early for another attempt."""
        return self.is_on and self._now() < self._retry_at

    def failed(self, reason: str) -> None:
        """Take note of a failure; only the first of a row is told of."""
        self.count += 1
        self._retry_at = self._now() + self._retry_every
        if not self.is_on:
            self.is_on = True
            _log.warning("%s: %s; %s", self._what, reason, self._without)

    def worked(self) -> None:
        """Take note that it works."""
        if self.is_on:
            self.is_on = False
            _log.info("%s works again", self._what)


class WriteBehind:
    """Entries on their way to a slower tier; those that find no room are dropped and counted.

    Args:
        write: Writes some entries; raises nothing.
        batch: Entries written at once at most.
        max_bytes: Bytes of the vectors that may wait.
    """

    def __init__(
        self,
        write: Callable[[Mapping[bytes, Kept]], Awaitable[None]],
        *,
        batch: int = 256,
        max_bytes: int = 16 * 2**20,
    ) -> None:
        self._write = write
        self._batch = batch
        self._max_bytes = max_bytes
        self._waiting: dict[bytes, Kept] = {}
        self._bytes = 0
        self._worker: asyncio.Task[None] | None = None
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def get(self, key: bytes) -> Kept | None:
        """Return an entry that waits."""
        return self._waiting.get(key)

    def put(self, key: bytes, kept: Kept) -> None:
        """Have an entry written soon; on the event loop."""
        if key in self._waiting:
            return  # the same, under the same key
        if self._bytes + kept.entry.vector.nbytes > self._max_bytes:
            self.dropped += 1
            return
        self._bytes += kept.entry.vector.nbytes
        self._waiting[key] = kept
        if self._worker is None or self._worker.done():
            # Whose call it was, and by when it wants its answer, is no matter of the tier.
            loop = asyncio.get_running_loop()
            self._worker = loop.create_task(self._work(), context=Context())

    def clear(self) -> None:
        """Drop what waits."""
        self._waiting.clear()
        self._bytes = 0

    async def flush(self) -> None:
        """Wait until everything that waits now has been written, or could not be."""
        while self._worker is not None and not self._worker.done():
            await asyncio.wait({self._worker})

    async def aclose(self, timeout: float) -> None:
        """Flush, and give up what is not written after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.flush()
        if self._worker is not None:
            self._worker.cancel()
            await self.flush()
        self.dropped += len(self._waiting)
        self.clear()

    async def _work(self) -> None:
        while self._waiting:
            keys = tuple(itertools.islice(self._waiting, self._batch))
            batch = {key: self._waiting[key] for key in keys}
            try:
                await self._write(batch)
            except Exception:  # what comes after it shall not suffer from it
                self.dropped += len(batch)
                _log.exception("entries of the embedding cache could not be written")
            for key, kept in batch.items():
                if self._waiting.get(key) is kept:  # and not one put there after a `clear`
                    del self._waiting[key]
                    self._bytes -= kept.entry.vector.nbytes
