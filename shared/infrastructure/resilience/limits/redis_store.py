"""The Redis in which processes share their limits: asked in bounded time, and done without.

A store that does not answer in time is away; those who use it are told at once, and again when it
is back. Needs the extra `redis`, which is imported when a store is made.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine, Sequence
from contextvars import Context
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, Field

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import ConfigurationError, MissingExtraError
from shared.infrastructure.resilience.events import LimiterStoreChanged, Listener, Listeners
from shared.infrastructure.resilience.limits.redis_scripts import PROBE, Script

Result = TypeVar("Result")

_CLOSED = "the store of this limiter is closed: use limiters inside of its `async with`"


class RedisConfig(BaseModel, frozen=True, extra="forbid"):
    """Where limits are shared.

    Attributes:
        url: Of a Redis from 6.2 on, or a Valkey: `redis://`, `rediss://` or `unix://`, with user,
            password and database if need be; no default.
        prefix: What the names of all keys begin with; `morgan`.
        timeout: Seconds an answer may take, connecting included, before limits are kept without
            Redis; 0.08; above 0.
        retry_every: Seconds between looks for a Redis that is away; 0.5; above 0. A connection
            may take as long as this to come about.
    """

    url: str = Field(repr=False, pattern="^(rediss?|unix)://")
    prefix: str = Field(default="morgan", min_length=1)
    timeout: float = Field(default=0.08, gt=0)
    retry_every: float = Field(default=0.5, gt=0)


class StoreAwayError(Exception):
    """The store did not answer; nobody outside of the limiters sees this."""


class StoreRefusesError(Exception):
    """The store will not do what it is asked; nobody outside of the store sees this."""


class StoreUser(Protocol):
    """What a store tells when it is lost or found; called on the event loop."""

    def store_changed(self) -> None:
        """Take note that `away` of the store has changed."""
        ...


class _Wire(Protocol):
    async def run(
        self, script: Script, keys: Sequence[str], args: Sequence[object]
    ) -> list[int]: ...

    async def aclose(self) -> None: ...


class RedisStore:
    """A Redis for any number of limiters, all on one event loop.

    An error that says that we ask wrongly, such as a wrong password, is a `ConfigurationError` as
    long as Redis has never answered: a limit must not silently be none. Once it has, every error
    means that it is away.

    Args:
        config: Where it is, and how long to wait for it.
        listeners: Told with `LimiterStoreChanged` when it is lost or found.
        clock: Source of time.

    Raises:
        MissingExtraError: The package redis is not installed.
    """

    def __init__(
        self, config: RedisConfig, *, listeners: Sequence[Listener] = (), clock: Clock = MONOTONIC
    ) -> None:
        self.config = config
        self.away = False
        self._wire = _connect(config.url)
        self._clock = clock
        self._listeners = Listeners(listeners)
        self._users: weakref.WeakSet[StoreUser] = weakref.WeakSet()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_answered = False
        self._closed = False
        # Exchanges under way, those nobody waits for any more included, and the search.
        self._tasks: set[asyncio.Task[Any]] = set()
        address = urlsplit(config.url)
        self._name = address.netloc.rpartition("@")[2] or address.path

    def watch(self, user: StoreUser) -> None:
        """Tell `user` of changes for as long as somebody else refers to it."""
        self._users.add(user)

    def check_usable(self) -> None:
        """Raise ConfigurationError if the store is closed, or belongs to another event loop."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ConfigurationError(_CLOSED)
        if self._loop is not loop:
            if self._loop is not None:
                raise ConfigurationError(
                    "this store belongs to another event loop: make a store and limiters in each"
                )
            self._loop = loop

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[object]) -> list[int]:
        """Run a script, and return what it replied.

        Raises:
            StoreAwayError: There was no answer; the store is away from now on.
            ConfigurationError: Redis refuses us, and always has.
        """
        self.check_usable()
        if self.away:
            raise StoreAwayError
        try:
            reply = await self._ask(script, keys, args, self.config.timeout)
        except StoreAwayError as error:
            if not self.away:
                self._change(away=True, reason=str(error))
                self._start(self._search())
            raise
        return reply

    async def aclose(self) -> None:
        """Close the connections; limiters on this store cannot be used any more."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._wire.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _ask(
        self, script: Script, keys: Sequence[str], args: Sequence[object], timeout: float
    ) -> list[int]:
        task = self._start(self._wire.run(script, keys, args))
        try:
            # Unlike `asyncio.timeout` this sees an answer that came while the loop was busy.
            await asyncio.wait({task}, timeout=timeout)
            if not task.done():
                raise StoreAwayError(f"no answer within {timeout:g} s")
            if task.cancelled():
                raise ConfigurationError(_CLOSED)
            reply = task.result()
        except StoreRefusesError as error:
            if self._has_answered:
                raise StoreAwayError(str(error)) from error
            raise ConfigurationError(
                f"Redis at {self._name} refuses what a limiter asks: {error}; check url, user, "
                "password, database and permissions"
            ) from error
        finally:
            task.cancel()
        self._has_answered = True
        return reply

    async def _search(self) -> None:
        began = self._clock.now()
        key = f"{self.config.prefix}:probe"
        while self.away:
            await self._clock.sleep(self.config.retry_every)
            try:
                await self._ask(PROBE, [key], [], self.config.retry_every)
            except StoreAwayError:
                continue
            except ConfigurationError:  # no event: those who call next are told
                self._tell(away=False)
                return
            self._change(away=False, reason=f"back after {self._clock.now() - began:.3g} s")

    def _change(self, *, away: bool, reason: str) -> None:
        self._listeners(LimiterStoreChanged(self._name, available=not away, reason=reason))
        self._tell(away=away)

    def _tell(self, *, away: bool) -> None:
        self.away = away
        for user in tuple(self._users):
            user.store_changed()

    def _start(self, coroutine: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        # What a call has in its context, a deadline for example, is no business of the store.
        task = asyncio.get_running_loop().create_task(coroutine, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it has it; for others it is read here


def _connect(url: str) -> _Wire:
    try:
        from shared.infrastructure.resilience.limits.redis_wire import (  # noqa: PLC0415 - optional
            RedisWire,
        )
    except ImportError as error:
        raise MissingExtraError("a rate limit shared through Redis", "redis") from error
    return RedisWire(url)
