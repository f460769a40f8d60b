import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedding_fakes import FakeBackend, turns, unit, vector_of

from services.embedding import (
    CacheUse,
    EmbeddingSettings,
    EmbedOptions,
    Lane,
    ProductionEmbeddingService,
    QueueFullError,
)
from shared.infrastructure.resilience import DeadlineExceededError, ServiceError


def service_over(model: FakeBackend, **settings: Any) -> ProductionEmbeddingService:
    settings = {"model_name": "fake/model", **settings}
    return ProductionEmbeddingService(EmbeddingSettings(**settings), backend=model)


def is_vector_of(text: str, row: np.ndarray) -> bool:
    return np.allclose(row, unit(vector_of(text)), atol=1e-6)


@pytest.fixture(params=[True, False], ids=["prepared at once", "prepared elsewhere"])
def model(request: pytest.FixtureRequest) -> FakeBackend:
    backend = FakeBackend()
    backend.at_once = request.param
    return backend


async def busy(service: ProductionEmbeddingService, model: FakeBackend) -> asyncio.Task[Any]:
    """Occupy the model until it is opened."""
    model.open.clear()
    held = asyncio.create_task(service.embed_batch(["held"]))
    await model.began.wait()
    assert model.texts == ["held"]
    return held


async def test_whoever_began_a_computation_may_leave_without_harm(model: FakeBackend) -> None:
    async with service_over(model) as service:
        held = await busy(service, model)
        first = asyncio.create_task(service.embed_batch(["x", "y"]))
        await turns()
        second = asyncio.create_task(service.embed_batch(["x"]))
        await turns()
        first.cancel()
        await turns()
        model.open.set()
        assert is_vector_of("x", (await second).vectors[0])
        await held
    assert first.cancelled()
    assert sorted(model.texts) == ["held", "x"]


async def test_what_nobody_waits_for_any_more_is_not_computed(model: FakeBackend) -> None:
    async with service_over(model) as service:
        held = await busy(service, model)
        calls = [asyncio.create_task(service.embed_batch(["x", "X"])) for _ in range(3)]
        await turns()
        for call in calls:
            call.cancel()
        await turns()
        assert service.get_metrics()["flights"] == 1
        model.open.set()
        await held
    assert model.texts == ["held"]


async def test_a_text_in_a_running_batch_that_was_left_is_joined_and_kept(
    model: FakeBackend,
) -> None:
    async with service_over(model) as service:
        held = await busy(service, model)
        held.cancel()
        await turns()
        joined = asyncio.create_task(service.embed_batch(["held"]))
        await turns()
        model.open.set()
        assert is_vector_of("held", (await joined).vectors[0])
        assert (await service.embed_batch(["held"])).cached == [True]
    assert model.texts == ["held"]


async def test_a_caller_with_little_time_does_not_take_it_from_those_who_joined_him(
    model: FakeBackend,
) -> None:
    async with service_over(model) as service:
        held = await busy(service, model)
        hasty = asyncio.create_task(service.embed_batch(["x"], EmbedOptions(timeout=0.05)))
        await turns()
        patient = asyncio.create_task(service.embed_batch(["x"]))
        with pytest.raises(DeadlineExceededError):
            await hasty
        model.open.set()
        assert is_vector_of("x", (await patient).vectors[0])
        await held


async def test_whom_another_ones_refusal_hits_asks_on_his_own() -> None:
    class RefusingOnce(FakeBackend):
        async def embed(self, batch: Any) -> Any:
            if not self.batches:
                self.batches.append([])
                await self.open.wait()
                raise QueueFullError("not now", retry_after=1.0)
            return await super().embed(batch)

    model = RefusingOnce()
    async with service_over(model) as service:
        model.open.clear()
        first = asyncio.create_task(service.embed_batch(["x"]))
        await turns()
        second = asyncio.create_task(service.embed_batch(["x"]))
        await turns()
        model.open.set()
        with pytest.raises(QueueFullError):
            await first
        assert is_vector_of("x", (await second).vectors[0])
    assert model.batches == [[], ["x"]]


async def test_an_error_is_everybodys_and_is_not_kept(model: FakeBackend) -> None:
    async with service_over(model) as service:
        model.error = ServiceError("broken")
        model.open.clear()
        calls = [asyncio.create_task(service.embed_batch(["x"])) for _ in range(2)]
        await turns()
        model.open.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [str(result) for result in results] == ["broken"] * 2
        model.error = None
        assert (await service.embed_batch(["x"])).cached == [False]
    assert model.texts == ["x", "x"]


async def test_a_preparation_that_fails_fails_its_texts_alone(model: FakeBackend) -> None:
    model.unreadable = {"odd"}
    async with service_over(model) as service:
        with pytest.raises(ServiceError, match="text 1 cannot be read"):
            await service.embed_batch(["x", "odd"])
        assert (await service.embed_batch(["x"])).cached == [True]
        assert service.get_metrics()["flights"] == 0


async def test_a_refused_call_leaves_nothing_behind(model: FakeBackend) -> None:
    async with service_over(model, max_queue_seconds=1e-9) as service:
        held = await busy(service, model)
        with pytest.raises(QueueFullError) as refused:
            await service.embed_batch(["x", "y"])
        assert refused.value.retry_after is not None
        assert refused.value.retry_after > 0
        assert service.get_metrics()["flights"] == 1
        model.open.set()
        await held
    assert model.texts == ["held"]


async def test_what_is_on_disk_is_not_computed_and_is_served_even_when_the_queue_is_full(
    model: FakeBackend, tmp_path: Path
) -> None:
    settings = {"cache_file": tmp_path / "vectors.db", "max_queue_seconds": 1e-9}
    async with service_over(FakeBackend(), **settings) as service:
        first = await service.embed_batch(["x"])
    async with service_over(model, **settings) as service:
        held = await busy(service, model)
        found = await service.embed_batch(["x", "x"])
        assert found.cached == [True, True]
        assert found.vectors[0].tolist() == first.vectors[0].tolist()
        with pytest.raises(QueueFullError):
            await service.embed_batch(["x", "y"], EmbedOptions(cache=CacheUse.REFRESH))
        model.open.set()
        await held
    assert model.texts == ["held"]


async def test_a_call_of_very_many_tokens_is_bulk_unless_it_says_else(model: FakeBackend) -> None:
    async with service_over(model, bulk_tokens=50) as service:
        held = await busy(service, model)
        texts = [f"text number {number}" for number in range(20)]
        calls = [
            asyncio.create_task(service.embed_batch(texts)),
            asyncio.create_task(service.embed_batch(["urgent"], EmbedOptions(lane=Lane.DEFAULT))),
        ]
        await turns()
        lanes = service.get_metrics()["scheduler"]["lanes"]
        assert (lanes["bulk"]["queued_jobs"], lanes["default"]["queued_jobs"]) == (20, 1)
        model.open.set()
        await asyncio.gather(held, *calls)


async def test_a_list_that_is_changed_meanwhile_changes_nothing(model: FakeBackend) -> None:
    texts = [f"text {number}" for number in range(1500)]
    async with service_over(model, cache_size=2000, max_queue_seconds=1e9) as service:
        call = asyncio.create_task(service.embed_batch(texts))
        await asyncio.sleep(0)
        texts[0] = "another"
        assert is_vector_of("text 0", (await call).vectors[0])
        found = await service.embed_batch(["text 0"])
        assert found.cached == [True]
        assert is_vector_of("text 0", found.vectors[0])


async def test_who_shares_the_tokens_of_a_text_that_was_too_late_asks_on_his_own(
    model: FakeBackend,
) -> None:
    class LateOnce(FakeBackend):
        async def embed(self, batch: Any) -> Any:
            if not self.batches:
                self.batches.append([])
                await self.open.wait()
                raise DeadlineExceededError("too late")
            return await super().embed(batch)

    late = LateOnce()
    late.at_once = model.at_once
    async with service_over(late) as service:
        late.open.clear()
        first = asyncio.create_task(service.embed_batch(["Same tokens"]))
        await turns()
        second = asyncio.create_task(service.embed_batch(["same TOKENS"]))
        await turns()
        late.open.set()
        with pytest.raises(DeadlineExceededError):
            await first
        assert is_vector_of("same tokens", (await second).vectors[0])
    assert late.batches == [[], ["same tokens"]]
