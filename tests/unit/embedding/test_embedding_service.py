import asyncio
from typing import Any

import numpy as np
import pytest
from embedding_fakes import DIMENSION, FakeBackend, embedded, turns, unit, vector_of

from services.embedding import (
    Embedded,
    EmbeddingSettings,
    EmbedOptions,
    InvalidDimensionsError,
    NotOfferedError,
    ProductionEmbeddingService,
    ServiceStoppedError,
    TextRejectedError,
)
from shared.infrastructure.local_embeddings import (
    InvalidTextError,
    NonFiniteVectorError,
    Progress,
    Truncation,
)
from shared.infrastructure.resilience import (
    DeadlineExceededError,
    ServiceError,
    deadline,
)


def service_over(model: FakeBackend, **settings: Any) -> ProductionEmbeddingService:
    settings = {"model_name": "fake/model", **settings}
    return ProductionEmbeddingService(EmbeddingSettings(**settings), backend=model)


async def test_one_text_gives_one_result_and_many_give_a_list_in_order() -> None:
    async with service_over(FakeBackend()) as service:
        one = await service.embed("a text")
        assert (one.dimension, one.token_count, one.model) == (DIMENSION, 4, "fake/model")
        assert (one.cached, one.truncated) == (False, False)
        many = await service.embed(["b", "a text", "b", ""])
        assert [result.cached for result in many] == [False, True, False, False]
        for result, text in zip(many, ["b", "a text", "b", ""], strict=True):
            assert np.allclose(result.embedding, unit(vector_of(text)), atol=1e-6)
        assert many[1].embedding == one.embedding
        assert await service.embed([]) == []


async def test_results_survive_json() -> None:
    async with service_over(FakeBackend()) as service:
        result = await service.embed("a")
    assert type(result).model_validate_json(result.model_dump_json()) == result


async def test_duplicates_in_one_call_are_computed_once() -> None:
    model = FakeBackend()
    async with service_over(model, cache_size=0) as service:
        await service.embed(["a", "b", "a", "a"])
    assert model.batches == [["a", "b"]]
    assert service.get_metrics()["items"] == {"cached": 0, "computed": 2, "inflight": 2}


@pytest.mark.parametrize("texts", [7, b"bytes", None, {"a": 1}, ["a", 7], ["a", b"b"]])
async def test_what_is_no_text_is_refused_by_its_position(texts: Any) -> None:
    model = FakeBackend()
    async with service_over(model) as service:
        with pytest.raises(InvalidTextError) as refused:
            await service.embed(texts)
    assert refused.value.index == (1 if isinstance(texts, list) else None)
    assert model.batches == []


async def test_half_a_surrogate_pair_is_refused_by_its_position() -> None:
    async with service_over(FakeBackend()) as service:
        with pytest.raises(InvalidTextError, match="text 1") as refused:
            await service.embed(["a", "\ud800"])
    assert refused.value.index == 1


async def test_a_long_text_is_cut_and_says_so_though_its_cut_form_is_cached() -> None:
    model = FakeBackend()
    async with service_over(model, max_text_length=5) as service:
        short = await service.embed("abcde")
        long = await service.embed("abcdefgh")
    assert model.texts == ["abcde"]
    assert (short.truncated, long.truncated, long.cached) == (False, True, True)
    assert long.embedding == short.embedding


@pytest.mark.parametrize(
    ("asked", "own", "read"),
    [
        (None, Truncation.END, "abcde"),
        (None, Truncation.START, "defgh"),
        (Truncation.START, Truncation.END, "defgh"),
        (Truncation.END, Truncation.START, "abcde"),
    ],
)
async def test_the_end_that_is_cut_is_the_models_own_unless_the_caller_says_else(
    asked: Truncation | None, own: Truncation, read: str
) -> None:
    model = FakeBackend(truncation=own)
    async with service_over(model, max_text_length=5) as service:
        await service.embed_batch("abcdefgh", EmbedOptions(truncation=asked))
        with pytest.raises(InvalidTextError, match="text 1 has 8"):
            await service.embed_batch(["a", "abcdefgh"], EmbedOptions(truncation=Truncation.NONE))
    assert model.texts == [read]


async def test_fewer_dimensions_are_a_slice_of_length_one_out_of_the_same_entry() -> None:
    model = FakeBackend()
    async with service_over(model) as service:
        await service.embed("a")
        result = await service.embed("a", dimensions=3)
        assert np.allclose(result.embedding, unit(vector_of("a")[:3]), atol=1e-6)
        assert result.cached
        for dimensions in (0, DIMENSION + 1):
            with pytest.raises(InvalidDimensionsError, match=f"1 to {DIMENSION}"):
                await service.embed("b", dimensions=dimensions)
    assert model.texts == ["a"]


async def test_similarity_is_the_cosine() -> None:
    async with service_over(FakeBackend()) as service:
        expected = unit(vector_of("a")) @ unit(vector_of("b"))
        assert await service.compute_similarity("a", "b") == pytest.approx(expected, abs=1e-6)
        assert await service.compute_similarity("a", "a") <= 1.0


async def test_a_rejected_text_fails_its_own_call_by_its_position_and_no_other() -> None:
    model = FakeBackend()
    model.poison = {"bad"}
    async with service_over(model) as service:
        model.open.clear()
        held = asyncio.create_task(service.embed("held"))
        await turns()
        good = asyncio.create_task(service.embed(["x", "y"]))
        bad = asyncio.create_task(service.embed(["y", "z", "bad"]))
        await turns()
        model.open.set()
        await asyncio.gather(held, good)
        with pytest.raises(TextRejectedError, match="text 2") as rejected:
            await bad
        assert rejected.value.index == 2
        assert (await service.embed("z")).cached
        with pytest.raises(TextRejectedError):
            await service.embed("bad")
    assert len(model.batches) == 3


async def test_a_vector_that_is_not_finite_is_an_error_and_is_not_cached() -> None:
    class Overflowing(FakeBackend):
        async def embed(self, batch: Any) -> list[Embedded | Exception]:
            outcomes = [embedded(str(item.payload)) for item in batch]
            outcomes[0].vector[1] = np.inf
            return list(outcomes)

    async with service_over(Overflowing()) as service:
        with pytest.raises(TextRejectedError) as rejected:
            await service.embed("a")
        assert isinstance(rejected.value.__cause__, NonFiniteVectorError)
        assert service.get_metrics()["cache"]["entries"] == 0


async def test_the_first_calls_start_it_once_and_one_who_gives_up_does_not_stop_the_start() -> None:
    model = FakeBackend()
    model.open.clear()
    service = service_over(model)
    calls = [asyncio.create_task(service.embed("a")) for _ in range(3)]
    await turns()
    calls[0].cancel()
    await turns()
    assert not service.is_started
    model.open.set()
    assert [result.dimension for result in await asyncio.gather(*calls[1:])] == [DIMENSION] * 2
    assert model.starts == 1
    assert service.is_ready
    await service.stop()


async def test_a_failed_start_tells_everyone_and_is_tried_again() -> None:
    model = FakeBackend()
    model.start_error = ServiceError("no such model")
    service = service_over(model)
    calls = [asyncio.create_task(service.embed("a")) for _ in range(2)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [ServiceError] * 2
    assert model.stops == 1
    model.start_error = None
    assert (await service.embed("a")).dimension == DIMENSION
    assert model.starts == 2
    await service.stop()


async def test_stop_finishes_what_is_here_once_and_start_follows() -> None:
    model = FakeBackend()
    service = service_over(model)
    await service.stop()
    await service.start()
    await service.start()
    model.open.clear()
    call = asyncio.create_task(service.embed("a"))
    await turns()
    stops = [asyncio.create_task(service.stop()) for _ in range(2)]
    await turns()
    assert not service.is_ready
    with pytest.raises(ServiceStoppedError):
        await service.embed("b")
    again = asyncio.create_task(service.start())
    await turns()
    assert model.starts == 1
    model.open.set()
    assert (await call).dimension == DIMENSION
    await asyncio.gather(*stops, again)
    assert (model.starts, model.stops) == (2, 1)
    assert (await service.embed("b")).dimension == DIMENSION
    await service.stop()


async def test_a_cancelled_stop_fails_what_is_left_and_start_follows() -> None:
    model = FakeBackend()
    service = service_over(model)
    await service.start()
    model.open.clear()
    call = asyncio.create_task(service.embed("a"))
    await turns()
    stop = asyncio.create_task(service.stop())
    await turns()
    stop.cancel()
    with pytest.raises(ServiceStoppedError):
        await call
    assert stop.cancelled()
    model.open.set()
    await service.start()
    assert (await service.embed("b")).dimension == DIMENSION
    assert (model.starts, model.stops) == (2, 1)
    await service.stop()


async def test_a_stop_cancelled_before_the_start_is_over_can_be_undone() -> None:
    model = FakeBackend()
    model.open.clear()
    service = service_over(model)
    start = asyncio.create_task(service.start())
    await turns()
    stop = asyncio.create_task(service.stop())
    await turns()
    stop.cancel()
    await turns()
    model.open.set()
    await turns()
    await service.start()
    assert (await service.embed("b")).dimension == DIMENSION
    await asyncio.gather(start, return_exceptions=True)
    await service.stop()


async def test_the_callers_deadline_holds_while_the_model_hangs() -> None:
    model = FakeBackend()
    async with service_over(model) as service:
        model.open.clear()
        with pytest.raises(TimeoutError):
            async with deadline(0.05):
                await service.embed("a")
        assert service.get_metrics()["cancelled_count"] == 1
        model.open.set()


async def test_metrics_and_health_are_plain_values() -> None:
    model = FakeBackend()
    service = service_over(model)
    assert (await service.health_check())["status"] == "stopped"
    async with service:
        await service.embed(["a b", "c"])
        await service.embed("c")
        with pytest.raises(InvalidTextError):
            await service.embed_batch([1])  # type: ignore[list-item]
        metrics = service.get_metrics()
        assert metrics["cache"]["hit_rate"] == pytest.approx(1 / 3)
        assert (metrics["request_count"], metrics["error_count"]) == (3, 1)
        assert (metrics["text_count"], metrics["token_count"]) == (3, 10)
        assert metrics["cached_token_count"] == 3
        assert metrics["items"] == {"cached": 1, "computed": 2, "inflight": 0}
        health = await service.health_check()
    assert health["status"] == "healthy"
    assert {"metrics", "circuit_breaker", "rate_limiter"} <= health.keys()


async def test_a_corpus_comes_in_windows_and_a_bad_text_is_in_its_window() -> None:
    model = FakeBackend()
    model.poison, model.unreadable = {"bad"}, {"worse"}
    corpus = ["a", "b", "bad", "c", "worse", "\ud800"]
    seen: list[Progress] = []
    async with service_over(model) as service:
        chunks = [
            chunk async for chunk in service.embed_iter(corpus, window=2, progress=seen.append)
        ]
        again = [chunk async for chunk in service.embed_iter(iter(corpus), window=2, start=4)]
    assert [(chunk.start, len(chunk)) for chunk in chunks] == [(0, 2), (2, 2), (4, 2)]
    assert {row: type(error) for chunk in chunks for row, error in chunk.failures.items()} == {
        2: TextRejectedError,
        4: InvalidTextError,
        5: InvalidTextError,
    }
    assert np.allclose(chunks[1].vectors[1], unit(vector_of("c")), atol=1e-6)
    assert np.isnan(chunks[1].vectors[0]).all()
    assert seen[-1] == Progress(6, 9, 3)
    assert [chunk.start for chunk in again] == [4]


async def test_a_window_of_a_corpus_waits_where_a_call_would_be_refused() -> None:
    async with service_over(FakeBackend(), max_bulk_seconds=1e-9) as service:
        chunks = [chunk async for chunk in service.embed_iter(["a", "b", "c", "d"], window=1)]
        assert [chunk.failures for chunk in chunks] == [{}] * 4
        assert service.get_metrics()["refused_count"] >= 1


async def test_the_nearest_documents_come_best_first() -> None:
    async with service_over(FakeBackend(prompts={})) as service:
        documents = ["x", "y", "A", "z"]
        (best, *others) = await service.top_k("a", documents, 3)
        assert (best[0], best[1]) == (2, pytest.approx(1.0, abs=1e-5))
        assert len(others) == 2
        assert others[0][1] >= others[1][1]
        vectors = await service.embed_document(documents, dimensions=4)
        assert (await service.top_k("a", vectors, 1))[0][0] == 2


async def test_what_is_not_offered_says_what_to_set() -> None:
    async with service_over(FakeBackend()) as service:
        with pytest.raises(NotOfferedError, match="EMBEDDING_RERANKER"):
            await service.rerank("q", ["a"])


async def test_a_call_that_would_end_after_its_deadline_is_given_up() -> None:
    model = FakeBackend()
    async with service_over(model) as service:
        model.open.clear()
        with pytest.raises(DeadlineExceededError):
            await service.embed_batch(["a"], EmbedOptions(timeout=0.05))
        model.open.set()
        assert (await service.embed("b")).dimension == DIMENSION
