"""A searchable library: passages embedded by the embedding process, found by similarity."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.demo.documents import Passage
from shared.infrastructure import EnhancedHTTPClient

MODEL = "all-MiniLM-L6-v2"
BATCH = 16
CACHED = re.compile(r'^emb_items_total{source="cached"} (\S+)$', re.MULTILINE)


class Library:
    """Passages and their vectors, kept in memory.

    Args:
        http: Client of a server that answers `POST /v1/embeddings` as OpenAI's does.
    """

    def __init__(self, http: EnhancedHTTPClient) -> None:
        self._http = http
        self._passages: Sequence[Passage] = ()
        self._vectors: NDArray[np.float32] = np.empty((0, 0), np.float32)

    async def read(self, passages: Sequence[Passage], progress: Callable[[int, int], None]) -> None:
        """Embed `passages`, telling `progress` how many of how many are done."""
        batches: list[NDArray[np.float32]] = []
        for start in range(0, len(passages), BATCH):
            texts = [passage.text for passage in passages[start : start + BATCH]]
            batches.append(await self._embed(texts))
            progress(start + len(texts), len(passages))
        self._passages, self._vectors = passages, np.concatenate(batches)

    async def best(self, question: str, count: int = 3) -> list[Passage]:
        """Return the passages closest in meaning to `question`, the closest first."""
        similarity = self._vectors @ (await self._embed([question]))[0]
        return [self._passages[index] for index in np.argsort(-similarity)[:count]]

    async def cache_hits(self) -> int:
        """Return how many texts the embedding process had in its cache, by its own account."""
        found = CACHED.search((await self._http.get("/metrics")).text)
        return int(float(found[1])) if found else 0

    async def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        request = {"model": MODEL, "input": list(texts), "encoding_format": "base64"}
        response = await self._http.post("/v1/embeddings", json=request)
        response.raise_for_status()
        items: list[dict[str, Any]] = sorted(
            response.json()["data"], key=lambda item: item["index"]
        )
        rows = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in items]
        return np.stack(rows)
