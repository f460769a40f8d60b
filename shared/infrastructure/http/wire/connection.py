"""One connection, one exchange at a time: flow control, time limits, and how it all can end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from shared.infrastructure.http.errors import (
    LocalProtocolViolationError,
    ReadFailedError,
    ReadTimeoutError,
    RemoteProtocolViolationError,
    UpstreamError,
    WriteTimeoutError,
)
from shared.infrastructure.http.wire.answer import Answer
from shared.infrastructure.http.wire.exchange import Exchange, Limits
from shared.infrastructure.http.wire.link import TICK, Link, Owner, broken
from shared.infrastructure.http.wire.origin import Origin
from shared.infrastructure.http.wire.request import Body, Head, Request, encode_head
from shared.infrastructure.resilience import Clock
from shared.infrastructure.resilience.clock import TimerHandle

# Unread body at which a connection is no longer read from; asyncio reads as much at a time.
_HIGH_WATER = 256 * 1024
# What is handed to the kernel between two looks at whether the service still wants it.
_PIECE = 128 * 1024


class Connection(Link):
    """A connection that speaks HTTP/1.1.

    Args:
        origin: Where it leads.
        owner: Told when it is idle and when it is lost.
        clock: Source of monotonic time.
        max_head: Bytes that the head of an answer may have.
    """

    def __init__(self, origin: Origin, owner: Owner, clock: Clock, max_head: int) -> None:
        super().__init__(origin, owner, clock, max_head)
        self._exchange: Exchange[Answer] | None = None
        self._is_held = False
        self._is_writing = False
        self._unsent = 0
        self._limit: float | None = None
        self._since = 0.0
        self._timer: TimerHandle | None = None
        self._due = 0.0

    async def send(self, request: Request, limits: Limits) -> Exchange[Answer]:
        """Send a request and wait for the head of its answer.

        Whatever ends this early, cancellation included, ends the connection.

        Raises:
            UpstreamError: The exchange failed.
            LocalProtocolViolationError: The body has not the length its head declares.
        """
        head, body = request.head, request.body
        if not isinstance(head, Head):
            head = encode_head(request.method, request.target, request.host, request.headers)
        answer = Answer(bodiless=request.method == b"HEAD", max_head=self._max_head)
        exchange = self._exchange = Exchange(answer, self, closes=head.closes)
        self.carried += 1
        if self.is_lost:
            self._over(None)
        try:
            if isinstance(body, bytes) and len(body) < _PIECE and head.length is not None:
                exchange.is_sent = await self._push(exchange, head.data + body, limits)
            else:
                exchange.is_sent = await self._upload(exchange, head, body, limits)
            limit = limits.get("read")
            while not answer.status:
                if exchange.error is not None:
                    raise exchange.error
                await self.wait(exchange, limit)
        except BaseException:
            self.give_up(exchange)
            raise
        return exchange

    async def wait(
        self, exchange: Exchange[Answer], limit: float | None, *, is_writing: bool = False
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

    def give_up(self, exchange: Exchange[Answer]) -> None:
        """End an exchange that nobody wants any more, and the connection with it."""
        if self._exchange is exchange:
            self._fail(ReadFailedError("the exchange was given up"))

    def give_up_soon(self, exchange: Exchange[Answer]) -> None:
        """Do so from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.give_up, exchange)

    def read_on(self, _exchange: Exchange[Answer]) -> None:
        """Read again, after a pause that the unread body made necessary."""
        if self._is_held and self._transport is not None:
            self._is_held = False
            self._transport.resume_reading()

    def close(self, reason: str = "the connection was closed") -> None:
        """Close the socket within a turn of the loop; an exchange on it fails."""
        if self._exchange is not None:
            self._fail(ReadFailedError(reason))
        else:
            super().close()

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

    async def _upload(
        self, exchange: Exchange[Answer], head: Head, body: Body, limits: Limits
    ) -> bool:
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

    async def _push(self, exchange: Exchange[Answer], data: bytes, limits: Limits) -> bool:
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

    def _finish(self, exchange: Exchange[Answer]) -> None:
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
        has_begun, is_kept = exchange.answer.has_begun, self.carried > 1
        why = broken(exc, has_begun=has_begun, is_kept=is_kept, is_sent=exchange.is_sent)
        self._fail(why, exc)

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
        if left > TICK:
            self._arm(left)
        elif self._is_writing:
            self._fail(WriteTimeoutError(f"the service took nothing for {limit:g} s"))
        else:
            self._fail(ReadTimeoutError(f"the service said nothing for {limit:g} s"))


def _pieces(data: bytes) -> Iterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(data), _PIECE):
        yield view[start : start + _PIECE]


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
