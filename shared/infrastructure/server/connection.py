"""A client's connection: its requests are answered one after the other, in their order."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from typing import TYPE_CHECKING, cast

from shared.infrastructure.server.messages import (
    CLOSE,
    Reply,
    Request,
    StreamedReply,
    shutting_down,
    too_many,
)
from shared.infrastructure.server.reader import Incoming, RequestReader
from shared.infrastructure.server.response import (
    CONTINUE,
    LAST_CHUNK,
    chunk,
    encoded,
    streamed_head,
)

if TYPE_CHECKING:
    from shared.infrastructure.server.listener import Listener

# A connection closed while bytes are on their way here is reset, and the answer lost with it.
_LINGER = 2.0
# Who connected as the last one has this long to say what he wants.
_FIRST_WORDS = 1.0
# `SO_LINGER`: on, for no time at all.
_NO_LINGER = struct.pack("ii", 1, 0)
# Connections beyond the bound that may say whether they are those of a probe.
_SPARE = 16


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
        self._streaming: Incoming | None = None
        self._room: asyncio.Future[None] | None = None
        self._counted = 0
        self._blocked = False
        self._paused = False
        self._is_half_closed = False
        self._lingers = False
        self._unsent = 0
        self._send_deadline = math.inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        listener, reader = self._listener, self._reader
        timeout = self._app.config.header_timeout
        reader.is_surplus = listener.surplus >= 0
        if listener.is_closing or reader.is_surplus:
            timeout = min(timeout, _FIRST_WORDS)
        reader.deadline = self._now() + timeout
        is_flood = listener.surplus >= _SPARE
        listener.connections.add(self)
        if is_flood:
            reader.refuse(too_many())
            self._next()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        self._next()

    def eof_received(self) -> bool:
        if self._lingers or (self._request is None and not self._reader.ready):
            return False
        if not self._app.config.half_close:
            self.abort()
            return False
        self._reader.end()
        self._is_half_closed = True
        self._probe()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.left(self)
        self._transport = self._streaming = None
        self._release()
        self._reader.close()
        if self._request is not None and self._task is not None:
            self._app.gone(self._request)
            self._task.cancel()

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
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
            if self.is_idle and not reader.is_surplus:
                self.hang_up()
            elif reader.is_surplus or not reader.is_between:
                reader.expire()
                self._next()

    def give_up(self) -> None:
        """Answer 503 to what is not done yet, and close the connection."""
        request = self._request
        shut = shutting_down()
        if request is not None and self._task is not None:
            self._task.cancel()
            if self._streaming is not None:
                self._break_off(self._streaming, shut)
            else:
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

    def _reset(self) -> None:
        """Have the connection broken, where its end alone would be that of a whole body."""
        if self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
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
        self._send_deadline = now + (self._app.config.body_timeout if unsent else _LINGER)

    def _probe(self) -> None:
        """Find out whether a client who sends no more still listens.

        One who is gone looks the same, until something is written to him; and the first reply
        that a client has to ignore is as good as any.
        """
        if self._request is not None and self._reader.takes_interim and not self._streaming:
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
                self._task = self._listener.loop.create_task(self._answer(incoming))
            else:
                self._finish(request, reply, keep=incoming.keep)
        self._pause(reader.is_full)
        if self._request is None and not reader.ready and reader.take_continue():
            self._write([CONTINUE])

    async def _answer(self, incoming: Incoming) -> None:
        request = incoming.request
        try:
            reply = await self._app.answer(request)
            if isinstance(reply, StreamedReply):
                await self._stream(incoming, reply)
            elif self._request is request:
                self._finish(request, reply, keep=incoming.keep)
                self._next()
        except Exception:
            # Nobody would ever answer here again.
            self.abort()
            raise

    async def _stream(self, incoming: Incoming, reply: StreamedReply) -> None:
        """Send a streamed reply; the client's pace is that of whoever makes it."""
        request, is_chunked = incoming.request, incoming.takes_chunks
        keep = is_chunked and self._may_keep(incoming.keep, reply)
        try:
            self._streaming = incoming
            self._write([streamed_head(reply, keep=keep, is_chunked=is_chunked)])
            async for piece in reply.body:
                if piece:
                    self._write(chunk(piece) if is_chunked else [piece])
                if self._blocked:
                    await self._has_room()
        except Exception as error:
            if self._streaming is incoming:
                self._break_off(incoming, error)
        else:
            self._app.observe(request, reply.status)
            if is_chunked:
                self._write([LAST_CHUNK])
            self._end(keep=keep and self._may_keep(keep, reply))
        finally:
            await reply.close()
        self._next()

    def _break_off(self, incoming: Incoming, error: Exception) -> None:
        """End a streamed reply early; without its last chunk, so that nobody takes it for whole."""
        last = self._app.interrupted(incoming.request, error)
        if last:  # an empty chunk would be the last one
            self._write(chunk(last) if incoming.takes_chunks else [last])
        if not incoming.takes_chunks:
            self._reset()
        self._end(keep=False)

    async def _has_room(self) -> None:
        self._room = self._listener.loop.create_future()
        try:
            await self._room
        finally:
            self._room = None

    def _finish(self, request: Request, reply: Reply, *, keep: bool) -> None:
        keep = self._may_keep(keep, reply)
        self._write(encoded(reply, keep=keep, head_only=request.method == "HEAD"))
        self._end(keep=keep)

    def _may_keep(self, keep: bool, reply: Reply | StreamedReply) -> bool:
        """Say whether the connection is kept after a reply."""
        keep = keep and not self._app.draining and CLOSE not in reply.headers
        # A client that sends no more is told with its last answer that this is the end.
        return keep and not (self._is_half_closed and not self._reader.ready)

    def _end(self, *, keep: bool) -> None:
        """Be done with a request whose answer was written."""
        self._request = self._task = self._streaming = None
        self._release()
        if not keep:
            self.hang_up()
        elif self.is_idle:
            self._reader.deadline = self._now() + self._app.config.keep_alive

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
