"""A client's connection: its requests are answered one after the other, in their order."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, cast

from services.embedding.process.messages import CLOSE, Reply, Request
from services.embedding.process.problems import not_ready
from services.embedding.process.reader import RequestReader
from services.embedding.process.response import CONTINUE, encoded

if TYPE_CHECKING:
    from services.embedding.process.listener import Listener

# A connection closed while bytes are on their way here is reset, and the answer lost with it.
_LINGER = 2.0
# Who connected as the last one has this long to say what he wants.
_FIRST_WORDS = 1.0


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        listener: What all connections share.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._app = listener.app
        self._now = listener.now
        self._reader = RequestReader(listener.app, listener.bodies, listener.now)
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._counted = 0
        self._blocked = False
        self._paused = False
        self._is_half_closed = False
        self._lingers = False
        self._unsent = 0
        self._send_deadline = math.inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        timeout = self._app.settings.header_timeout
        if self._listener.is_closing:
            timeout = min(timeout, _FIRST_WORDS)
        self._reader.deadline = self._now() + timeout
        self._listener.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        self._next()

    def eof_received(self) -> bool:
        if self._lingers or (self._request is None and not self._reader.ready):
            return False
        self._reader.end()
        self._is_half_closed = True
        self._probe()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.left(self)
        self._transport = None
        self._release()
        self._reader.close()
        if self._request is not None and self._task is not None:
            self._app.gone(self._request)
            self._task.cancel()

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._next()

    @property
    def is_idle(self) -> bool:
        """Whether no request is on its way here or being answered."""
        reader = self._reader
        return self._request is None and reader.is_between and not reader.has_more

    def check(self, now: float) -> None:
        """Do what is due if the client is too slow."""
        transport, reader = self._transport, self._reader
        if transport is None:
            return
        unsent = transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._sent_some(now, unsent)
        if (unsent or self._lingers) and now >= self._send_deadline:
            transport.abort()
        elif self._is_half_closed:
            self._probe()
        elif now >= reader.deadline and not self._paused:
            if self.is_idle:
                self.hang_up()
            elif not reader.is_between:
                reader.expire()
                self._next()

    def give_up(self) -> None:
        """Answer 503 to what is not done yet, and close the connection."""
        request = self._request
        shut = not_ready("the process is shutting down", "shutting_down")
        if request is not None and self._task is not None:
            self._task.cancel()
            self._finish(request, self._app.failed(request, shut), keep=False)
        elif not self._reader.is_between:
            self._reader.refuse(shut)
            self._next()
        else:
            self.hang_up()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def hang_up(self) -> None:
        """Close the connection once what was written is sent."""
        transport, reader = self._transport, self._reader
        if transport is None or transport.is_closing() or self._lingers:
            return
        is_quiet = reader.is_between and not reader.has_more and not reader.is_over
        reader.close()
        if is_quiet or self._is_half_closed:
            transport.close()
            return
        # The client may still be sending what nobody reads.
        self._pause(False)
        if transport.can_write_eof():
            transport.write_eof()
        self._lingers = True
        self._sent_some(self._now(), transport.get_write_buffer_size())

    def _sent_some(self, now: float, unsent: int) -> None:
        self._unsent = unsent
        self._send_deadline = now + (self._app.settings.body_timeout if unsent else _LINGER)

    def _probe(self) -> None:
        """Find out whether a client who sends no more still listens.

        One who is gone looks the same, until something is written to him; and the first reply
        that a client has to ignore is as good as any.
        """
        if self._request is not None and self._reader.takes_interim:
            self._write([CONTINUE])

    def _next(self) -> None:
        """Answer the next request, if the last answer is on its way."""
        reader = self._reader
        while self._request is None and not self._blocked and reader.has_more:
            if not reader.ready:
                reader.read_on()
                continue
            incoming = reader.ready.popleft()
            request = self._request = incoming.request
            self._counted = incoming.counted
            reply = incoming.refusal or self._app.recall(request)
            if reply is None:
                answer = self._answer(request, keep=incoming.keep)
                self._task = self._listener.loop.create_task(answer)
            else:
                self._finish(request, reply, keep=incoming.keep)
        self._pause(reader.is_full)
        if self._request is None and not reader.ready and reader.take_continue():
            self._write([CONTINUE])

    async def _answer(self, request: Request, *, keep: bool) -> None:
        try:
            reply = await self._app.answer(request)
            if self._request is request:
                self._finish(request, reply, keep=keep)
                self._next()
        except Exception:
            # Nobody would ever answer here again.
            self.abort()
            raise

    def _finish(self, request: Request, reply: Reply, *, keep: bool) -> None:
        reader = self._reader
        self._request = self._task = None
        self._release()
        keep = keep and not self._app.draining and CLOSE not in reply.headers
        # A client that sends no more is told with its last answer that this is the end.
        keep = keep and not (self._is_half_closed and not reader.ready)
        self._write(encoded(reply, keep=keep, head_only=request.method == "HEAD"))
        if not keep:
            self.hang_up()
        elif self.is_idle:
            reader.deadline = self._now() + self._listener.keep_alive

    def _release(self) -> None:
        self._listener.bodies.bytes -= self._counted
        self._counted = 0

    def _write(self, pieces: list[bytes]) -> None:
        if self._transport is not None:
            for piece in pieces:
                self._transport.write(piece)

    def _pause(self, pause: bool) -> None:
        if self._transport is None or pause is self._paused:
            return
        self._paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._reader.renew()
            self._transport.resume_reading()
