"""One connection of HTTP/2, many exchanges at a time: places, time limits, and how it can end."""

from __future__ import annotations

import asyncio
import math
import select
from collections.abc import AsyncIterable, Callable

from shared.infrastructure.http.errors import (
    LocalProtocolViolationError,
    PoolTimeoutError,
    ReadFailedError,
    ReadTimeoutError,
    RemoteProtocolViolationError,
    UnprocessedError,
    UpstreamError,
    WriteTimeoutError,
)
from shared.infrastructure.http.wire import frames
from shared.infrastructure.http.wire.exchange import Limits
from shared.infrastructure.http.wire.frames import Code, ConnectionFaultError
from shared.infrastructure.http.wire.http2_head import Http2Answer, Http2Head, encode_http2_head
from shared.infrastructure.http.wire.http2_session import Session
from shared.infrastructure.http.wire.http2_stream import Stream
from shared.infrastructure.http.wire.link import TICK, Link, Owner, broken
from shared.infrastructure.http.wire.origin import Origin
from shared.infrastructure.http.wire.request import Body, Request
from shared.infrastructure.resilience import Clock
from shared.infrastructure.resilience.clock import TimerHandle
from shared.infrastructure.resilience.wait_queue import WaitQueue

# What is handed to the kernel between two looks at whether it takes it.
_PIECE = 128 * 1024
# What the socket may say while it can be used; where it cannot tell bytes from their end, nothing.
_ALIVE = {0, select.POLLIN} if hasattr(select, "POLLRDHUP") else {0}
# Answers to pings and the like that a service may leave unread.
_MAX_UNSENT = 1024 * 1024


class Http2Connection(Link):
    """A connection that speaks HTTP/2.

    Whoever wants to send a request needs a place first; places go out in order of arrival, as many
    as the service allows.

    Args:
        origin: Where it leads.
        owner: Told when it is idle, when it takes no more, and when it is lost.
        clock: Source of monotonic time.
        max_head: Bytes that the head of an answer may have.
    """

    def __init__(self, origin: Origin, owner: Owner, clock: Clock, max_head: int) -> None:
        super().__init__(origin, owner, clock, max_head)
        self._session = Session(self, max_head, clock)
        self._taken = 0
        self._has_answered = False
        self._line = WaitQueue(self._take, self._give_back, clock)
        self._is_flushing = False
        self._unsent = 0
        self._timer: TimerHandle | None = None
        self._due = math.inf

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._line)

    @property
    def is_open(self) -> bool:
        """Whether more exchanges can begin on it, as far as is known."""
        return self.is_usable and not self._session.is_draining

    def is_quiet(self) -> bool:
        """Tell whether it is usable, as far as the socket itself can tell.

        Bytes that nobody has read yet are the rule here: pings, windows, settings.
        """
        return self.is_open and self._unseen() in _ALIVE

    async def enter(self, limit: float | None) -> bool:
        """Take a place, waiting in line if need be; return False if there are no more to come.

        Raises:
            PoolTimeoutError: None came free within `limit` seconds.
        """
        if self._line or self._take(1.0):
            try:
                has_place = await self._line.join(1.0, limit)
            except BaseException:
                self._rest()
                raise
            if not has_place:
                self._rest()
                raise PoolTimeoutError(
                    f"all {self._session.max_streams} streams of the connection stayed busy for "
                    f"{limit:g} s"
                )
        if self.is_open:
            return True
        self._leave()
        return False

    async def send(self, request: Request, limits: Limits) -> Stream:
        """Send a request, on a place that is taken, and wait for the head of its answer.

        Whatever ends this early, cancellation included, ends the stream; the others go on.

        Raises:
            UpstreamError: The exchange failed.
            LocalProtocolViolationError: The body has not the length its head declares.
        """
        head, body = request.head, request.body
        if not isinstance(head, Http2Head):
            head = encode_http2_head(request.method, request.target, request.host, request.headers)
        answer = Http2Answer(bodiless=request.method == b"HEAD", max_head=self._max_head)
        stream = Stream(answer, self)
        if not self.is_open:
            self._leave()
            raise UnprocessedError("the connection ended before the request was sent")
        self.carried += 1
        stream.is_kept = self._has_answered
        ends = isinstance(body, bytes) and not body
        self._session.open(stream, head.fields, ends=ends)
        self._flush_soon()
        try:
            stream.is_sent = ends or await self._upload(stream, body, head.length, limits)
            while self._is_full and stream.wants_more:
                await self.wait(stream, limits.get("write"), is_writing=True)
            limit = limits.get("read")
            while not answer.status:
                if stream.error is not None:
                    raise stream.error
                await self.wait(stream, limit)
        except BaseException:
            self.give_up(stream)
            raise
        return stream

    async def wait(
        self, exchange: Stream, limit: float | None, *, is_writing: bool = False
    ) -> None:
        """Wait for the next event; silence for longer than `limit` seconds is one too."""
        waiter = exchange.waiter = self._loop.create_future()
        exchange.is_writing = is_writing
        if limit is None:
            exchange.due = math.inf
        else:
            exchange.limit = limit
            exchange.due = due = self._clock.now() + limit
            # One timer serves all streams: it looks again when it fires too early.
            if due < self._due:
                self._arm(due, limit)
        if is_writing:
            self._unsent = self._pending()
        try:
            await waiter
        finally:
            exchange.waiter = None
            exchange.is_writing = False

    def read_on(self, exchange: Stream) -> None:
        """Let the service send more."""
        self._session.read_on(exchange)
        self._flush_soon()

    def give_up(self, exchange: Stream) -> None:
        """End an exchange that nobody wants any more; the others go on."""
        if exchange.connection is not None:
            self._drop(exchange, ReadFailedError("the exchange was given up"))

    def give_up_soon(self, exchange: Stream) -> None:
        """Do so from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.give_up, exchange)

    def close(self, reason: str = "the connection was closed") -> None:
        """Say goodbye and close the socket within a turn of the loop; exchanges on it fail."""
        self._end(Code.NO_ERROR, ReadFailedError(reason))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._session.start()
        self._flush_soon()

    def resume_writing(self) -> None:
        self._is_full = False
        for stream in self._session.streams.values():
            stream.wake_writer()

    def data_received(self, data: bytes) -> None:
        session = self._session
        try:
            session.receive(data)
        except ConnectionFaultError as fault:
            words = f"the service broke HTTP/2: {fault.words}"
            self._end(fault.code, RemoteProtocolViolationError(words))
            return
        if session.out:
            if self._is_full and self._pending() > _MAX_UNSENT:
                words = "the service reads nothing of what it asks for"
                self._end(Code.ENHANCE_YOUR_CALM, RemoteProtocolViolationError(words))
            self._flush_soon()

    def eof_received(self) -> None:
        self._break(None)
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if self._timer is not None:
            self._timer.cancel()
        self._break(exc)
        self._line.pump()
        self._owner.lost(self)

    def over(self, stream: Stream, error: UpstreamError | None) -> None:
        """Part from a stream that is complete, or has failed."""
        if error is None:
            self._has_answered = True
        else:
            error.host = self.origin.authority
        stream.end(error)
        self._leave()

    def changed(self) -> None:
        """Lend out what places there are now."""
        if self._session.is_draining:
            self._owner.retired(self)
            if not self._taken:
                self.close()
        self._line.pump()

    def _take(self, _cost: float) -> float:
        if self.is_open and self._taken >= self._session.max_streams:
            return math.inf
        self._taken += 1  # where no more are to come, `enter` says so
        return 0.0

    def _give_back(self, _cost: float) -> None:
        self._leave()

    def _leave(self) -> None:
        self._taken -= 1
        self._line.pump()
        self._rest()

    def _rest(self) -> None:
        """Go back to the owner if nobody has a place, or waits for one."""
        if self._taken or self._line or not self.is_busy:
            return
        if self.is_open:
            self._owner.idle(self)
        else:
            self.close()

    async def _upload(self, stream: Stream, body: Body, length: int | None, limits: Limits) -> bool:
        if isinstance(body, bytes):
            return await self._push(stream, body, limits, ends=True)
        return await self._stream_up(stream, body, length, limits)

    async def _stream_up(
        self, stream: Stream, body: AsyncIterable[bytes], left: int | None, limits: Limits
    ) -> bool:
        async for chunk in body:
            if left is not None:
                left -= len(chunk)
                if left < 0:
                    raise LocalProtocolViolationError("the body is longer than declared")
            if not await self._push(stream, chunk, limits, ends=False):
                return False
        if left:
            raise LocalProtocolViolationError("the body is shorter than declared")
        if not stream.wants_more:
            return False
        self._session.send(stream, b"", ends=True)
        self._flush_soon()
        return True

    async def _push(self, stream: Stream, data: bytes, limits: Limits, *, ends: bool) -> bool:
        """Send `data` as room allows; return False if the service does not want all of it."""
        session, limit = self._session, limits.get("write")
        view, at, queued, has_sent = memoryview(data), 0, 0, False
        while at < len(view):
            if not stream.wants_more:
                return False
            room = session.room(stream)
            if room <= 0 or self._is_full:
                if has_sent:
                    session.queue_last(stream)
                has_sent = False
                await self.wait(stream, limit, is_writing=True)
                continue
            piece = view[at : at + room]
            at += len(piece)
            session.send(stream, piece, ends=ends and at == len(view))
            has_sent = True
            queued += len(piece)
            if queued < _PIECE:
                self._flush_soon()
            else:
                queued = 0
                self._flush()
        return True

    def _flush_soon(self) -> None:
        """Send what there is at the end of this turn of the loop, all of it at once."""
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        out = self._session.out
        if out and self._transport is not None and self.is_usable:
            self._transport.write(b"".join(out))
        out.clear()

    def _drop(self, stream: Stream, error: UpstreamError) -> None:
        self._session.reset(stream)
        self._flush_soon()
        self.over(stream, error)

    def _end(self, code: Code, error: UpstreamError) -> None:
        """End the connection, and everything on it with `error`."""
        session = self._session
        if self.is_usable:
            session.out.append(frames.goaway(code))
            self._flush()
        session.is_draining = True
        super().close()
        self._owner.retired(self)
        self._fail_all(lambda _stream: type(error)(str(error)))
        self._line.pump()

    def _break(self, exc: Exception | None) -> None:
        """Make the end of the connection that of all exchanges on it."""
        self._session.is_draining = True
        self._owner.retired(self)
        self._fail_all(lambda stream: self._broken(stream, exc))

    def _broken(self, stream: Stream, exc: Exception | None) -> UpstreamError:
        goodbye, has_begun = self._session.goodbye, stream.answer.has_begun
        if exc is None and (has_begun or goodbye):
            where = "within its answer" if has_begun else "without answering"
            said = f", saying {goodbye}" if goodbye else ""
            return RemoteProtocolViolationError(f"the service closed the connection{said}, {where}")
        error = broken(exc, has_begun=has_begun, is_kept=stream.is_kept, is_sent=stream.is_sent)
        error.__cause__ = exc
        return error

    def _fail_all(self, why: Callable[[Stream], UpstreamError]) -> None:
        streams = self._session.streams
        while streams:
            _, stream = streams.popitem()
            self.over(stream, why(stream))

    def _pending(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def _arm(self, due: float, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._clock.call_later(seconds, self._look)

    def _look(self) -> None:
        """End the exchanges that have waited for too long."""
        self._timer, self._due = None, math.inf
        now, unsent, nearest = self._clock.now(), self._pending(), math.inf
        has_moved, self._unsent = unsent < self._unsent, unsent
        for stream in list(self._session.streams.values()):
            if stream.waiter is None or stream.waiter.done():
                continue
            if stream.is_writing and self._is_full and has_moved:
                stream.due = now + stream.limit
            if stream.due - now > TICK:
                nearest = min(nearest, stream.due)
            elif stream.is_writing:
                words = f"the service took nothing for {stream.limit:g} s"
                self._drop(stream, WriteTimeoutError(words))
            else:
                words = f"the service said nothing for {stream.limit:g} s"
                self._drop(stream, ReadTimeoutError(words))
        if nearest < math.inf:
            self._arm(nearest, nearest - now)
