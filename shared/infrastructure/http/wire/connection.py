"""One connection, one exchange at a time: flow control, time limits, and how it all can end."""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Protocol, cast

from shared.infrastructure.http.errors import (
    ConnectFailedError,
    LocalProtocolViolationError,
    ReadFailedError,
    ReadTimeoutError,
    RemoteProtocolViolationError,
    UpstreamError,
    WriteFailedError,
    WriteTimeoutError,
)
from shared.infrastructure.http.wire.errors import StaleConnectionError
from shared.infrastructure.http.wire.exchange import Exchange, Limits
from shared.infrastructure.http.wire.origin import Origin
from shared.infrastructure.http.wire.request import Body, Head
from shared.infrastructure.resilience import Clock
from shared.infrastructure.resilience.clock import TimerHandle

# Unread body at which a connection is no longer read from; asyncio reads as much at a time.
_HIGH_WATER = 256 * 1024
# What is handed to the kernel between two looks at whether the service still wants it.
_PIECE = 128 * 1024
# A timer may fire that much early.
_TICK = 0.001


class Owner(Protocol):
    """Whoever lends connections out."""

    def idle(self, connection: Connection) -> None:
        """Take `connection` back; it may carry another exchange."""
        ...

    def lost(self, connection: Connection) -> None:
        """Take note that the socket of `connection` is closed."""
        ...


class Connection(asyncio.Protocol):
    """A connection to one origin.

    Args:
        origin: Where it leads.
        owner: Told when it is idle and when it is lost.
        clock: Source of monotonic time.

    Attributes:
        origin: Where it leads.
        is_busy: Lent out by its owner.
        idle_since: When it was last given back.
        carried: Exchanges begun on it.
        is_lost: Its socket is closed.
    """

    def __init__(self, origin: Origin, owner: Owner, clock: Clock) -> None:
        self.origin = origin
        self.is_busy = False
        self.idle_since = 0.0
        self.carried = 0
        self.is_lost = False
        self._owner = owner
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._is_full = False
        self._is_held = False
        self._is_writing = False
        self._inbox: select.poll | None = None
        self._unsent = 0
        self._limit: float | None = None
        self._since = 0.0
        self._timer: TimerHandle | None = None
        self._due = 0.0

    async def send(self, exchange: Exchange, head: Head, body: Body, limits: Limits) -> None:
        """Send a request and wait for the head of its answer.

        Whatever ends this early, cancellation included, ends the connection.

        Raises:
            UpstreamError: The exchange failed.
            LocalProtocolViolationError: The body has not the length its head declares.
        """
        self._exchange = exchange
        self.carried += 1
        if self.is_lost:
            self._over(None)
        try:
            if isinstance(body, bytes) and len(body) < _PIECE and head.length is not None:
                exchange.is_sent = await self._push(exchange, head.data + body, limits)
            else:
                exchange.is_sent = await self._upload(exchange, head, body, limits)
            answer, limit = exchange.answer, limits.get("read")
            while not answer.status:
                if exchange.error is not None:
                    raise exchange.error
                await self.wait(exchange, limit)
        except BaseException:
            self.give_up(exchange)
            raise

    async def wait(
        self, exchange: Exchange, limit: float | None, *, is_writing: bool = False
    ) -> None:
        """Wait for the next event; silence for longer than `limit` seconds is one too."""
        waiter = exchange.waiter = self._loop.create_future()
        self._limit = limit
        if limit is not None:
            self._is_writing = is_writing
            self._since = now = self._clock.now()
            # One timer serves a whole life of waits: it looks again when it fires too early.
            if self._timer is None or now + limit < self._due:
                self._arm(limit)
        try:
            await waiter
        finally:
            exchange.waiter = None

    def give_up(self, exchange: Exchange) -> None:
        """End an exchange that nobody wants any more, and the connection with it."""
        if self._exchange is exchange:
            self._fail(ReadFailedError("the exchange was given up"))

    def give_up_soon(self, exchange: Exchange) -> None:
        """Do so from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.give_up, exchange)

    def read_on(self) -> None:
        """Read again, after a pause that the unread body made necessary."""
        if self._is_held and self._transport is not None:
            self._is_held = False
            self._transport.resume_reading()

    @property
    def is_usable(self) -> bool:
        """Whether a request can be sent on it, as far as is known."""
        return self._transport is not None and not self._transport.is_closing()

    def is_quiet(self) -> bool:
        """Tell whether it is usable and nothing has come in since the last answer.

        A busy loop may not have seen yet that the service closed it, or sent what nobody asked for.
        """
        if not self.is_usable:
            return False
        if self._inbox is None and self._transport is not None and hasattr(select, "poll"):
            self._inbox = select.poll()
            self._inbox.register(self._transport.get_extra_info("socket"), select.POLLIN)
        return self._inbox is None or not self._inbox.poll(0)

    def close(self, reason: str = "the connection was closed") -> None:
        """Close the socket within a turn of the loop; an exchange on it fails."""
        if self._exchange is not None:
            self._fail(ReadFailedError(reason))
        elif self._transport is not None:
            # Not `close`, which would wait for a peer that may have stopped listening.
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every event loop's transports are subclasses.
        self._transport = cast("asyncio.Transport", transport)
        # So `_is_full` means that the kernel has not yet taken everything.
        self._transport.set_write_buffer_limits(high=1, low=0)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        if self._exchange is not None:
            self._exchange.wake()

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:  # an answer to nothing: it must not become that of the next request
            self.close()
            return
        answer = exchange.answer
        try:
            answer.feed(data)
        except RemoteProtocolViolationError as error:
            self._fail(error)
            return
        if answer.is_over:
            self._finish(exchange)
            return
        if answer.buffered > _HIGH_WATER and not self._is_held and self._transport is not None:
            self._is_held = True
            self._transport.pause_reading()
        exchange.wake()

    def eof_received(self) -> None:
        self._over(None)
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if self._timer is not None:
            self._timer.cancel()
        self._over(exc)
        self._owner.lost(self)

    async def _upload(self, exchange: Exchange, head: Head, body: Body, limits: Limits) -> bool:
        goes_on = await self._push(exchange, head.data, limits)
        left = head.length
        async for chunk in _once(body) if isinstance(body, bytes) else body:
            if not goes_on:
                return False
            if left is not None:
                left -= len(chunk)
                if left < 0:
                    raise LocalProtocolViolationError("the body is longer than declared")
                goes_on = await self._push(exchange, chunk, limits)
            elif chunk:  # an empty one would be the end
                framed = b"%x\r\n%b\r\n" % (len(chunk), chunk)
                goes_on = await self._push(exchange, framed, limits)
        if left is None:
            return await self._push(exchange, b"0\r\n\r\n", limits)
        if left:
            raise LocalProtocolViolationError("the body is shorter than declared")
        return goes_on

    async def _push(self, exchange: Exchange, data: bytes, limits: Limits) -> bool:
        """Hand `data` to the kernel; return False if the service does not want all of it."""
        transport = self._transport
        for piece in (data,) if len(data) <= _PIECE else _pieces(data):
            if transport is None or transport.is_closing() or not exchange.wants_more:
                return False
            transport.write(piece)
            while self._is_full and exchange.wants_more:
                self._unsent = transport.get_write_buffer_size()
                await self.wait(exchange, limits.get("write"), is_writing=True)
        return not self._is_full

    def _finish(self, exchange: Exchange) -> None:
        self._exchange = None
        exchange.end()
        fit = exchange.answer.is_reusable and exchange.is_sent and not exchange.closes
        if fit and self.is_usable:
            self._owner.idle(self)
        else:
            self.close()

    def _fail(self, error: UpstreamError, cause: Exception | None = None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            error.host = self.origin.authority
            error.__cause__ = cause
            exchange.end(error)
        self.close()

    def _over(self, exc: Exception | None) -> None:
        """Make the end of the connection that of the exchange on it."""
        exchange = self._exchange
        if exchange is None:
            return
        if exc is None and exchange.answer.has_begun:
            try:
                exchange.answer.feed_eof()
            except RemoteProtocolViolationError as error:
                self._fail(error)
            else:
                self._finish(exchange)
            return
        self._fail(self._broken(exchange, exc), exc)

    def _broken(self, exchange: Exchange, exc: Exception | None) -> UpstreamError:
        reason = "the service closed the connection" if exc is None else str(exc)
        if exchange.answer.has_begun:
            return ReadFailedError(f"{reason}, within its answer")
        if self.carried > 1:
            return StaleConnectionError(f"{reason}, which had been kept, without answering")
        if isinstance(exc, ssl.SSLError):
            # TLS 1.3 lets a client go on before the service has looked at its certificate.
            return ConnectFailedError(f"TLS: {tls_reason(exc)}")
        if not exchange.is_sent:
            return WriteFailedError(f"{reason}, within the request")
        if exc is None:
            return RemoteProtocolViolationError(f"{reason} without answering")
        return ReadFailedError(f"{reason}, before it answered")

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._clock.now() + seconds
        self._timer = self._clock.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        exchange, limit = self._exchange, self._limit
        if exchange is None or exchange.waiter is None or limit is None:
            return
        if self._is_writing and self._transport is not None:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._unsent:
                self._unsent, self._since = unsent, self._clock.now()
        left = self._since + limit - self._clock.now()
        if left > _TICK:
            self._arm(left)
        elif self._is_writing:
            self._fail(WriteTimeoutError(f"the service took nothing for {limit:g} s"))
        else:
            self._fail(ReadTimeoutError(f"the service said nothing for {limit:g} s"))


def tls_reason(exc: ssl.SSLError) -> str:
    """Return what TLS objects to, in words."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return exc.verify_message
    return (exc.reason or str(exc)).replace("_", " ").lower()


def _pieces(data: bytes) -> Iterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(data), _PIECE):
        yield view[start : start + _PIECE]


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
