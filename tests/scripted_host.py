"""An HTTP host on a real socket that answers each request with the next step of a script.

`async with ScriptedHost(reset(), chat("hello")) as host:` resets the first connection before any
header and answers every later request. A step is an async function of an `Exchange`; those below
make the usual ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

Ending = Literal["whole", "no_done", "fin", "cut", "reset", "stall"]
"""How a stream ends: as it should; with a finish reason only; or in the middle, by a clean end of
file, an unfinished chunked body, a reset, or silence."""


@dataclass
class Exchange:
    """One request, and the means to answer it in any way at all."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader = field(repr=False)
    writer: asyncio.StreamWriter = field(repr=False)

    @property
    def payload(self) -> Any:
        return json.loads(self.body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def stall(self) -> None:
        """Stay silent until the client goes away."""
        await self.reader.read()


Step = Callable[[Exchange], Awaitable[None]]


class ScriptedHost:
    """The host; its last step is repeated for ever, and a health check plays no step.

    Attributes:
        health: The step for `GET …/health`.
        url: Where it listens.
        requests: Requests so far, oldest first.
        connections: Connections open now.
    """

    def __init__(self, *script: Step) -> None:
        self.script = list(script)
        self.health: Step = answer({"status": "ok"}, headers={"Connection": "close"})
        self.url = ""
        self.requests: list[Exchange] = []
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = "http://{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until_idle(self) -> None:
        """Wait until every connection is closed."""
        await self.until(lambda: not self.connections)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        while not condition():  # noqa: ASYNC110 - sockets have no event to wait for
            await asyncio.sleep(0.005)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while not writer.is_closing():
                exchange = await _read_request(reader, writer)
                await self._next_step(exchange)(exchange)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections -= 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _next_step(self, exchange: Exchange) -> Step:
        if exchange.path.endswith("/health"):
            return self.health
        self.requests.append(exchange)
        return self.script[min(len(self.requests), len(self.script)) - 1]


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Exchange(method, path, headers, body, reader, writer)


def answer(body: Any = b"", status: int = 200, headers: Mapping[str, str] | None = None) -> Step:
    """Answer with a body: bytes as they are, anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "text/html" if isinstance(body, bytes) else "application/json"
    fields = {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}

    async def step(exchange: Exchange) -> None:
        await exchange.send(_head(status, fields) + content)

    return step


def chat(text: str, *, finish_reason: str = "stop") -> Step:
    """Answer a chat call, not streamed."""
    return answer(completion(text, finish_reason))


def completion(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    """Return the JSON of a chat answer."""
    message = {"role": "assistant", "content": text}
    return {
        "object": "chat.completion",
        "model": "scripted",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    }


def chat_stream(text: str, ending: Ending = "whole", *, after: int = 0, piece: int = 0) -> Step:
    """Answer a chat call as a stream of events of two characters each.

    Args:
        text: The whole answer.
        ending: How the stream ends.
        after: Content events sent before an early end.
        piece: Size in bytes of the writes, so that events and characters are cut anywhere; 0
            writes event by event.
    """
    events = list(chat_events(text))
    if ending == "no_done":
        events = events[:-1]
    elif ending != "whole":
        events = events[: 1 + after]
    data = b"".join(events)
    writes = [data[at : at + piece] for at in range(0, len(data), piece)] if piece else events
    return stream(writes, "whole" if ending == "no_done" else ending)


def chat_events(text: str) -> Iterable[bytes]:
    """Yield the events of a chat answer: role, content, finish reason, usage, [DONE]."""
    yield event(choice({"role": "assistant", "content": None}))
    for at in range(0, len(text), 2):
        yield event(choice({"content": text[at : at + 2]}))
    yield event(choice({}, "stop"))
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    yield event({"object": "chat.completion.chunk", "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def choice(delta: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """Return the JSON of one event of a chat stream."""
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return {"object": "chat.completion.chunk", "model": "scripted", "choices": choices}


def event(data: Any) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def stream(writes: Iterable[bytes], ending: Ending = "whole", *, pause: float = 0.0) -> Step:
    """Answer with an event stream in chunked encoding, one chunk a write, seconds after each."""
    chunked = ending != "fin"  # an end of file is clean only where no length is promised
    kind = {"Content-Type": "text/event-stream"}
    kind |= {"Transfer-Encoding": "chunked"} if chunked else {"Connection": "close"}

    async def step(exchange: Exchange) -> None:
        await exchange.send(_head(200, kind))
        for data in writes:
            await exchange.send(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            await asyncio.sleep(pause)  # a write of its own, not joined with the next
        if ending == "whole":
            await exchange.send(b"0\r\n\r\n")
        elif ending == "stall":
            await exchange.stall()
        elif ending == "reset":
            exchange.reset()
        else:
            exchange.close()

    return step


def short(body: bytes, share: float = 0.6) -> Step:
    """Promise `body`, send a share of it, and close."""

    async def step(exchange: Exchange) -> None:
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        await exchange.send(_head(200, fields) + body[: int(len(body) * share)])
        exchange.close()

    return step


def raw(data: bytes) -> Step:
    """Send bytes that need not be HTTP, and close."""

    async def step(exchange: Exchange) -> None:
        await exchange.send(data)
        exchange.close()

    return step


def reset() -> Step:
    """Reset the connection before any header."""

    async def step(exchange: Exchange) -> None:
        exchange.reset()

    return step


def silence() -> Step:
    """Take the request and never answer."""
    return Exchange.stall


def _head(status: int, fields: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{key}: {value}" for key, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
