"""A corpus that is left before its end leaves nothing running."""

import asyncio
import contextlib

import pytest
from embedding_fakes import FakeBackend, turns

from services.embedding import EmbeddingSettings, ProductionEmbeddingService

CORPUS = [f"t{number}" for number in range(20)]


async def tasks_left(before: set[asyncio.Task[object]]) -> set[asyncio.Task[object]]:
    await turns()
    return asyncio.all_tasks() - before


@pytest.mark.parametrize("max_bulk_seconds", [60.0, 1e-9], ids=["served", "refused"])
async def test_a_consumer_that_stops_early_leaves_no_task_behind(max_bulk_seconds: float) -> None:
    settings = EmbeddingSettings(max_bulk_seconds=max_bulk_seconds)
    async with ProductionEmbeddingService(settings, backend=FakeBackend()) as service:
        await service.embed("warm")
        before = asyncio.all_tasks()
        async with contextlib.aclosing(service.embed_iter(CORPUS, window=1)) as chunks:
            assert (await anext(chunks)).end == 1
        assert await tasks_left(before) == set()


async def test_a_cancelled_consumer_leaves_neither_its_window_nor_one_that_waits() -> None:
    model = FakeBackend()
    settings = EmbeddingSettings(max_bulk_seconds=1e-9)
    async with ProductionEmbeddingService(settings, backend=model) as service:
        await service.embed("warm")
        model.open.clear()
        before = asyncio.all_tasks()

        async def consume() -> None:
            async for _ in service.embed_iter(CORPUS, window=1):
                pass

        consumer = asyncio.create_task(consume())
        await turns()
        assert service.get_metrics()["refused_count"] == 1
        consumer.cancel()
        await asyncio.wait([consumer])
        model.open.set()
        assert await tasks_left(before) == set()
        assert (await service.embed("after")).token_count == 3
