import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.embedding import BackendFacts, Embedded, Prepared, TextRejectedError
from services.embedding.options import Item, Reading
from shared.infrastructure.local_embeddings import InvalidTextError

DIMENSION = 8


def vector_of(text: str) -> np.ndarray:
    """Return what the fake model makes of a text; it reads no capitals."""
    seed = int.from_bytes(hashlib.sha256(text.lower().encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32) * 3


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def embedded(text: str) -> Embedded:
    return Embedded(vector_of(text), len(text.split()) + 2, truncated=False)


class FakeBackend:
    """A model that a test holds up, breaks and counts.

    Attributes:
        batches: Texts of each batch, as the model reads them.
        at_once: Whether it prepares texts without being waited for.
        unreadable: Texts that cannot be prepared.
        poison: Texts that cannot be embedded.
        began: Set when a batch begins.
        open: Whether it goes on, or waits: with its start and with its batches.
    """

    def __init__(self, **facts: Any) -> None:
        self.facts = BackendFacts(
            **{
                "model_name": "fake/model",
                "fingerprint": "fake",
                "dimension": DIMENSION,
                "max_length": 64,
                "prompts": {"query": "q: ", "document": "d: ", "other": "o: "},
                **facts,
            }
        )
        self.is_healthy = True
        self.batches: list[list[str]] = []
        self.at_once = True
        self.unreadable: set[str] = set()
        self.poison: set[str] = set()
        self.error: Exception | None = None
        self.start_error: Exception | None = None
        self.starts = self.stops = 0
        self.began = asyncio.Event()
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

    def prepare_now(
        self, items: Sequence[Item], reading: Reading
    ) -> Sequence[Prepared | Exception] | None:
        return [self._prepared(item, reading) for item in items] if self.at_once else None

    async def prepare(
        self, items: Sequence[Item], reading: Reading
    ) -> Sequence[Prepared | Exception]:
        await asyncio.sleep(0)
        return [self._prepared(item, reading) for item in items]

    def token_ids(self, prepared: Prepared) -> NDArray[np.int32]:
        return np.frombuffer(str(prepared.payload).encode("utf-32-le"), np.int32)

    def _prepared(self, item: Item, reading: Reading) -> Prepared | Exception:
        if item in self.unreadable:
            return InvalidTextError("text 0 cannot be read", 0)
        text = reading.prompt + item if isinstance(item, str) else "".join(map(chr, item))
        read = text.lower()
        return Prepared(len(read.split()) + 2, read, read.encode())

    async def embed(self, batch: Sequence[Prepared]) -> Sequence[Embedded | Exception]:
        texts = [str(item.payload) for item in batch]
        self.batches.append(texts)
        self.began.set()
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
