"""Which connection carries which request; who waits, what is kept, what is closed."""

from __future__ import annotations

import asyncio
from typing import Any

from shared.infrastructure.http.config import ConnectionPoolConfig
from shared.infrastructure.http.errors import (
    LocalProtocolViolationError,
    PoolTimeoutError,
    UpstreamError,
)
from shared.infrastructure.http.wire.alpn import Negotiation
from shared.infrastructure.http.wire.connect import Connector
from shared.infrastructure.http.wire.connection import Connection
from shared.infrastructure.http.wire.exchange import Exchange, Limits
from shared.infrastructure.http.wire.http2_connection import Http2Connection
from shared.infrastructure.http.wire.http2_head import encode_http2_head
from shared.infrastructure.http.wire.link import Link
from shared.infrastructure.http.wire.origin import Origin
from shared.infrastructure.http.wire.request import Body, Headers, Request, encode_head
from shared.infrastructure.http.wire.sharing import Sharing
from shared.infrastructure.resilience import (
    Bulkhead,
    BulkheadConfig,
    BulkheadFullError,
    Clock,
    ConfigurationError,
)
from shared.infrastructure.resilience.clock import TimerHandle


class Pool:
    """Connections to any number of origins, no more of them than its bound.

    A slot is the right to own one socket that carries an exchange; slots go out in order of
    arrival. The slot comes back when the answer has arrived, whether or not anybody has read it,
    or when the socket is closed. With HTTP/2 many exchanges share a connection, and its slot.

    Args:
        config: Bounds.
        connector: Opens connections.
        max_header_size: Bytes that the head of an answer may have.
        http2: Speak HTTP/2 where the service does.
        clock: Source of monotonic time.
    """

    def __init__(
        self,
        config: ConnectionPoolConfig,
        connector: Connector,
        *,
        max_header_size: int,
        http2: bool = False,
        clock: Clock,
    ) -> None:
        self._config = config
        self._connector = connector
        self._max_head = max_header_size
        self._clock = clock
        self._slots = Bulkhead(BulkheadConfig(max_concurrent=config.max_connections), clock=clock)
        self._connections: set[Link] = set()
        self._connecting: set[asyncio.Task[Link]] = set()
        self._sharing = Sharing(clock) if http2 else None
        # Of each origin, the longest idle one first.
        self._idle: dict[Origin, dict[Link, None]] = {}
        self._idle_count = 0
        self._reaper: TimerHandle | None = None
        self._is_trimming = False
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._requests = 0
        self._reused = 0

    async def send(
        self,
        origin: Origin,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: Body,
        limits: Limits,
    ) -> Exchange[Any]:
        """Send a request and return once the head of its answer is there.

        Args:
            origin: Where to.
            method: Request method.
            target: Path and query.
            headers: Names and values, sent as they are.
            body: All of it, or what yields it; delimited as `headers` say.
            limits: Seconds for `connect`, `read`, `write` and `pool`.

        Raises:
            UpstreamError: The exchange failed.
            ConfigurationError: The pool is closed, or belongs to another event loop.
        """
        sharing = self._sharing if origin.is_tls else None
        encode = encode_head if sharing is None else encode_http2_head
        host = origin.authority.encode()
        try:
            head = encode(method, target, host, headers)
            if isinstance(body, bytes) and head.length not in {None, len(body)}:
                raise LocalProtocolViolationError("the body has not the length declared")
            self._check_loop()
            connection: Link | None
            if sharing is not None:
                connection = await self._place(sharing, origin, limits)
            else:
                if not self._slots.try_acquire():
                    await self._wait_for_slot(limits.get("pool"))
                connection = self._kept(origin)
                if connection is None:
                    connection = await self._open(origin, limits.get("connect"))
            self._requests += 1
            request = Request(method, target, host, headers, body, head)
            return await connection.send(request, limits)
        except UpstreamError as error:
            error.host = origin.authority
            raise

    def stats(self) -> dict[str, int]:
        """Return what there is of connections, and what was done with them.

        Keys: `open`, `idle` and `connecting` connections, requests `waiting` for one, and the
        totals `requests` and `reused`, the requests that found a connection open.
        """
        return {
            "open": len(self._connections),
            "idle": self._idle_count,
            "connecting": len(self._connecting),
            "waiting": self._waiting(),
            "requests": self._requests,
            "reused": self._reused,
        }

    async def aclose(self) -> None:
        """Close every connection; exchanges under way fail, and so do waiting requests."""
        self._is_closed = True
        if self._reaper is not None:
            self._reaper.cancel()
        if self._loop is not asyncio.get_running_loop():
            return  # what was open died with its loop
        for task in self._connecting:
            task.cancel()
        for connection in list(self._connections):
            connection.close("the client was closed")
        while self._connections or self._connecting:  # noqa: ASYNC110 - gone in a turn or two
            await asyncio.sleep(0)

    def idle(self, connection: Link) -> None:
        """Take back a connection that may carry another exchange."""
        if self._sharing is not None:
            self._sharing.retire(connection)
        if self._is_closed or not self._config.max_keepalive_connections:
            connection.close()
            return
        connection.is_busy = False
        connection.idle_since = self._clock.now()
        self._idle.setdefault(connection.origin, {})[connection] = None
        self._idle_count += 1
        if self._reaper is None:
            self._reaper = self._clock.call_later(self._config.keepalive_expiry, self._reap)
        if self._idle_count > self._config.max_keepalive_connections and not self._is_trimming:
            self._is_trimming = True
            # In two turns, so that those who got an answer in this one can ask again before.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._trim)
        self._slots.release()

    def retired(self, connection: Link) -> None:
        """Lend `connection` to nobody else; what it carries may go on."""
        if self._sharing is not None:
            self._sharing.retire(connection)

    def lost(self, connection: Link) -> None:
        """Take note that the socket of a connection is closed."""
        self._connections.discard(connection)
        if connection.is_busy:
            connection.is_busy = False
            self._slots.release()
        else:
            self._forget(connection)

    async def _place(self, sharing: Sharing, origin: Origin, limits: Limits) -> Link:
        """Return a connection with a place for one more exchange on it, taken."""
        while True:
            shared = await sharing.join(origin, limits)
            if shared is not None:
                self._reused += 1
                return shared
            if not self._slots.try_acquire():
                await self._wait_for_slot(limits.get("pool"))
                if origin in sharing:
                    self._slots.release()
                    continue
            connection = self._kept(origin)
            if connection is None:
                with sharing.opening(origin):
                    connection = await self._open(origin, limits.get("connect"))
                    sharing.share(connection)
            else:
                sharing.share(connection)
            if not isinstance(connection, Http2Connection):
                return connection
            if await connection.enter(limits.get("pool")):
                return connection

    def _waiting(self) -> int:
        waiting: int = self._slots.snapshot()["waiting"]
        return waiting if self._sharing is None else waiting + self._sharing.waiting

    def _check_open(self) -> None:
        if self._is_closed:
            raise ConfigurationError("the transport is closed; make a new one")

    def _check_loop(self) -> None:
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._connections or self._connecting or self._slots.in_flight:
                raise ConfigurationError(
                    "the transport has connections of another event loop; make one for each loop"
                )
            self._loop = loop

    async def _wait_for_slot(self, limit: float | None) -> None:
        try:
            await self._slots.acquire(max_wait=limit)
        except BulkheadFullError:
            raise PoolTimeoutError(
                f"all {self._slots.limit} connections stayed busy for {limit:g} s"
            ) from None
        if self._is_closed:
            self._slots.release()
            self._check_open()

    def _kept(self, origin: Origin) -> Link | None:
        """Return the idle connection that was used last; close those that are too old."""
        kept = self._idle.get(origin)
        while kept:
            connection, _ = kept.popitem()
            self._idle_count -= 1
            age = self._clock.now() - connection.idle_since
            if age < self._config.keepalive_expiry and connection.is_quiet():
                connection.is_busy = True
                self._reused += 1
                return connection
            connection.close()
        return None

    async def _open(self, origin: Origin, limit: float | None) -> Link:
        """Open a connection for a slot just taken, which is the connection's from then on."""
        task = None
        try:
            await self._make_room()
            self._check_open()
            task = asyncio.create_task(self._connect(origin, limit))
            self._connecting.add(task)
            connection = await task
            self._check_open()
        except BaseException as exc:
            if task is not None and task.done() and not task.cancelled() and not task.exception():
                task.result().close()  # ended when it was just open
            else:
                self._slots.release()
            if isinstance(exc, asyncio.CancelledError) and not _cancelled():
                self._check_open()  # it was not the caller, but `aclose`
            raise
        finally:
            if task is not None:
                self._connecting.discard(task)
        return connection

    async def _connect(self, origin: Origin, limit: float | None) -> Link:
        connection = await self._connected(origin, limit)
        connection.is_busy = True
        self._connections.add(connection)
        if connection.is_lost:
            self.lost(connection)
        if task := asyncio.current_task():
            self._connecting.discard(task)
        return connection

    async def _connected(self, origin: Origin, limit: float | None) -> Link:
        def make(kind: type[Link] = Connection) -> Link:
            return kind(origin, self, self._clock, self._max_head)

        if self._sharing is None or not origin.is_tls:
            return await self._connector.connect(origin, make, limit)
        negotiation = await self._connector.connect(origin, lambda: Negotiation(make), limit)
        return negotiation.link

    async def _make_room(self) -> None:
        """Wait until one more socket is within the bound; idle ones have to go."""
        bound = self._config.max_connections
        while len(self._connections) + len(self._connecting) >= bound:
            if self._slots.in_flight + self._idle_count > bound:
                self._close_oldest()
            await asyncio.sleep(0)

    def _trim(self) -> None:
        self._is_trimming = False
        while self._idle_count > self._config.max_keepalive_connections:
            self._close_oldest()

    def _close_oldest(self) -> None:
        heads = (next(iter(kept)) for kept in self._idle.values() if kept)
        oldest = min(heads, key=lambda connection: connection.idle_since)
        self._forget(oldest)
        oldest.close()

    def _forget(self, connection: Link) -> None:
        kept = self._idle.get(connection.origin)
        if kept is not None and connection in kept:
            del kept[connection]
            self._idle_count -= 1

    def _reap(self) -> None:
        self._reaper = None
        now, expiry = self._clock.now(), self._config.keepalive_expiry
        youngest = now
        for connection in [connection for kept in self._idle.values() for connection in kept]:
            if now - connection.idle_since >= expiry:
                self._forget(connection)
                connection.close()
            else:
                youngest = min(youngest, connection.idle_since)
        self._idle = {origin: kept for origin, kept in self._idle.items() if kept}
        if self._idle:
            self._reaper = self._clock.call_later(youngest + expiry - now, self._reap)


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
