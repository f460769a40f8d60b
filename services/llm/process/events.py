"""Cut the bytes of an event stream between its events, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import httpx

_USUAL_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
# Two line ends of any of the standard's kinds. After CRLF a CR alone may yet become a CRLF.
_END = re.compile(rb"\r\n\r\n|\r\n\r(?=.)|\n\n|(?<!\r)\n\r|\r\r", re.DOTALL)
_LONGEST_END = 4
_MAX_HELD = 2**20


async def whole_events(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of an event stream, cut between events; one beyond 1 MiB, wherever it is.

    So an error that has to be told in mid-stream is an event, and not the end of half a one.
    """
    held = bytearray()
    async with aclosing(_pieces(response)) as pieces:
        async for piece in pieces:
            if not held and piece.endswith(_USUAL_ENDS):
                yield piece
                continue
            start = max(0, len(held) - _LONGEST_END + 1)
            held += piece
            end = len(held) if len(held) > _MAX_HELD else _last_end(held, start)
            if end:
                whole = bytes(held[:end])
                del held[:end]
                yield whole
    if held:
        yield bytes(held)


def _last_end(held: bytearray, start: int) -> int:
    if held.endswith(_USUAL_ENDS):
        return len(held)
    end = 0
    for found in _END.finditer(held, start):
        end = found.end()
    return end


def _pieces(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    stream = response.stream
    if isinstance(stream, httpx.AsyncByteStream) and "content-encoding" not in response.headers:
        return cast("AsyncGenerator[bytes, None]", aiter(stream))
    return cast("AsyncGenerator[bytes, None]", response.aiter_bytes())
