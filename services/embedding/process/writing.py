"""Vectors as text: JSON and base64, in slices that leave the event loop to others in between."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from numpy.typing import NDArray

RAW = b"application/octet-stream"
"""Content type of bare vectors."""

# Numbers written before other tasks get a turn; some half a millisecond.
_NUMBERS_PER_TURN = 16_384
# Token ids, which are objects each.
_TOKENS_PER_TURN = 2048


def dumps(content: object) -> bytes:
    """Return `content` as JSON; arrays are written as they are."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def base64_rows(rows: NDArray[Any]) -> list[str]:
    """Return the bytes of each row of a contiguous array in base64."""
    return [base64.b64encode(row).decode() for row in rows]


async def sliced(rows: NDArray[Any], write: Callable[[int, int], bytes]) -> bytes:
    """Return a JSON list made of several, each of which is written in one go.

    Args:
        rows: Shape (n, width), of which the list is made.
        write: Returns the JSON list of the rows from one position to another.
    """
    count = len(rows)
    step = max(1, _NUMBERS_PER_TURN // max(1, rows.shape[1]))
    if count <= step:
        return write(0, count)
    parts: list[bytes] = []
    for start in range(0, count, step):
        parts.append(write(start, min(start + step, count))[1:-1])
        await asyncio.sleep(0)
    return b"[" + b",".join(parts) + b"]"


async def json_rows(rows: NDArray[Any], *, as_base64: bool = False) -> bytes:
    """Return a JSON list with the numbers, or the base64, of each row (n, width), contiguous."""
    if as_base64:
        return await sliced(rows, lambda start, end: dumps(base64_rows(rows[start:end])))
    return await sliced(rows, lambda start, end: dumps(rows[start:end]))


async def token_rows(rows: Sequence[Sequence[int]]) -> bytes:
    """Return a JSON list with a list of `{"id": token}` for each row."""
    lists: list[bytes] = []
    written = 0
    for row in rows:
        parts: list[bytes] = []
        for start in range(0, len(row), _TOKENS_PER_TURN):
            part = row[start : start + _TOKENS_PER_TURN]
            parts.append(dumps([{"id": token} for token in part])[1:-1])
            written += len(part)
            if written >= _TOKENS_PER_TURN:
                await asyncio.sleep(0)
                written = 0
        lists.append(b"[" + b",".join(parts) + b"]")
    return b"[" + b",".join(lists) + b"]"
