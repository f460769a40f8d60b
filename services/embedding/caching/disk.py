"""The second tier: vectors in a file, which outlive the process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from services.embedding.caching.behind import Outage, WriteBehind
from services.embedding.caching.disk_file import DiskFile
from services.embedding.caching.records import Kept, decode, encoded
from shared.infrastructure.resilience import MONOTONIC, Clock
from shared.infrastructure.resilience.layer import summary

Result = TypeVar("Result")

# Seconds between attempts at a file that cannot be read or written.
_RETRY_EVERY = 10.0
# Seconds that opening, and writing the rest in the end, may take.
_PATIENCE = 5.0


class DiskTier:
    """Entries in a `DiskFile`, read and written on a thread of their own; no error leaves it.

    Args:
        path: The file.
        max_bytes: Size it may reach.
        timeout: Seconds a look-up may take; what is not there by then is a miss.
        wall: Source of Unix time.
        clock: Source of monotonic time.
    """

    name = "disk"

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        *,
        timeout: float = 1.0,
        wall: Callable[[], float] = time.time,
        clock: Clock = MONOTONIC,
    ) -> None:
        self._file = DiskFile(path, max_bytes)
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._wall = wall
        self._dimension = 0
        self._thread: ThreadPoolExecutor | None = None
        self._behind = WriteBehind(self._write)
        what = f"the embedding cache {path}"
        self._reading = Outage(
            what, "nothing is looked up there", retry_every=_RETRY_EVERY, clock=clock
        )
        self._writing = Outage(
            what, "nothing is written there", retry_every=_RETRY_EVERY, clock=clock
        )
        self._hits = self._misses = self._corrupt = self._dropped = 0

    async def start(self, dimension: int) -> None:
        """Open the file; one that cannot be opened is done without."""
        self._dimension = dimension
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedding-cache")
        await self._attempt(self._reading, self._file.open, _PATIENCE)

    async def aclose(self) -> None:
        """Write what waits, and close the file."""
        await self._behind.aclose(_PATIENCE)
        thread, self._thread = self._thread, None
        if thread is not None:
            closing = thread.submit(_outcome, self._close)
            thread.shutdown(wait=False)
            await asyncio.wait({asyncio.wrap_future(closing)}, timeout=_PATIENCE)

    async def fetch(self, keys: Sequence[bytes]) -> dict[bytes, Kept]:
        """Return the entries there are; those that cannot be read are none."""
        found = await self._attempt(self._reading, lambda: self._read(keys), self._timeout) or {}
        for key in keys:
            if key not in found and (waiting := self._behind.get(key)) is not None:
                found[key] = waiting
        self._hits += len(found)
        self._misses += len(keys) - len(found)
        return found

    def put(self, key: bytes, kept: Kept) -> None:
        """Have an entry written soon."""
        if self._thread is not None:
            self._behind.put(key, kept)

    def clear(self) -> None:
        """Delete every entry; whatever is looked up from now on is not found."""
        self._behind.clear()
        if self._thread is not None:
            self._thread.submit(_outcome, self._file.clear)

    def snapshot(self) -> dict[str, Any]:
        """Return sizes and counters as plain JSON types; sizes are those of the last write."""
        return {
            "entries": self._file.entries,
            "bytes": self._file.size_bytes,
            "max_bytes": self._max_bytes,
            "hits": self._hits,
            "misses": self._misses,
            "evictions": self._file.evictions,
            "corrupt": self._corrupt,
            "set_aside": self._file.set_aside,
            "waiting": len(self._behind),
            "dropped": self._dropped + self._behind.dropped,
            "read_failures": self._reading.count,
            "write_failures": self._writing.count,
            "available": not (self._reading.is_on or self._writing.is_on),
        }

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, Kept]:
        now = self._wall()
        found: dict[bytes, Kept] = {}
        useless: list[bytes] = []
        for key, record in self._file.read(keys).items():
            kept = decode(key, record, self._dimension)
            if kept is None or kept.has_ended(now):
                useless.append(key)
                self._corrupt += kept is None
            else:
                found[key] = kept
        if useless:
            _outcome(lambda: self._file.discard(useless))  # misses in any case
        return found

    def _close(self) -> None:
        _outcome(lambda: self._file.write({}))  # what was read last is used last
        self._file.close()

    async def _write(self, entries: Mapping[bytes, Kept]) -> None:
        def write() -> int:
            records = encoded(entries)
            self._file.write(records)
            return len(records)

        self._dropped += len(entries) - (await self._attempt(self._writing, write) or 0)

    async def _attempt(
        self, outage: Outage, work: Callable[[], Result], timeout: float | None = None
    ) -> Result | None:
        """Do work on the thread; return None if there is no result in time."""
        if self._thread is None or outage.pauses:
            return None
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, _outcome, work)
        await asyncio.wait({future}, timeout=timeout)
        if not future.done():
            future.cancel()  # unless it has begun
            outage.failed(f"no answer within {timeout:g} s")
            return None
        outcome = future.result()
        if isinstance(outcome, Exception):
            outage.failed(summary(outcome))
            return None
        outage.worked()
        return outcome


def _outcome(work: Callable[[], Result]) -> Result | Exception:
    # An error returned needs nobody to wait for it.
    try:
        return work()
    except Exception as error:  # whatever it is, no caller shall suffer from it
        return error
