import asyncio
import threading

import numpy as np
import pytest

from shared.infrastructure.local_embeddings import (
    InvalidTextError,
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    NonFiniteVectorError,
    Progress,
)
from shared.infrastructure.resilience import ConfigurationError


def scripted(factory, **options):
    config = LocalEmbeddingConfig(**({"normalize": False} | options))
    return LocalEmbeddingModel(config, backend_factory=factory)


def words(count):
    return [chr(97 + number % 26) * (1 + number % 7) for number in range(count)]


async def drain(chunks):
    return [chunk async for chunk in chunks]


async def test_chunks_come_in_the_order_of_the_corpus_and_add_up_to_it(factory):
    async with scripted(factory) as model:
        chunks = await drain(model.embed_iter(iter(words(25)), window=10))
        whole = await model.embed(words(25))
    assert [(chunk.start, chunk.end) for chunk in chunks] == [(0, 10), (10, 20), (20, 25)]
    np.testing.assert_array_equal(np.concatenate([chunk.vectors for chunk in chunks]), whole)
    assert [count for chunk in chunks for count in chunk.token_counts][:8] == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        1,
    ]


async def test_vectors_are_finished_as_embed_finishes_them(factory):
    async with scripted(factory, normalize=True) as model:
        (chunk,) = await drain(model.embed_iter(["abc"], dimensions=1))
        assert (
            chunk.vectors.tolist() == (await model.embed(["abc"], dimensions=1)).tolist() == [[1.0]]
        )


async def test_the_corpus_is_read_no_further_than_two_windows_ahead(factory):
    read = 0

    def corpus():
        nonlocal read
        for word in words(1000):
            read += 1
            yield word

    async with scripted(factory) as model:
        chunks = model.embed_iter(corpus(), window=10)
        await anext(chunks)
        assert read <= 20
        await anext(chunks)
        assert read <= 30
        await chunks.aclose()


async def test_progress_is_told_after_each_pass(factory):
    told = []
    async with scripted(factory, batch_size=2) as model:
        factory.opened[0].before_forward = lambda: None
        texts = ["skipped", "a", "bb", "ccc"]
        await drain(model.embed_iter(texts, start=1, progress=told.append))
    assert told == [Progress(3, 5, 0), Progress(4, 6, 0)]


async def test_long_texts_make_a_window_shorter(factory):
    async with scripted(factory) as model:
        long = ["x" * 9000] * 5
        chunks = await drain(model.embed_iter(long, window=10))
    assert [len(chunk) for chunk in chunks] == [3, 2]


async def test_an_asynchronous_corpus_is_read_too(factory):
    async def corpus():
        for word in words(5):
            await asyncio.sleep(0)
            yield word

    async with scripted(factory) as model:
        chunks = await drain(model.embed_iter(corpus(), window=2))
    assert [chunk.end for chunk in chunks] == [2, 4, 5]


async def test_a_corpus_goes_on_where_it_was_left(factory):
    async with scripted(factory) as model:
        chunks = await drain(model.embed_iter(words(25), window=10, start=13))
        whole = await model.embed(words(25))
        assert await drain(model.embed_iter(words(25), start=25)) == []
    assert [(chunk.start, chunk.end) for chunk in chunks] == [(13, 23), (23, 25)]
    np.testing.assert_array_equal(np.concatenate([chunk.vectors for chunk in chunks]), whole[13:])


async def test_a_bad_text_is_told_of_by_its_place_in_the_corpus(factory):
    async with scripted(factory) as model:
        backend = factory.opened[0]
        forward = backend.forward

        def nan_for_poison(batch, out):
            forward(batch, out)
            out[[text == "poison" for text in backend.batches[-1]]] = np.nan

        backend.forward = nan_for_poison
        corpus = ["a", "b", "poison", "c", "poison"]
        chunks = await drain(model.embed_iter(corpus, window=2))
    failures = {row: type(error) for chunk in chunks for row, error in chunk.failures.items()}
    assert failures == {2: NonFiniteVectorError, 4: NonFiniteVectorError}
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]


@pytest.mark.parametrize(("corpus", "index"), [(["a", "b", None], 2), ("abc", None)])
async def test_what_is_no_text_is_refused_by_its_place(factory, corpus, index):
    async with scripted(factory) as model:
        with pytest.raises(InvalidTextError) as caught:
            await drain(model.embed_iter(corpus, window=1))
    assert caught.value.index == index


async def test_a_text_that_a_model_refuses_is_named_by_its_place_in_the_corpus(factory):
    async with scripted(factory) as model:
        backend = factory.opened[0]
        tokenize = backend.tokenize

        def refuse(texts, options):
            if "bad" in texts:
                index = texts.index("bad")
                raise InvalidTextError(f"text {index} is bad", index)
            return tokenize(texts, options)

        backend.tokenize = refuse
        with pytest.raises(InvalidTextError, match="text 5 is bad") as caught:
            await drain(model.embed_iter([*"abcde", "bad", "f"], window=2))
    assert caught.value.index == 5


@pytest.mark.parametrize("options", [{"window": 0}, {"start": -1}])
async def test_windows_and_starts_that_mean_nothing_are_refused(factory, options):
    with pytest.raises(ConfigurationError):
        await drain(scripted(factory).embed_iter(["a"], **options))


async def test_a_consumer_that_stops_leaves_nothing_running(factory, until):
    gate = threading.Event()
    model = scripted(factory, batch_size=1)
    await model.load()
    chunks = model.embed_iter(words(100), window=10)
    await anext(chunks)
    backend = factory.opened[0]
    backend.before_forward = gate.wait
    following = asyncio.create_task(anext(chunks))
    await until(lambda: len(backend.batches) > 11)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    begun = len(backend.batches)
    gate.set()
    await model.unload()
    assert len(backend.batches) <= begun + 1
    assert backend.closed
