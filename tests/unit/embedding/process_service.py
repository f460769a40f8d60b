"""A service that embeds by hashing, for the process above it."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from services.embedding.backends.protocol import BackendFacts
from services.embedding.options import DEFAULT_OPTIONS, EmbedOptions, Item
from services.embedding.results import Embeddings
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.local_embeddings import normalized

DIMENSION = 16


def vector_of(item: Item, dimension: int = DIMENSION) -> np.ndarray:
    digest = hashlib.sha256(repr(item).encode()).digest()
    seed = int.from_bytes(digest[:8], "big")
    return np.random.default_rng(seed).normal(size=dimension).astype(np.float32)


class ScriptedService:
    """What the process asks of a service; a test holds it up, breaks it and reads what it got."""

    model_name = "fake/model"
    reranker = None
    facts = BackendFacts(
        model_name="fake/model",
        fingerprint="space-1",
        dimension=DIMENSION,
        max_length=8,
        prompts={"query": "q: ", "document": "d: ", "clustering": "c: "},
    )

    def __init__(self, settings: EmbeddingSettings) -> None:
        self.settings = settings
        self.is_started = self.is_ready = True
        self.calls: list[tuple[Sequence[Item] | str, EmbedOptions]] = []
        self.timeouts: list[float | None] = []
        self.error: BaseException | None = None
        self.start_error: Exception | None = None
        self.cancelled = 0
        self.stops = 0
        self.open = asyncio.Event()
        self.open.set()

    async def start(self) -> None:
        await self.open.wait()
        if self.start_error is not None:
            raise self.start_error
        self.is_started = self.is_ready = True

    async def stop(self) -> None:
        self.stops += 1
        self.is_started = self.is_ready = False

    async def embed_batch(
        self, items: Sequence[Item] | str, options: EmbedOptions = DEFAULT_OPTIONS
    ) -> Embeddings:
        self.calls.append((items, options))
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        width = options.dimensions or DIMENSION
        vectors = np.stack([vector_of(item)[:width] for item in items])
        lengths = await self.count_tokens(items, options)
        return Embeddings(
            normalized(vectors) if options.normalize else vectors,
            lengths,
            [length == self.facts.max_length for length in lengths],
            [item == "cached" for item in items],
            self.facts.fingerprint,
        )

    async def count_tokens(
        self, items: Sequence[Item] | str, options: EmbedOptions = DEFAULT_OPTIONS
    ) -> list[int]:
        lengths = [
            len(item) if isinstance(item, tuple) else len(item.split()) + 2 for item in items
        ]
        return [min(length, self.facts.max_length or length) for length in lengths]

    async def tokenize(
        self, texts: Sequence[str], options: EmbedOptions = DEFAULT_OPTIONS
    ) -> list[list[int]]:
        self.timeouts.append(options.timeout)
        return [[101, *range(len(text.split())), 102] for text in texts]

    async def rerank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_n: int | None = None,
        timeout: float | None = None,
    ) -> list[tuple[int, float]]:
        self.timeouts.append(timeout)
        if self.error is not None:
            raise self.error
        ranked = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        return [(row, float(len(texts[row]))) for row in ranked][:top_n]

    def get_metrics(self) -> dict[str, Any]:
        tier = {"entries": 1, "bytes": 64, "hits": 5, "misses": 6, "evictions": 7}
        lane = {
            "queued_tokens": 8,
            "queued_seconds": 0.5,
            "waited_count": 2,
            "waited_seconds": 0.25,
        }
        return {
            "model": self.model_name,
            "items": {"cached": 1, "computed": 2, "inflight": 0},
            "text_count": 3,
            "token_count": 10,
            "cached_token_count": 4,
            "truncated_count": 1,
            "joined_count": 2,
            "scheduler": {
                "lanes": {"interactive": lane, "default": lane, "bulk": lane},
                "batch_count": 2,
                "row_count": 3,
                "token_count": 10,
                "padded_token_count": 12,
                "waste_ratio": 1.2,
                "closed_counts": {"full": 1, "idle": 1},
                "expired_count": 1,
                "cancelled_count": 0,
            },
            "cache": {"tiers": {"memory": tier, "disk": tier}},
        }
