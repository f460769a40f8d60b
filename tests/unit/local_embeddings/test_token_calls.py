"""Tokens of texts, and texts that are tokens already."""

import asyncio
import dataclasses
import threading

import numpy as np
import pytest

from shared.infrastructure.local_embeddings import (
    InferenceError,
    InvalidTextError,
    InvalidTokensError,
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    TextTooLongError,
    TokenBatch,
    Truncation,
)


def scripted(factory, **options):
    config = LocalEmbeddingConfig(**({"normalize": False} | options))
    return LocalEmbeddingModel(config, backend_factory=factory)


@pytest.fixture
def anywhere(factory):
    """Open models whose tokenizer any thread may use; ids are below 128."""
    factory.spec = dataclasses.replace(factory.spec, tokenizes_anywhere=True, vocabulary=128)
    return factory


def rows(batch):
    return [part.ids.tolist() for part in batch.split()]


async def test_a_few_short_texts_are_tokenized_on_the_calling_thread(anywhere):
    model = scripted(anywhere)
    assert model.tokenize_now(["ab"]) is None
    async with model:
        busy = model._engines.ready.tokenizing
        with busy:  # another thread is at it: nobody waits for it
            now = model.tokenize_now(["ab", "c"], prompt="> ")
        assert rows(now) == rows(await model.tokenize(["ab", "c"], prompt="> "))
        assert anywhere.opened[0].options[0] == anywhere.opened[0].options[1]
    assert model.tokenize_now(["ab"]) is None


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        (["a" * 300], {}),
        (["a"] * 5, {}),
        (["a"], {"prompt": "p" * 300}),
        (["a"] * 4, {"prompt": "p" * 70}),
        (["a"], {"truncation": Truncation.START}),
        (["a" * 5], {"truncation": Truncation.NONE}),
    ],
)
async def test_what_may_take_longer_is_left_to_a_thread(anywhere, texts, options):
    async with scripted(anywhere) as model:
        assert model.tokenize_now(texts, **options) is None
        assert len(await model.tokenize(texts, **options)) == len(texts)


@pytest.mark.parametrize("default", [False, True])
async def test_the_prompt_is_counted_with_each_text(factory, default):
    prompt = "p" * 100_000
    if default:
        factory.spec = dataclasses.replace(factory.spec, default_prompt=prompt)
    async with scripted(factory) as model:
        chunks = []
        backend = factory.opened[0]
        tokenize = backend.tokenize
        backend.tokenize = lambda texts, options: (
            chunks.append(len(texts)) or tokenize(texts, options)
        )
        given = None if default else prompt
        expected = [2, 2, 1]  # 2**18 characters at most
        await model.tokenize(["a"] * 5, prompt=given)
        await model.tokenize_each(["a"] * 5, prompt=given)
        await model.embed_batch(["a"] * 5, prompt=given)
    assert chunks == expected * 3


async def test_a_tokenizer_of_one_thread_is_left_to_it(factory):
    async with scripted(factory) as model:
        assert model.tokenize_now(["a"]) is None


async def test_tokens_are_embedded_as_their_texts_are(factory):
    texts = ["dddd", "a", "ccc", "bbbbbbbbbbbb", "aa", "e"]
    async with scripted(factory, batch_size=4) as model:
        expected = await model.embed_batch(texts)
        tokens = await model.tokenize(texts)
        batch = await model.embed_tokens(tokens)
        assert np.array_equal(batch.vectors, expected.vectors)
        assert batch.token_counts == expected.token_counts
        assert batch.truncated == expected.truncated
        assert (await model.embed_tokens(TokenBatch.of([]))).vectors.shape == (0, 2)


async def test_a_batch_of_one_pass_takes_one_turn_of_a_thread(factory, monkeypatch):
    async with scripted(factory, batch_size=4) as model:
        tokens = await model.tokenize(["a", "bb"])
        turns = []
        engine = model._engines.ready
        run, prepare = engine.run, engine.prepare
        monkeypatch.setattr(engine, "run", lambda work: turns.append("run") or run(work))
        monkeypatch.setattr(engine, "prepare", lambda work: turns.append("no") or prepare(work))
        await model.embed_tokens(tokens)
    assert turns == ["run"]


async def test_tokens_go_through_the_same_layers_as_texts(factory):
    async with scripted(factory) as model:
        tokens = await model.tokenize(["a", "bad"])
        factory.opened[0].poison = "bad"
        batch = await model.embed_tokens(tokens)
        assert list(batch.failures) == [1]
        assert isinstance(batch.failures[1], InferenceError)

        def broken():
            raise RuntimeError("on fire")

        factory.opened[0].before_forward = broken
        for _ in range(8):
            await asyncio.gather(model.embed_tokens(tokens), return_exceptions=True)
        assert model.get_info()["circuit_breaker"]["state"] == "open"


async def test_token_ids_are_taken_as_they_are(anywhere):
    async with scripted(anywhere) as model:
        batch = model.read_tokens([[5, 127, 0], np.array([7])])
        assert rows(batch) == [[5, 127, 0], [7]]
        assert batch.truncated.tolist() == [False, False]
        vectors = (await model.embed_tokens(batch)).vectors
        assert vectors.tolist() == [[132, 3], [7, 1]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "no token ids"),
        ([128], "not below 128"),
        ([-1], "not below 128"),
        ([2**70], "no list"),
        ([2**63], "not below"),
        ([1.0], "no list"),
        (["a"], "no list"),
        ([True], "no list"),
        ([[1, 2]], "no list"),
        ([[1], [1, 2]], "no list"),
        ([None], "no list"),
    ],
)
async def test_what_is_no_token_id_is_refused_by_its_place(anywhere, row, message):
    async with scripted(anywhere) as model:
        with pytest.raises(InvalidTokensError, match=f"text 1 .*{message}") as caught:
            model.read_tokens([[1], row])
    assert caught.value.index == 1
    assert isinstance(caught.value, InvalidTextError)


async def test_too_many_tokens_lose_the_end_that_texts_would(anywhere):
    long = list(range(10))
    sides = {None: [*range(2, 10)], Truncation.START: [*range(2, 10)], Truncation.END: [*range(8)]}
    anywhere.spec = dataclasses.replace(anywhere.spec, truncation_side="left")
    async with scripted(anywhere) as model:
        for truncation, kept in sides.items():
            batch = model.read_tokens([[1], long], truncation=truncation)
            assert rows(batch) == [[1], kept]
            assert batch.truncated.tolist() == [False, True]
        with pytest.raises(TextTooLongError, match="text 1 has 10 tokens"):
            model.read_tokens([[1], long], truncation=Truncation.NONE)


@pytest.mark.parametrize("ids", [[[500]], [[-1]], [[1], []], [[1] * 9]])
async def test_tokens_that_are_not_the_models_never_reach_it(anywhere, ids):
    async with scripted(anywhere) as model:
        with pytest.raises(InvalidTokensError):
            await model.embed_tokens(TokenBatch.of(ids))
        assert anywhere.opened[0].batches == []
        assert model.get_info()["circuit_breaker"]["state"] == "closed"


async def test_a_bad_text_leaves_the_tokens_of_others_alone(factory, monkeypatch):
    good = factory.backend.tokenize

    def tokenize(backend, texts, options):
        for index, text in enumerate(texts):
            if text == "bad":
                raise InvalidTextError(f"text {index} is bad", index)
        return good(backend, texts, options)

    monkeypatch.setattr(factory.backend, "tokenize", tokenize)
    async with scripted(factory) as model:
        first, bad, last = await model.tokenize_each(["a", "bad", "ccc"])
        assert rows(first) == [[97]]
        assert isinstance(bad, InvalidTextError)
        assert rows(last) == [[99, 99, 99]]


async def test_tokenizing_keeps_off_the_event_loop(factory, monkeypatch):
    threads = set()
    good = factory.backend.tokenize

    def tokenize(backend, texts, options):
        threads.add(threading.current_thread())
        return good(backend, texts, options)

    monkeypatch.setattr(factory.backend, "tokenize", tokenize)
    async with scripted(factory) as model:
        await model.tokenize(["a"])
        await model.tokenize_each(["a"])
        await model.count_tokens("a")
    assert threading.current_thread() not in threads


def test_a_batch_is_what_its_texts_are_joined():
    batch = TokenBatch.of([[1, 2], [3], [4, 5, 6]], [False, True, False], 1)
    again = TokenBatch.joined(batch.split())
    for ours, theirs in ((batch.ids, again.ids), (batch.offsets, again.offsets)):
        assert ours.tolist() == theirs.tolist()
        assert ours.dtype == theirs.dtype
    assert again.truncated.tolist() == [False, True, False]
    assert again.prompt_tokens == 1
    assert TokenBatch.of([]).split() == []
