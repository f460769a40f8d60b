import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from services.embedding import Embedded, TextRejectedError

DIMENSION = 8


def vector_of(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32) * 3


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def embedded(text: str) -> Embedded:
    return Embedded(vector_of(text), len(text.split()) + 2, truncated=False)


class FakeBackend:
    """A model that a test holds up, breaks and counts."""

    model_name = "fake/model"
    fingerprint = "fake"
    dimension = DIMENSION
    concurrency = 1

    def __init__(self) -> None:
        self.is_healthy = True
        self.batches: list[list[str]] = []
        self.poison: set[str] = set()
        self.error: Exception | None = None
        self.start_error: Exception | None = None
        self.starts = self.stops = 0
        self.open = asyncio.Event()
        self.open.set()

    @property
    def texts(self) -> list[str]:
        return [text for batch in self.batches for text in batch]

    async def start(self) -> None:
        self.starts += 1
        await self.open.wait()
        if self.start_error is not None:
            raise self.start_error

    async def stop(self) -> None:
        self.stops += 1

    async def embed_batch(self, texts: Sequence[str]) -> Sequence[Embedded | Exception]:
        self.batches.append(list(texts))
        await asyncio.sleep(0)
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return [
            TextRejectedError("poison") if text in self.poison else embedded(text) for text in texts
        ]

    async def check_health(self) -> None:
        await asyncio.sleep(0)

    def snapshot(self) -> dict[str, Any]:
        off = {"enabled": False}
        return {
            "circuit_breaker": off,
            "rate_limiter": off,
            "bulkhead": off,
            "health": {"status": "healthy"},
        }


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
