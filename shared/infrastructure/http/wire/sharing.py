"""Which origins speak HTTP/2, and the one connection to each of them that takes new requests."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, nullcontext

from shared.infrastructure.http.errors import (
    ConnectFailedError,
    ConnectTimeoutError,
    UpstreamError,
)
from shared.infrastructure.http.wire.exchange import Limits
from shared.infrastructure.http.wire.http2_connection import Http2Connection
from shared.infrastructure.http.wire.link import Link
from shared.infrastructure.http.wire.origin import Origin
from shared.infrastructure.resilience import Clock
from shared.infrastructure.resilience.timeout import TimeLimit

_MAX_KNOWN = 1024


class Sharing:
    """Connections that many requests share.

    An origin has one of them (RFC 9113, section 9.1): if it carries as much as the service allows,
    requests wait for a place on it. While the first one is being opened, the others wait as well,
    for nobody knows yet whether they can share it.

    Args:
        clock: Source of monotonic time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[Origin, Http2Connection] = {}
        self._opening: dict[Origin, asyncio.Future[UpstreamError | None]] = {}
        self._joining = 0
        # What ALPN has said; asked for no other reason than to open many connections at once.
        self._without: set[Origin] = set()

    @property
    def waiting(self) -> int:
        """Requests that wait for a place, or for the connection to be there."""
        return self._joining + sum(connection.waiting for connection in self._open.values())

    def __contains__(self, origin: Origin) -> bool:
        return origin in self._open or origin in self._opening

    async def join(self, origin: Origin, limits: Limits) -> Http2Connection | None:
        """Take a place on the connection to `origin`; return None if there is none to share.

        Raises:
            PoolTimeoutError: It stayed full for `pool` seconds.
            ConnectTimeoutError: It was not there within `connect` seconds.
            ConnectFailedError: It will not be there.
        """
        while True:
            connection, opening = self._open.get(origin), self._opening.get(origin)
            if connection is not None:
                if await connection.enter(limits.get("pool")):
                    return connection
                self.retire(connection)
            elif opening is not None:
                await self._opened(opening, limits.get("connect"))
            else:
                return None

    @contextmanager
    def opening(self, origin: Origin) -> Generator[None]:
        """Let others wait for the connection that is opened in this block."""
        if origin in self._without or origin in self._opening:
            yield
            return
        over = self._opening[origin] = asyncio.get_running_loop().create_future()
        error: UpstreamError | None = None
        try:
            yield
        except UpstreamError as exc:
            error = exc
            raise
        finally:
            del self._opening[origin]
            over.set_result(error)

    def share(self, connection: Link) -> None:
        """Let others join a connection that is in use from now on, if it can be shared."""
        origin = connection.origin
        if isinstance(connection, Http2Connection):
            self._without.discard(origin)
            self._open.setdefault(origin, connection)
            return
        if len(self._without) >= _MAX_KNOWN:
            self._without.clear()
        self._without.add(origin)

    def retire(self, connection: Link) -> None:
        """Let nobody else join a connection."""
        if self._open.get(connection.origin) is connection:
            del self._open[connection.origin]

    async def _opened(
        self, over: asyncio.Future[UpstreamError | None], limit: float | None
    ) -> None:
        """Wait until the connection is there, or somebody else has to try."""
        self._joining += 1
        try:
            with (
                TimeLimit(limit, ConnectTimeoutError, "connecting", self._clock)
                if limit is not None
                else nullcontext()
            ):
                await asyncio.wait([over])
        finally:
            self._joining -= 1
        error = over.result()
        if isinstance(error, ConnectFailedError):
            raise type(error)(str(error)) from error.__cause__
