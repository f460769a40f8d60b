"""Three LLM hosts in a process of their own, as fast as Python lets them be.

They read requests on raw connections and answer every chat with the same text: whole, or, if a
stream is asked for, in `max_tokens` pieces, one each `PACE` seconds, so that every client has as
many of them to read. Each host waits for its own latency before it answers.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.http_server import CHAT, Target

PACE = 0.001
PIECE = "piece "

_ROOT = Path(__file__).resolve().parent.parent
_HEAD_END = b"\r\n\r\n"
_END = b"0\r\n\r\n"


def text_of(tokens: int) -> str:
    """Return the text that a stream of so many tokens brings."""
    return PIECE * tokens


def _whole() -> bytes:
    body = json.dumps(CHAT).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + _HEAD_END + body


def _event(**choice: object) -> bytes:
    chunk = {key: CHAT[key] for key in ("id", "created", "model")}
    chunk |= {"object": "chat.completion.chunk", "choices": [{"index": 0, **choice}]}
    return _chunked(b"data: " + json.dumps(chunk).encode() + b"\n\n")


def _chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


_WHOLE = _whole()
_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked" + _HEAD_END
)
_ROLE = _event(delta={"role": "assistant", "content": ""}, finish_reason=None)
_PIECE_EVENT = _event(delta={"content": PIECE}, finish_reason=None)
_LAST = _event(delta={}, finish_reason="stop") + _chunked(b"data: [DONE]\n\n") + _END


class Connection(asyncio.Protocol):
    """A connection to a host; requests on it come one after another."""

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._received = b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        head_end = received.find(_HEAD_END)
        if head_end < 0:
            return
        head = received[:head_end].lower()
        _, _, field = head.partition(b"\r\ncontent-length:")
        length = int(field.partition(b"\r\n")[0] or 0)
        body = received[head_end + len(_HEAD_END) :]
        if len(body) < length:
            return
        self._received = b""
        if self._latency:
            self._loop.call_later(self._latency, self._answer, body)
        else:
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        asked = json.loads(body or b"{}")
        if not asked.get("stream"):
            self._transport.write(_WHOLE)
            return
        self._transport.write(_STREAM + _ROLE)
        self._next(asked["max_tokens"], self._loop.time() + PACE)

    def _next(self, left: int, due: float) -> None:
        if self._transport.is_closing():
            return
        if left:
            self._loop.call_at(due, self._write, left, due)
        else:
            self._transport.write(_LAST)

    def _write(self, left: int, due: float) -> None:
        self._transport.write(_PIECE_EVENT)
        self._next(left - 1, due + PACE)


async def serve(latencies: Sequence[float]) -> None:
    """Run a host for each latency, in seconds; print their ports, and stay."""
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(lambda s=seconds: Connection(s), "127.0.0.1", 0, backlog=1024)
        for seconds in latencies
    ]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await asyncio.Event().wait()


@contextlib.contextmanager
def hosts(
    latencies: Sequence[float] = (0.0, 0.0, 0.0), core: int | None = None
) -> Iterator[Target]:
    """Run hosts of these latencies, on one core if told so."""
    command = [sys.executable, "-m", "benchmarks.llm_router_stub", *map(str, latencies)]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            if core is not None:
                os.sched_setaffinity(process.pid, {core})
            assert process.stdout is not None
            ports = json.loads(process.stdout.readline())
            yield Target([f"http://127.0.0.1:{port}" for port in ports], "", "", False)
        finally:
            process.terminate()


if __name__ == "__main__":
    asyncio.run(serve([float(seconds) for seconds in sys.argv[1:]]))
