"""Answers kept as bytes: a request that repeats another one costs a look into a dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.embedding.process.writing import RAW
from services.embedding.results import Embeddings
from services.embedding.service import ProductionEmbeddingService
from shared.infrastructure.server import Reply, Request

_MAX_REQUEST = 4 * 1024
_MAX_REPLY = 64 * 1024
_MAX_BYTES = 16 * 2**20
# Bytes of an entry beside its request and its answer.
_OVERHEAD = 500

_Key = tuple[str, bool, bytes]


@dataclass(frozen=True, slots=True)
class _Kept:
    reply: Reply
    items: int
    tokens: int
    size: int


class ReplyCache:
    """The latest small answers of which every vector came out of the cache.

    Made again, such an answer would be the same to the byte: vectors do not age. So it is kept
    only where they do not (`cache_ttl`), and as long as the model is the same one.

    Args:
        service: Whose answers they are.
        max_bytes: Size of requests and answers at most.
    """

    def __init__(self, service: ProductionEmbeddingService, *, max_bytes: int = _MAX_BYTES) -> None:
        self._service = service
        self._max_bytes = max_bytes if service.settings.cache_ttl is None else 0
        self._kept: dict[_Key, _Kept] = {}
        self._bytes = self._items = self._tokens = 0

    def recall(self, request: Request) -> Reply | None:
        """Return the answer to a request that was answered before, or None."""
        if len(request.body) > _MAX_REQUEST or not self._service.is_started:
            return None
        key = _key(request)
        kept = self._kept.get(key)
        if kept is None:
            return None
        # The one used longest ago is the first.
        self._kept[key] = self._kept.pop(key)
        self._items += kept.items
        self._tokens += kept.tokens
        return kept.reply

    def keep(self, request: Request, reply: Reply, embeddings: Embeddings) -> None:
        """Keep an answer whose vectors all came out of the cache."""
        size = len(request.body) + len(reply.body) + _OVERHEAD
        # A large body has been let go of by now.
        if not 0 < len(request.body) <= _MAX_REQUEST or len(reply.body) > _MAX_REPLY:
            return
        key = _key(request)
        kept = _Kept(reply, len(embeddings), sum(embeddings.token_counts), size)
        self._drop(key)
        self._kept[key] = kept
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self._bytes = 0

    def snapshot(self) -> dict[str, Any]:
        """Return sizes, and the items and tokens that were answered, as plain JSON types."""
        return {
            "entries": len(self._kept),
            "bytes": self._bytes,
            "items": self._items,
            "tokens": self._tokens,
        }

    def _drop(self, key: _Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= kept.size


def _key(request: Request) -> _Key:
    return request.path, request.headers.get(b"accept") == RAW, request.body
