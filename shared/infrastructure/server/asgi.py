"""The application under any ASGI server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from shared.infrastructure.server.messages import (
    CLOSE,
    Header,
    HTTPError,
    Reply,
    Request,
    StreamedReply,
    too_large,
    too_slow,
)
from shared.infrastructure.server.response import BODILESS

if TYPE_CHECKING:
    from shared.infrastructure.server.app import App

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
SendMessage = Callable[[Message], Awaitable[None]]


class ClientGoneError(Exception):
    """The client hung up before its answer was there."""


async def serve_http(app: App, scope: Scope, receive: Receive, send: SendMessage) -> None:
    """Answer one request."""
    request = _request(scope)
    reply = app.refuse(request)
    if reply is None:
        try:
            request.body = await _body(app, request, receive)
            await _unless_gone(receive, _answer(app, request, send))
        except ClientGoneError:
            app.gone(request)
            return
        except HTTPError as error:
            reply = app.failed(request, error)
    if reply is not None:
        await _send(send, reply, close=app.draining)


async def _answer(app: App, request: Request, send: SendMessage) -> None:
    reply = await app.answer(request)
    if isinstance(reply, Reply):
        await _send(send, reply, close=app.draining)
        return
    try:
        await send(_start(reply, close=app.draining))
        async for piece in reply.body:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    except Exception as error:
        last = app.interrupted(request, error)
        await send({"type": "http.response.body", "body": last, "more_body": True})
        # The body has no end, so that nobody takes it for whole.
        raise
    else:
        app.observe(request, reply.status)
        await send({"type": "http.response.body"})
    finally:
        await reply.close()


async def serve_lifespan(app: App, receive: Receive, send: SendMessage) -> None:
    """Start what the application serves, and let go of it in the end."""
    await receive()
    await app.start()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await app.stop()
    await send({"type": "lifespan.shutdown.complete"})


def _request(scope: Scope) -> Request:
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name, value)
    return Request(scope["method"], scope["path"], headers, scope.get("query_string", b""))


async def _body(app: App, request: Request, receive: Receive) -> bytes:
    limit, seconds = app.config.max_body_bytes, app.config.body_timeout
    if int(request.headers.get(b"content-length", b"0")) > limit:
        raise too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise too_large(limit)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise too_slow(seconds) from None


async def _unless_gone(receive: Receive, work: Awaitable[None]) -> None:
    """Await `work`, but not for a client who hung up."""
    task = asyncio.current_task()
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        if task is not None:
            task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        await work
    except asyncio.CancelledError:
        if not gone or (task is not None and task.uncancel()):
            raise
        raise ClientGoneError from None
    finally:
        watcher.cancel()


async def _send(send: SendMessage, reply: Reply, *, close: bool) -> None:
    body = b"" if reply.status in BODILESS else reply.body
    length = () if reply.status in BODILESS else ((b"content-length", b"%d" % len(body)),)
    await send(_start(reply, *length, close=close))
    await send({"type": "http.response.body", "body": body})


def _start(reply: Reply | StreamedReply, *framing: Header, close: bool) -> Message:
    headers = [*reply.headers, *framing]
    if close and CLOSE not in headers:
        headers.append(CLOSE)
    return {"type": "http.response.start", "status": reply.status, "headers": headers}
