"""Request bodies that are not at hand as bytes: files, iterables, factories; which can go twice.

httpx takes no file and no plain iterable as `content` of an asynchronous request, and cannot tell a
body that may be sent again from one that is used up.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from shared.infrastructure.resilience import ConfigurationError

_CHUNK = 256 * 1024

Chunks = AsyncIterable[bytes] | Iterable[bytes]
Content = bytes | bytearray | memoryview | str | Chunks | BinaryIO | Path | Callable[[], Chunks]
"""What may be sent: bytes, text, a file or the path of one, an iterable of bytes, or what makes it.

A path is read anew for every attempt, a file from where it stood; an iterable can be sent again if
it is not its own iterator; a factory is called once for every attempt.
"""


class Body:
    """A body as an asynchronous iterable.

    Args:
        open_: Makes the chunks, once for each time they are sent.
        length: Bytes; None if unknown.
        is_replayable: It can be sent more than once.
    """

    def __init__(
        self, open_: Callable[[], Chunks], length: int | None, *, is_replayable: bool
    ) -> None:
        self.length = length
        self.is_replayable = is_replayable
        self._open = open_

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = self._open()
        if isinstance(chunks, AsyncIterable):
            async for chunk in chunks:
                yield chunk
        else:
            for chunk in chunks:
                yield chunk


def body_of(content: Content) -> bytes | str | Body:
    """Return `content` as bytes, text or a `Body`.

    Raises:
        ConfigurationError: It is none of what may be sent.
    """
    if isinstance(content, bytes | bytearray | memoryview | str):
        return content if isinstance(content, str) else bytes(content)
    if isinstance(content, Path):
        return Body(lambda: _read_path(content), content.stat().st_size, is_replayable=True)
    if isinstance(content, AsyncIterable):
        pieces: AsyncIterable[bytes] = cast("Any", content)
        return Body(lambda: pieces, None, is_replayable=aiter(pieces) is not pieces)
    if hasattr(content, "read"):
        return _file(cast("BinaryIO", content))
    if isinstance(content, Iterable) and not isinstance(content, Mapping):
        chunks: Iterable[bytes] = cast("Any", content)
        return Body(lambda: chunks, None, is_replayable=iter(chunks) is not chunks)
    unknown = cast("object", content)
    if callable(unknown):
        return Body(cast("Callable[[], Chunks]", unknown), None, is_replayable=True)
    raise ConfigurationError(
        f"content cannot be a {type(unknown).__name__}: pass bytes, text, a binary "
        "file, a path, an iterable of bytes or a function that returns one; a dictionary goes into "
        "json="
    )


def files_are_replayable(files: Any) -> bool:
    """Say whether the `files` of a multipart form can be sent more than once."""
    parts: list[Any] = list(files.values()) if hasattr(files, "values") else [p for _, p in files]
    contents: list[Any] = [part[1] if isinstance(part, tuple) else part for part in parts]
    return all(_is_seekable(content) for content in contents if hasattr(content, "read"))


def _is_seekable(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return seekable is not None and bool(seekable())


def _file(file: BinaryIO) -> Body:
    if not _is_seekable(file):
        return Body(lambda: _read(file), None, is_replayable=False)
    start = file.tell()
    end = file.seek(0, os.SEEK_END)
    # Two attempts may be under way with it: each has a place of its own in the file.
    lock = threading.Lock()

    def read_at(place: int) -> bytes:
        with lock:
            file.seek(place)
            return file.read(_CHUNK)

    async def read() -> AsyncIterator[bytes]:
        place = start
        while chunk := await asyncio.to_thread(read_at, place):
            place += len(chunk)
            yield chunk

    return Body(read, end - start, is_replayable=True)


async def _read_path(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        async for chunk in _read(file):
            yield chunk


async def _read(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(file.read, _CHUNK):
        yield chunk
