"""Answers that are good HTTP, whatever is in them, for servers of both versions."""

from __future__ import annotations

import gzip
import zlib
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, NamedTuple

from tests.wall.h1_site import h1_site, says
from tests.wall.h2_peer import H2Peer, Stream
from tests.wall.h2_site import h2_site, head, sends

Version = Literal["HTTP/1.1", "HTTP/2"]


class Said(NamedTuple):
    """An answer.

    Attributes:
        content: Its body as it is sent.
        coding: Said of its coding; "" is nothing.
        status: Its status.
        fields: Other fields.
        kind: Said of its type.
    """

    content: bytes
    coding: str = ""
    status: int = 200
    fields: tuple[tuple[str, str], ...] = ()
    kind: str = "application/octet-stream"

    def site(self, version: Version) -> AbstractAsyncContextManager[Any]:
        """Return a server that gives it."""
        fields = [*self.fields, ("content-length", str(len(self.content)))]
        fields.append(("content-type", self.kind))
        if self.coding:
            fields.append(("content-encoding", self.coding))
        if version == "HTTP/1.1":
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
            said = f"HTTP/1.1 {self.status} So\r\n{lines}\r\n".encode()
            return h1_site(says(said + self.content, then="serve on"))

        async def play(peer: H2Peer, stream: Stream) -> bool:
            await sends(head(self.status, *fields))(peer, stream)
            await peer.body(stream, self.content)
            return True

        return h2_site(play)


def zipped(content: bytes) -> bytes:
    return gzip.compress(content, 1)


def bomb(megabytes: int) -> bytes:
    """Return a gzip stream of a thousandth of that size."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(10**6)) for _ in range(megabytes)) + packer.flush()
