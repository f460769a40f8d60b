"""The third tier: vectors that processes share through a Redis, asked in bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import Context
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from services.embedding.caching.behind import Outage, WriteBehind
from services.embedding.caching.records import Kept, decode, encoded
from shared.infrastructure.resilience import (
    MONOTONIC,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    CircuitState,
    Clock,
    MissingExtraError,
    Permit,
    Verdict,
)
from shared.infrastructure.resilience.layer import summary

Result = TypeVar("Result")

_PREFIX = b"morgan:embedding:"
# Seconds an exchange may take that nobody waits for, such as a write. A look-up that was given up
# goes on for as long, so that a connection that is slow to come about comes about.
_PATIENCE = 1.0
_CLOSE_TIMEOUT = 5.0
_MOST_EXCHANGES = 64
# Entries in an exchange: their checksums are computed on the event loop, in well under 1 ms.
_BATCH = 64
# Turns of the event loop that an answer takes from the socket to its task.
_TURNS = 3
_BREAKER = CircuitBreakerConfig(success_threshold=1, timeout=0.5, max_timeout=1.0)


class RedisAwayError(Exception):
    """There is no answer; nobody outside of the tier sees this."""


class RedisRefusesError(Exception):
    """It answers that it will not; nobody outside of the tier sees this."""


_Failure = RedisAwayError | RedisRefusesError
_FAILURES = (RedisAwayError, RedisRefusesError)


class _Client(Protocol):
    async def mget(self, names: Sequence[bytes]) -> Sequence[object]: ...

    async def mset(self, values: Mapping[bytes, tuple[bytes, float | None]]) -> int: ...

    async def aclose(self) -> None: ...


class RedisTier:
    """Entries in a Redis; no error leaves it.

    Args:
        url: Of the Redis; never shown, as it may hold a password.
        timeout: Seconds a look-up of up to 64 keys may take, and of each 64 of more; what has not
            come by then is a miss.
        wall: Source of Unix time.
        clock: Source of monotonic time.

    Raises:
        MissingExtraError: The package redis is not installed.
        ConfigurationError: The URL makes no sense.
    """

    name = "redis"

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 0.005,
        wall: Callable[[], float] = time.time,
        clock: Clock = MONOTONIC,
    ) -> None:
        self._client = _connect(url)
        self._timeout = timeout
        self._wall = wall
        self._now = clock.now
        self._dimension = 0
        self._running = False
        self._exchanges: set[asyncio.Task[Any]] = set()
        self._behind = WriteBehind(self._write, batch=_BATCH)
        what = f"the embedding cache in Redis at {_address(url)}"
        self._away = Outage(what, "nothing is looked up or written there")
        self._refused = Outage(what, "nothing is written there")
        self._breaker = CircuitBreaker("embedding-cache", _BREAKER, clock=clock)
        self._hits = self._misses = self._corrupt = self._dropped = self._failures = 0

    async def start(self, dimension: int) -> None:
        """Connect; a Redis that is not there is done without."""
        self._dimension = dimension
        self._running = True
        await self._ask(lambda: self._client.mget([_PREFIX]), _PATIENCE)

    async def aclose(self) -> None:
        """Write what waits, and close the connections."""
        await self._behind.aclose(_CLOSE_TIMEOUT)
        self._running = False
        for exchange in self._exchanges:
            exchange.cancel()
        await asyncio.gather(*self._exchanges, return_exceptions=True)
        await self._client.aclose()

    async def fetch(self, keys: Sequence[bytes]) -> dict[bytes, Kept]:
        """Return the entries that come in time."""
        found: dict[bytes, Kept] = {}
        if self._running:
            for start in range(0, len(keys), _BATCH):
                part = keys[start : start + _BATCH]
                values = await self._look_up(part)
                if values is None:
                    break  # so that nobody waits for a second answer that does not come
                found.update(self._read(part, values))
        self._hits += len(found)
        self._misses += len(keys) - len(found)
        return found

    def put(self, key: bytes, kept: Kept) -> None:
        """Have an entry written soon."""
        if self._running:
            self._behind.put(key, kept)

    def clear(self) -> None:
        """Drop what is not written yet; what is written belongs to other processes, too."""
        self._behind.clear()

    def snapshot(self) -> dict[str, Any]:
        """Return counters as plain JSON types."""
        return {
            "hits": self._hits,
            "misses": self._misses,
            "corrupt": self._corrupt,
            "waiting": len(self._behind),
            "dropped": self._dropped + self._behind.dropped,
            "failures": self._failures,
            "circuit": self._breaker.state.value,
            "available": self._breaker.state is CircuitState.CLOSED,
        }

    async def _look_up(self, keys: Sequence[bytes]) -> Sequence[object] | None:
        names = [_PREFIX + key for key in keys]
        return await self._ask(lambda: self._client.mget(names), self._timeout)

    def _read(self, keys: Sequence[bytes], values: Sequence[object]) -> dict[bytes, Kept]:
        found: dict[bytes, Kept] = {}
        for key, value in zip(keys, values, strict=True):
            kept = decode(key, value, self._dimension)
            if kept is not None:
                found[key] = kept
            elif value is not None:
                self._corrupt += 1
        return found

    async def _write(self, entries: Mapping[bytes, Kept]) -> None:
        now = self._wall()
        records = {
            _PREFIX + key: (record, None if (ends := entries[key].ends) is None else ends - now)
            for key, record in encoded(entries).items()
        }
        self._dropped += len(entries) - len(records)
        if not records:
            return
        if await self._ask(lambda: self._client.mset(records), _PATIENCE, writes=True) is None:
            self._dropped += len(records)

    async def _ask(
        self, send: Callable[[], Coroutine[Any, Any, Result]], timeout: float, writes: bool = False
    ) -> Result | None:
        """Return what comes of an exchange; None if nothing comes in time."""
        if len(self._exchanges) >= _MOST_EXCHANGES:
            return None
        try:
            permit = self._breaker.admit()
        except CircuitOpenError:
            return None
        try:
            outcome = await self._outcome(send, timeout)
        except BaseException:
            permit.settle(Verdict.VOID)
            raise
        self._settle(permit, outcome, writes)
        return None if isinstance(outcome, _FAILURES) else outcome

    def _settle(self, permit: Permit, outcome: object, writes: bool) -> None:
        if not isinstance(outcome, _FAILURES):
            permit.settle(Verdict.VOID if outcome is None else Verdict.OK)
            if outcome is not None:
                self._away.worked()
            if writes:
                self._refused.worked()
            return
        self._failures += 1
        if writes and isinstance(outcome, RedisRefusesError):
            # A Redis that is full, for example, can still be looked into.
            permit.settle(Verdict.VOID)
            self._refused.failed(str(outcome))
            return
        permit.settle(Verdict.FAILED)
        if self._breaker.refuses_all:
            self._away.failed(str(outcome))

    async def _outcome(
        self, send: Callable[[], Coroutine[Any, Any, Result]], timeout: float
    ) -> Result | _Failure | None:
        """Return an answer, or why there is none; None if it is not the fault of Redis."""
        began = self._now()
        exchange = asyncio.get_running_loop().create_task(_exchange(send), context=Context())
        self._exchanges.add(exchange)
        exchange.add_done_callback(self._exchanges.discard)
        # Unlike `asyncio.timeout` this sees an answer that came while the loop was busy.
        await asyncio.wait({exchange}, timeout=timeout)
        for _ in range(_TURNS):
            if not exchange.done():
                await asyncio.sleep(0)
        if exchange.cancelled():
            return None
        if exchange.done():
            return exchange.result()
        if self._now() - began > 2 * timeout:
            return None  # it was our own event loop that was busy
        return RedisAwayError(f"no answer within {timeout:g} s")


async def _exchange(send: Callable[[], Coroutine[Any, Any, Result]]) -> Result | _Failure:
    # A failure that is returned needs nobody to wait for it.
    try:
        async with asyncio.timeout(_PATIENCE):
            return await send()
    except TimeoutError:
        return RedisAwayError(f"no answer within {_PATIENCE:g} s")
    except _FAILURES as failure:
        return failure
    except Exception as error:  # whatever it is, no caller shall suffer from it
        return RedisAwayError(summary(error))


def _address(url: str) -> str:
    """Return the part of a URL that is no secret."""
    try:
        address = urlsplit(url)
        return address.netloc.rpartition("@")[2] or address.path
    except ValueError:
        return "?"


def _connect(url: str) -> _Client:
    try:
        from services.embedding.caching.redis_client import RedisClient  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MissingExtraError("a cache of embeddings in Redis", "redis") from error
    return RedisClient(url)
