"""The application under any ASGI server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from services.embedding.process.messages import (
    CLOSE,
    HTTPError,
    Reply,
    Request,
    too_large,
    too_slow,
)

if TYPE_CHECKING:
    from services.embedding.process.app import EmbeddingApp

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
SendMessage = Callable[[Message], Awaitable[None]]


class ClientGoneError(Exception):
    """The client hung up before its answer was there."""


async def serve_http(app: EmbeddingApp, scope: Scope, receive: Receive, send: SendMessage) -> None:
    """Answer one request."""
    request = _request(scope)
    reply = app.refuse(request)
    if reply is None:
        try:
            request.body = await _body(app, request, receive)
            reply = await _unless_gone(receive, app.answer(request))
        except ClientGoneError:
            app.gone(request)
            return
        except HTTPError as error:
            reply = app.failed(request, error)
    await _send(send, reply, close=app.draining)


async def serve_lifespan(app: EmbeddingApp, receive: Receive, send: SendMessage) -> None:
    """Load the model, and let go of it in the end."""
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


async def _body(app: EmbeddingApp, request: Request, receive: Receive) -> bytes:
    limit, seconds = app.settings.max_body_bytes, app.settings.body_timeout
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


async def _unless_gone(receive: Receive, work: Awaitable[Reply]) -> Reply:
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
        return await work
    except asyncio.CancelledError:
        if not gone or (task is not None and task.uncancel()):
            raise
        raise ClientGoneError from None
    finally:
        watcher.cancel()


async def _send(send: SendMessage, reply: Reply, *, close: bool) -> None:
    headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
    if close and CLOSE not in headers:
        headers.append(CLOSE)
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
