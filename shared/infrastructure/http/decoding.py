"""Bodies of answers, decoded piece by piece and never further than a limit.

The content codings are those of RFC 9110, section 8.4.1, that the standard library decodes in
bounded memory: gzip and deflate. Nothing else is asked for, and nothing else is taken.
"""

from __future__ import annotations

import asyncio
import math
import re
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from functools import lru_cache

from pydantic import BaseModel, Field

from shared.infrastructure.http.errors import ResponseTooLargeError, UndecodableBodyError

# Most that a decoded piece has, and most that is decoded from at a time: for every piece, zlib
# copies the input it has left.
_PIECE = 64 * 1024
# Decoded bytes after which other tasks get their turn; a few milliseconds.
_TURN = 1024 * 1024
_ASKED_FOR = ("gzip", "deflate")
_DECODABLE = frozenset({*_ASKED_FOR, "x-gzip"})
_KEPT = _DECODABLE | {"identity", "*"}
_NEVER = re.compile(r"q=0(\.0*)?\s*", re.IGNORECASE)


class ResponseLimits(BaseModel, frozen=True, extra="forbid"):
    """How much of an answer is taken; more is an error, never a cut.

    Attributes:
        max_bytes: Decoded bytes of a body that is read into memory; 134,217,728; at least 0; None
            is no limit.
        max_streamed_bytes: Decoded bytes of a body that is streamed; at least 0; None (default) is
            no limit.
        max_header_bytes: Bytes of status line and header fields; 65,536; at least 1.
        max_json_depth: Arrays and objects inside each other, in a JSON body that is read into
            memory; 100; at least 1.
    """

    max_bytes: int | None = Field(default=128 * 1024 * 1024, ge=0)
    max_streamed_bytes: int | None = Field(default=None, ge=0)
    max_header_bytes: int = Field(default=64 * 1024, ge=1)
    max_json_depth: int = Field(default=100, ge=1)


class BodyDecoder:
    """Turns the bytes of one body into what they stand for; this one, for no coding, counts them.

    Args:
        limits: How much may come of them.
        is_streamed: `max_streamed_bytes` is the limit, not `max_bytes`.
    """

    __slots__ = ("_is_streamed", "_left", "_limit")

    def __init__(self, limits: ResponseLimits, *, is_streamed: bool = False) -> None:
        self._is_streamed = is_streamed
        self._limit = limits.max_streamed_bytes if is_streamed else limits.max_bytes
        self._left: float = math.inf if self._limit is None else self._limit

    def feed(self, data: bytes) -> Iterable[bytes]:
        """Return the decoded pieces of `data`; all must be taken before the next call.

        Raises:
            ResponseTooLargeError: The body has more bytes than it may.
            UndecodableBodyError: It is not in the coding it is said to be in.
        """
        size = len(data)
        if size > self._left:
            self.expect(size)
        self._left -= size
        return (data,)

    def finish(self) -> None:
        """Take note of the end of the body.

        Raises:
            UndecodableBodyError: It came too early.
        """

    def count(self, size: int) -> None:
        """Take note of `size` decoded bytes.

        Raises:
            ResponseTooLargeError: They are too many.
        """
        self.expect(size)
        self._left -= size

    def expect(self, size: float) -> None:
        """Refuse a body of which `size` more bytes will come, if those are too many.

        Raises:
            ResponseTooLargeError: They are.
        """
        if size > self._left:
            name = "max_streamed_bytes" if self._is_streamed else "max_bytes"
            raise ResponseTooLargeError(
                f"the body has more than {self._limit} bytes: "
                f"if that is to be expected, raise ResponseLimits.{name}"
            )


class _Inflater(BodyDecoder):
    """Decodes gzip or deflate.

    A gzip body is a series of members and nothing else (RFC 1952, section 2.2). Browsers pass over
    what follows a member and is none; curl and Go refuse it, and so do we: otherwise a body whose
    second member is damaged would count as complete.
    """

    __slots__ = ("_coding", "_head", "_zlib")

    def __init__(self, coding: str, limits: ResponseLimits, *, is_streamed: bool = False) -> None:
        super().__init__(limits, is_streamed=is_streamed)
        self._coding = coding
        self._head = b""
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def feed(self, data: bytes) -> Iterator[bytes]:
        if len(self._head) < 2:
            data = self._head + data
            self._head = data[:2]
            if len(data) < 2:
                return
            if self._coding == "deflate":
                self._zlib = zlib.decompressobj(_deflate_window(self._head))
        for start in range(0, len(data), _PIECE):
            yield from self._inflate(data[start : start + _PIECE])

    def finish(self) -> None:
        if self._head and not self._zlib.eof:
            raise UndecodableBodyError(f"the body ended within its {self._coding} data")

    def _inflate(self, data: bytes) -> Iterator[bytes]:
        piece = b""
        # Even with no input left, zlib may still owe the rest of what would not fit in the piece.
        while data or len(piece) == _PIECE:
            if self._zlib.eof:
                if not data:
                    return
                self._begin_member()
            try:
                piece = self._zlib.decompress(data, _PIECE)
            except zlib.error as exc:
                raise UndecodableBodyError(f"the body is not {self._coding}: {exc}") from exc
            data = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail
            if piece:
                self.count(len(piece))
                yield piece

    def _begin_member(self) -> None:
        if self._coding == "deflate":
            raise UndecodableBodyError("the body goes on after its deflate data")
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 16)


def decoder_for(
    content_encoding: str | None,
    limits: ResponseLimits,
    *,
    is_streamed: bool = False,
    content_length: str | None = None,
) -> BodyDecoder:
    """Return the decoder of one body; one that has no body (HEAD, 204, 304) needs none.

    Args:
        content_encoding: Value of Content-Encoding.
        limits: How much may come of the body.
        is_streamed: The body is not read into memory: `max_streamed_bytes` is its limit.
        content_length: Value of Content-Length; without a coding, it must be within the limit.

    Raises:
        ResponseTooLargeError: The body is declared to have more bytes than it may.
        UndecodableBodyError: The body is in a coding that was not asked for, or in several.
    """
    coding = _coding_of(content_encoding) if content_encoding else ""
    if coding:
        return _Inflater(coding, limits, is_streamed=is_streamed)
    decoder = BodyDecoder(limits, is_streamed=is_streamed)
    if content_length and content_length.isdecimal():  # what is no number, the wire objects to
        decoder.expect(float(content_length))
    return decoder


async def decoded(chunks: AsyncIterable[bytes], decoder: BodyDecoder) -> AsyncIterator[bytes]:
    """Yield the decoded pieces of a body; other tasks get their turn however much comes of it.

    Raises:
        ResponseTooLargeError: The body has more bytes than it may.
        UndecodableBodyError: It is damaged or cut short.
    """
    work, feed = 0, decoder.feed
    async for chunk in chunks:
        for piece in feed(chunk):
            yield piece
            work += len(piece)
            if work >= _TURN:
                work = 0
                await asyncio.sleep(0)
    decoder.finish()


@lru_cache(maxsize=64)
def acceptable(accept_encoding: str | None) -> str:
    """Return the value of Accept-Encoding that asks for no coding but those decoded here.

    What is kept keeps its weight; `*` becomes the codings it stands for; None, which would let a
    service choose any, becomes all of ours.
    """
    if accept_encoding is None:
        return ", ".join(_ASKED_FOR)
    items = [item.strip() for item in accept_encoding.split(",")]
    named = [item.partition(";")[0].strip().lower() for item in items]
    kept: list[str] = []
    for item, name in zip(items, named, strict=True):
        weight = item.partition(";")[2].strip()
        if name == "*" and not _NEVER.fullmatch(weight):
            meant = [coding for coding in _ASKED_FOR if coding not in named]
            kept += [f"{coding};{weight}" if weight else coding for coding in meant]
        elif name in _KEPT:
            kept.append(item)
    return ", ".join(kept) or "identity"


def _coding_of(content_encoding: str) -> str:
    names = [name.strip().lower() for name in content_encoding.split(",")]
    codings = [name for name in names if name not in {"", "identity"}]
    if not codings:
        return ""
    # Codings on top of each other would multiply what a few bytes can become.
    if len(codings) > 1 or codings[0] not in _DECODABLE:
        raise UndecodableBodyError(
            f"the body is encoded as {content_encoding[:100]!r}: only one of gzip and deflate was "
            "asked for"
        )
    return codings[0]


def _deflate_window(head: bytes) -> int:
    """Tell zlib's format, which deflate means in HTTP, from the bare data that some servers send.

    The first two bytes of zlib's name the method, which is 8, and as one number are a multiple of
    31 (RFC 1950, section 2.2).
    """
    is_zlib = head[0] & 0x0F == 8 and int.from_bytes(head, "big") % 31 == 0
    return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS
