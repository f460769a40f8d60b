from typing import Any

import numpy as np
import pytest
from embedding_fakes import FakeBackend, unit, vector_of

from services.embedding import (
    CacheUse,
    EmbeddingSettings,
    EmbedOptions,
    ProductionEmbeddingService,
    UnknownPromptError,
)
from services.embedding.options import Item, Reading
from shared.infrastructure.resilience import (
    ConfigurationError,
)


def service_over(model: FakeBackend, **settings: Any) -> ProductionEmbeddingService:
    settings = {"model_name": "fake/model", **settings}
    return ProductionEmbeddingService(EmbeddingSettings(**settings), backend=model)


@pytest.mark.parametrize(
    ("options", "read"),
    [
        (EmbedOptions(), "d0: x"),
        (EmbedOptions(input_type="query"), "q: x"),
        (EmbedOptions(input_type="document"), "d: x"),
        (EmbedOptions(input_type="clustering"), "d0: x"),
        (EmbedOptions(prompt_name="other"), "o: x"),
        (EmbedOptions(prompt=""), "x"),
        (EmbedOptions(prompt="mine "), "mine x"),
    ],
)
async def test_a_text_is_read_under_the_prompt_that_the_options_name(
    options: EmbedOptions, read: str
) -> None:
    model = FakeBackend(default_prompt="d0: ")
    async with service_over(model) as service:
        first = await service.embed_batch(["x"], options)
        assert model.texts == [read]
        assert np.allclose(first.vectors[0], unit(vector_of(read)), atol=1e-6)
        assert (await service.embed_batch(["x"], options)).cached == [True]
        assert (await service.embed_batch(["x"], EmbedOptions(prompt="else "))).cached == [False]


async def test_a_server_with_prompts_of_its_own_is_told_what_the_text_is_for() -> None:
    class Told(FakeBackend):
        def _prepared(self, item: Item, reading: Reading) -> Any:
            readings.append(reading)
            return super()._prepared(item, reading)

    readings: list[Reading] = []
    async with service_over(Told(takes_input_type=True)) as service:
        await service.embed_query("x")
        await service.embed_document("x")
    assert [(reading.prompt, reading.input_type) for reading in readings] == [
        ("", "query"),
        ("", "document"),
    ]


async def test_prompts_are_asked_for_by_one_name_that_the_model_has() -> None:
    async with service_over(FakeBackend()) as service:
        with pytest.raises(UnknownPromptError, match=r"\['document', 'other', 'query'\]"):
            await service.embed_batch(["x"], EmbedOptions(prompt_name="nope"))
        with pytest.raises(ConfigurationError, match="not several"):
            await service.embed_batch(["x"], EmbedOptions(prompt_name="query", prompt="y"))


async def test_texts_that_the_model_reads_alike_are_computed_once_and_each_is_cached() -> None:
    model = FakeBackend()
    async with service_over(model) as service:
        both = await service.embed_batch(["Hello", "hello"])
        assert model.texts == ["hello"]
        assert both.vectors[0].tolist() == both.vectors[1].tolist()
        assert (await service.embed_batch(["Hello", "hello"])).cached == [True, True]
        assert service.get_metrics()["items"] == {"cached": 2, "computed": 1, "inflight": 1}


async def test_token_ids_are_items_of_their_own() -> None:
    async with service_over(FakeBackend()) as service:
        ids = tuple(map(ord, "hello"))
        rows = await service.embed_batch([ids, "hello"])
        assert rows.vectors[0].tolist() == rows.vectors[1].tolist()
        assert await service.tokenize(["hi"]) == [list(map(ord, "hi"))]
        assert await service.count_tokens(["a b c", "a"]) == [5, 3]


async def test_refreshed_vectors_are_kept_and_bypassing_ones_are_not() -> None:
    model = FakeBackend()
    async with service_over(model) as service:
        fresh = EmbedOptions(cache=CacheUse.REFRESH)
        past = EmbedOptions(cache=CacheUse.BYPASS)
        assert (await service.embed_batch(["a"], past)).cached == [False]
        assert (await service.embed_batch(["a"])).cached == [False]
        assert (await service.embed_batch(["a"], fresh)).cached == [False]
        assert (await service.embed_batch(["a"], past)).cached == [False]
        assert (await service.embed_batch(["a"])).cached == [True]
    assert model.texts == ["a"] * 4


@pytest.mark.parametrize(("numerics", "cached"), [("exact", False), ("approximate", True)])
async def test_vectors_that_depend_on_their_neighbours_are_cached_only_if_asked_for(
    numerics: str, cached: bool
) -> None:
    async with service_over(FakeBackend(batch_invariant=False), cache_numerics=numerics) as service:
        await service.embed("a")
        assert (await service.embed("a")).cached is cached


async def test_vectors_as_the_model_made_them_can_be_had() -> None:
    async with service_over(FakeBackend()) as service:
        raw = await service.embed_batch(["a"], EmbedOptions(normalize=False, dimensions=3))
        assert raw.vectors[0].tolist() == vector_of("a")[:3].tolist()
        assert raw.fingerprint == "fake"
