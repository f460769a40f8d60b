"""Reranking through the service, over a scripted model."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from embedding_fakes import FakeBackend, turns

from services.embedding import EmbeddingSettings, EmbedOptions, ProductionEmbeddingService
from services.embedding.errors import QueueFullError
from services.embedding.reranking import Reranker
from shared.infrastructure.local_embeddings import InvalidTextError, LocalReranker, RerankerConfig
from shared.infrastructure.resilience import BulkheadFullError, DeadlineExceededError
from shared.infrastructure.testing import FakeClock


class ScriptedModel(LocalReranker):
    """One that takes a second a pair, on a clock of its own, unless it is held up."""

    def __init__(self) -> None:
        super().__init__(RerankerConfig(model_name="fake/reranker"))
        self.clock = FakeClock()
        self.calls: list[tuple[str, list[str]]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.is_full = False

    async def load(self) -> None:
        await asyncio.sleep(0)

    async def unload(self) -> None:
        await asyncio.sleep(0)

    async def rank(self, query: str, texts: Sequence[str]) -> np.ndarray:
        self.calls.append((query, list(texts)))
        if self.is_full:
            raise BulkheadFullError("no slot free")
        await self.open.wait()
        await self.clock.advance(len(texts))
        return np.array([len(text) for text in texts], np.float32)

    @property
    def reranker(self) -> Reranker:
        return Reranker(self, max_queue_seconds=4.0, clock=self.clock)


def service_over(model: LocalReranker, **settings: Any) -> ProductionEmbeddingService:
    return ProductionEmbeddingService(
        EmbeddingSettings(**settings), backend=FakeBackend(), reranker=Reranker(model)
    )


async def test_the_query_and_the_texts_are_cut_to_what_is_read() -> None:
    model = ScriptedModel()
    async with service_over(model, max_text_length=5) as service:
        assert await service.rerank("question", ["abc", "abcdefgh"]) == [(1, 5.0), (0, 3.0)]
        assert model.calls[-1] == ("quest", ["abc", "abcde"])
        with pytest.raises(InvalidTextError, match="query"):
            await service.rerank(7, ["a"])  # type: ignore[arg-type]
        with pytest.raises(InvalidTextError, match="text 1"):
            await service.rerank("q", ["a", 7])  # type: ignore[list-item]


async def test_a_model_that_hangs_is_given_up_in_time() -> None:
    model = ScriptedModel()
    async with service_over(model) as service:
        model.open.clear()
        with pytest.raises(DeadlineExceededError):
            await service.rerank("q", ["a"], timeout=0.05)
        model.open.set()
        assert await service.rerank("q", ["a"], timeout=60.0) == [(0, 1.0)]


@pytest.mark.parametrize("asked", ["count_tokens", "tokenize"])
async def test_tokens_that_take_too_long_are_given_up(asked: str) -> None:
    class Hanging(FakeBackend):
        async def prepare(self, *_: Any) -> Any:
            await asyncio.Event().wait()

    async with ProductionEmbeddingService(backend=Hanging()) as service:
        with pytest.raises(DeadlineExceededError):
            await getattr(service, asked)(["a"], EmbedOptions(timeout=0.05))


async def test_a_call_with_too_much_ahead_is_told_when_that_is_done() -> None:
    model = ScriptedModel()
    reranker = model.reranker
    await reranker.rerank("q", ["a"] * 10)  # 1 s a pair
    await reranker.rerank("q", [])
    model.open.clear()
    calls = [asyncio.create_task(reranker.rerank("q", ["a"] * count)) for count in (4, 6)]
    await turns()
    with pytest.raises(QueueFullError) as refused:
        await reranker.rerank("q", ["a"])
    assert refused.value.retry_after == pytest.approx(10 - 4)
    model.open.set()
    await asyncio.gather(*calls)
    model.is_full = True
    with pytest.raises(QueueFullError):
        await reranker.rerank("q", ["a"])
    model.is_full = False
    assert await reranker.rerank("q", ["a"]) == [(0, 1.0)]


async def test_a_full_line_says_when_those_in_it_are_done() -> None:
    model = ScriptedModel()
    reranker = model.reranker
    await reranker.rerank("q", ["a"] * 10)
    model.open.clear()
    ahead = asyncio.create_task(reranker.rerank("q", ["a"] * 3))
    await turns()
    model.is_full = True
    with pytest.raises(QueueFullError, match="no slot free") as refused:
        await reranker.rerank("q", ["a"])
    assert refused.value.retry_after == pytest.approx(3)
    model.open.set()
    await ahead
