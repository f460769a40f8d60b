"""A stub of an LLM host in a process of its own: `python -m benchmarks.llm_failover_host PORT`.

It answers a chat with the question after some 20 ms, and misbehaves if it is told to:
`POST /control/fail` makes it answer 500 from then on, `slow` a second later, `reset` not at all.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import sys
from typing import Any

USUAL, SLOW = 0.02, 1.0


class Host(asyncio.Protocol):
    mode = "well"

    def __init__(self) -> None:
        self._data = b""
        self._answers: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        for answer in self._answers:
            answer.cancel()

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        size = next(
            (
                int(line[15:])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            ),
            0,
        )
        if not found or len(rest) < size:
            return
        self._data = rest[size:]
        task = asyncio.create_task(self._answer(head.split(b" ")[1].decode(), rest[:size]))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, path: str, body: bytes) -> None:
        if path.startswith("/control/"):
            Host.mode = path.removeprefix("/control/")
        if not path.endswith("/chat/completions"):
            self._write(200, {"status": "ok"})
            return
        if Host.mode == "reset":
            linger = struct.pack("ii", 1, 0)
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
            return
        if Host.mode == "fail":
            self._write(500, {"error": {"message": "told to", "type": "server_error"}})
            return
        usual = USUAL * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
        await asyncio.sleep(usual + (SLOW if Host.mode == "slow" else 0.0))
        said = json.loads(body)["messages"][-1]["content"]
        message = {"role": "assistant", "content": said}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        about = {"id": "x", "object": "chat.completion", "created": 1, "model": "stub"}
        self._write(200, {**about, "choices": choices, "usage": usage})

    def _write(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} So\r\nContent-Type: application/json\r\n"
        length = f"Content-Length: {len(content)}\r\n\r\n"
        self._transport.write((head + length).encode() + content)


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Host, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
