"""A server of `/v1/embeddings` that costs next to nothing, for `embedding_client`.

Each text carries a number, of which its vector is a function; so a wrong answer is noticed. All
vectors are written down, in base64 and as decimals, before the first request comes; a request is
read for its numbers and its `encoding_format`. It prints its port, and ends with its input.
"""

import argparse
import asyncio
import base64
import os
import random
import re
import socket
import struct
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

MODEL = b"fake-embedding"
# So many texts differ in all numbers of their vectors; the first three tell the others apart.
_KINDS = 251
_NAME = 3
_NUMBER = re.compile(rb"No\. (\d{7})")
_SENTENCE = (
    "A circuit breaker stops calling a service that fails, and tries again after a while; "
    "this one is of kind {kind}."
)
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_ITEM = b'{"object":"embedding","index":%d,"embedding":'
_END = b'}],"model":"%b","usage":{"prompt_tokens":%d,"total_tokens":%d}}'
_FAILURE = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_FAILURES = (
    b"500 Internal Server Error",
    b"503 Service Unavailable",
    b"429 Too Many Requests\r\nRetry-After: 1",
    None,
)
"""What a request that fails is answered; None resets its connection."""


def text_of(number: int) -> str:
    """Return a text of some 120 characters."""
    return f"No. {number:07d}: " + _SENTENCE.format(kind=number % 10)


def vectors_of(numbers: Sequence[int] | NDArray[np.int64], dimension: int) -> Vectors:
    """Return the vectors of texts; float32 of shape (numbers, dimension)."""
    asked = np.asarray(numbers)
    vectors = _kinds(dimension)[asked % _KINDS]
    vectors[:, :_NAME] = np.stack([asked // 1000, asked % 1000, asked % 7], axis=1)
    return vectors


def _kinds(dimension: int) -> Vectors:
    # Components of a vector of length 1, as those of most models.
    drawn = np.random.default_rng(7).normal(size=(_KINDS, dimension)) / np.sqrt(dimension)
    return drawn.astype(np.float32)


class Replies:
    """Answers, put together of parts that are there.

    Args:
        dimension: Numbers in a vector.
        texts: How many there are.
    """

    def __init__(self, dimension: int, texts: int) -> None:
        kinds = [kind[_NAME:] for kind in _kinds(dimension)]
        names = list(vectors_of(range(texts), dimension=_NAME))
        self._base64 = ([b'"' + _base64(n) for n in names], [_base64(k) + b'"' for k in kinds])
        self._floats = (
            [b"[" + _decimals(n) for n in names],
            [_decimals(k)[:-1] + b"]" for k in kinds],
        )
        self._items = [b"}," + _ITEM % index for index in range(4096)]
        self._items[0] = b'{"object":"list","data":[' + _ITEM % 0

    def write(self, request: bytes) -> list[bytes]:
        names, kinds = self._base64 if b'"base64"' in request else self._floats
        # A text without a number is one that a client sends to see whether anybody is there.
        numbers = [int(number) for number in _NUMBER.findall(request)] or [0]
        parts: list[bytes] = [b""]
        for item, number in zip(self._items, numbers, strict=False):
            parts += (item, names[number], kinds[number % _KINDS])
        tokens = 30 * len(numbers)
        parts.append(_END % (MODEL, tokens, tokens))
        parts[0] = _OK % sum(map(len, parts))
        return parts


def _base64(numbers: Vectors) -> bytes:
    return base64.b64encode(numbers.astype("<f4").tobytes())


def _decimals(numbers: Vectors) -> bytes:
    return "".join(f"{number!s}," for number in numbers).encode()


class Connection(asyncio.Protocol):
    """One connection, on which a client sends one request after the other.

    Args:
        replies: What is answered.
        failing: Share of requests that fail, 0 to 1.
        rng: Draws them.
    """

    def __init__(self, replies: Replies, failing: float, rng: random.Random) -> None:
        self._replies = replies
        self._failing = failing
        self._rng = rng
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        head = received.find(b"\r\n\r\n")
        if head < 0:
            return
        fields = received[:head].lower()
        length = int(fields.partition(b"content-length:")[2].partition(b"\r")[0])
        if len(received) >= head + 4 + length:
            self._received = b""
            self._answer(received)

    def _answer(self, request: bytes) -> None:
        assert self._transport is not None
        if self._rng.random() >= self._failing:
            self._transport.writelines(self._replies.write(request))
        elif failure := self._rng.choice(_FAILURES):
            self._transport.write(_FAILURE % failure)
        else:
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()


async def main(dimension: int, texts: int, failing: float) -> None:
    replies, rng = Replies(dimension, texts), random.Random(11)  # noqa: S311
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(replies, failing, rng), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve vectors that are there already.")
    parser.add_argument("--dimension", type=int, required=True)
    parser.add_argument("--texts", type=int, required=True)
    parser.add_argument("--failing", type=float, default=0.0, help="share of requests; 0 to 1")
    parser.add_argument("--core", type=int, required=True)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    asyncio.run(main(options.dimension, options.texts, options.failing))
