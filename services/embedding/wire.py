"""HTTP as the process speaks it: just enough over ASGI, for every layer costs on the hot path."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
SendMessage = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON: Header = (b"content-type", b"application/json")
CLOSE: Header = (b"connection", b"close")


class HTTPError(Exception):
    """An answer that is not what the client asked for.

    Args:
        status: HTTP status code.
        message: What is wrong and what to do; nothing of our insides.
        kind: OpenAI's `type` of the error.
        code: Stable name of the error.
        param: Field of the request that is to blame.
        headers: Sent with the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Iterable[Header] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = tuple(headers)


class ClientGoneError(Exception):
    """The client hung up before its answer was there."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    body: bytes
    status: int = 200
    headers: tuple[Header, ...] = (JSON,)

    async def send(self, send: SendMessage, extra: Iterable[Header] = ()) -> None:
        """Send it, with `extra` headers."""
        length = (b"content-length", str(len(self.body)).encode())
        headers = [*self.headers, length, *extra]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose body may still be on its way."""

    scope: Scope
    receive: Receive = field(repr=False)

    def header(self, name: bytes) -> bytes | None:
        """Return the first header of that lower-case name."""
        return next((value for key, value in self.scope["headers"] if key == name), None)

    async def body(self, limit: int) -> bytes:
        """Return the body, and give up on one of more than `limit` bytes before it is all here.

        Raises:
            HTTPError: It is too large (413).
            ClientGoneError: The client hung up.
        """
        declared = self.header(b"content-length")
        if declared is not None and int(declared) > limit:
            raise _too_large(limit)
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            if not message.get("more_body", False):
                return b"".join([*chunks, chunk])
            chunks.append(chunk)

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`, which begins after the body was read, but not for a client who hung up.

        Raises:
            ClientGoneError: The client hung up; `work` was cancelled.
        """
        task = asyncio.current_task()
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await self.receive())["type"] != "http.disconnect":
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


def _too_large(limit: int) -> HTTPError:
    return HTTPError(
        413,
        f"the request body is larger than {limit} bytes",
        code="body_too_large",
        # What is left of it will not be read.
        headers=[CLOSE],
    )
