import asyncio

import httpx
import numpy as np
import pytest
from embedding_fakes import DIMENSION, vector_of
from remote_server import Body, Remote, entry, failing, good

from services.embedding import NotOfferedError, ServiceStoppedError, TextRejectedError
from services.embedding.backends.remote.packing import estimated_each, estimated_tokens, packed
from services.embedding.errors import ModelChangedError
from services.embedding.options import Reading
from shared.infrastructure.http import UpstreamError
from shared.infrastructure.local_embeddings import InvalidTextError
from shared.infrastructure.resilience import CircuitOpenError, ConfigurationError

TEXTS = [f"text {number}" for number in range(100)]
VECTORS = np.stack([vector_of(text) for text in TEXTS])


@pytest.mark.parametrize(
    ("tokens", "max_items", "max_tokens", "runs"),
    [
        ([], 4, 10, []),
        ([1, 1, 1], 2, 10, [range(2), range(2, 3)]),
        ([5, 5, 1], 9, 10, [range(2), range(2, 3)]),
        ([5, 99, 5], 9, 10, [range(1), range(1, 2), range(2, 3)]),
        ([99], 9, 10, [range(1)]),
        ([10, 10], 9, 10, [range(1), range(1, 2)]),
    ],
)
def test_requests_hold_what_fits(
    tokens: list[int], max_items: int, max_tokens: int, runs: list[range]
) -> None:
    assert list(packed(np.array(tokens, np.int64), max_items, max_tokens)) == runs


@pytest.mark.parametrize("texts", [[], ["", "a", "a" * 33], ["", "é", "漢字" * 9, "a" * 33]])
def test_many_texts_are_estimated_as_one_is(texts: list[str]) -> None:
    assert estimated_each(texts).tolist() == [estimated_tokens(text) for text in texts]


async def test_a_corpus_comes_back_in_its_order() -> None:
    async with Remote(remote_max_items=8) as remote:
        seen: list[int] = []
        corpus = await remote.corpus(TEXTS, progress=seen.append)
    assert np.array_equal(corpus.vectors, VECTORS)
    assert not corpus.failures
    assert corpus.tokens == 10 * 13  # what the server says of each request
    assert (len(remote.batches), max(seen)) == (13, 100)


async def test_an_empty_corpus_asks_nobody() -> None:
    async with Remote() as remote:
        corpus = await remote.corpus([])
        assert corpus.vectors.shape == (0, DIMENSION)
        assert not remote.batches


async def test_requests_are_packed_by_tokens() -> None:
    async with Remote(remote_max_tokens=30) as remote:
        corpus = await remote.corpus(TEXTS)
    assert np.array_equal(corpus.vectors, VECTORS)
    assert max(sum(map(estimated_tokens, batch)) for batch in remote.batches) in {28, 29, 30}


async def test_requests_go_at_the_same_time_as_far_as_there_are_connections() -> None:
    async with Remote(remote_max_items=1, max_connections=4) as remote:

        async def slow(body: Body) -> httpx.Response:
            await remote.clock.sleep(1.0)
            return good(body)

        remote.handler = slow
        corpus = await remote.corpus(TEXTS)
    assert np.array_equal(corpus.vectors, VECTORS)
    assert remote.most_at_once == 4


async def test_a_prompt_goes_before_each_text() -> None:
    async with Remote() as remote:
        corpus = await remote.corpus(["a"], reading=Reading(prompt="query: "))
        assert np.array_equal(corpus.vectors[0], vector_of("query: a"))


async def test_what_fails_is_told_by_its_place_and_the_rest_is_there() -> None:
    bad = {3, 50, 51, 99}
    texts = [f"bad {at}" if at in bad else text for at, text in enumerate(TEXTS)]
    texts[7] = "half a pair: \ud800"

    def picky(body: Body) -> httpx.Response:
        is_bad = any(text.startswith("bad") for text in body["input"])
        return httpx.Response(422, text="bad") if is_bad else good(body)

    async with Remote(picky, remote_max_items=16) as remote:
        corpus = await remote.corpus(texts)
    assert list(corpus.failures) == sorted([*bad, 7])
    assert isinstance(corpus.failures[7], InvalidTextError)
    assert isinstance(corpus.failures[50], TextRejectedError)
    failed = list(corpus.failures)
    assert np.isnan(corpus.vectors[failed]).all()
    rest = [at for at in range(100) if at not in corpus.failures]
    assert np.array_equal(corpus.vectors[rest], VECTORS[rest])


async def test_a_request_that_fails_for_good_costs_its_own_texts_only() -> None:
    def down_for_some(body: Body) -> httpx.Response:
        return httpx.Response(503) if "text 40" in body["input"] else good(body)

    async with Remote(down_for_some, remote_max_items=10) as remote:
        corpus = await remote.corpus(TEXTS)
    assert list(corpus.failures) == list(range(40, 50))
    assert {type(error) for error in corpus.failures.values()} == {UpstreamError}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (failing(401, "no such key"), ConfigurationError),
        (
            lambda _: httpx.Response(200, json={"data": [entry(0, "a")], "model": "m-2"}),
            ModelChangedError,
        ),
    ],
)
async def test_what_no_request_would_survive_is_found_out_once(
    answer: httpx.Response, error: type[Exception]
) -> None:
    async with Remote(remote_max_items=1, max_connections=2) as remote:
        remote.handler = answer
        corpus = await remote.corpus(TEXTS)
    assert len(corpus.failures) == 100
    assert {type(failure) for failure in corpus.failures.values()} == {error}
    assert len(remote.batches) <= 2


async def test_a_corpus_waits_for_a_server_that_comes_back() -> None:
    async with Remote(remote_max_items=10, failure_threshold=3, request_timeout=600) as remote:
        down_until = remote.clock.now() + 90.0

        def down(body: Body) -> httpx.Response:
            return failing(500)(body) if remote.clock.now() < down_until else good(body)

        remote.handler = down
        corpus = await remote.corpus(TEXTS)
    lost = set(corpus.failures)
    assert {type(error) for error in corpus.failures.values()} <= {UpstreamError}
    # Those that found out are lost; those that came to an open breaker waited.
    assert len(lost) <= 50
    there = [at for at in range(100) if at not in lost]
    assert np.array_equal(corpus.vectors[there], VECTORS[there])


async def test_of_a_request_in_parts_only_what_the_breaker_refused_is_sent_again() -> None:
    def small(body: Body) -> httpx.Response:
        texts = body["input"]
        if len(texts) > 2:
            return httpx.Response(413, text="too large")
        return httpx.Response(500) if texts == TEXTS[2:4] else good(body)

    async with Remote(small, failure_threshold=3, request_timeout=600) as remote:
        corpus = await remote.corpus(TEXTS[:8])
    # Those that found out are lost.
    assert list(corpus.failures) == [2, 3]
    there = [0, 1, 4, 5, 6, 7]
    assert np.array_equal(corpus.vectors[there], VECTORS[there])
    assert corpus.tokens == 3 * 10
    answered = [batch for batch in remote.batches if len(batch) <= 2 and batch != TEXTS[2:4]]
    assert answered == [TEXTS[0:2], TEXTS[4:6], TEXTS[6:8]]


async def test_a_corpus_does_not_wait_for_ever() -> None:
    async with Remote(remote_max_items=10, failure_threshold=3, request_timeout=100) as remote:
        remote.handler = failing(500)
        began = remote.clock.now()
        corpus = await remote.corpus(TEXTS)
        assert remote.clock.now() - began < 200
    assert len(corpus.failures) == 100
    assert CircuitOpenError in {type(error) for error in corpus.failures.values()}


async def test_a_cancelled_corpus_leaves_no_request_behind() -> None:
    async with Remote(remote_max_items=10, max_connections=4) as remote:
        ended = 0

        async def stuck(_body: Body) -> httpx.Response:
            nonlocal ended
            try:
                await asyncio.Event().wait()
            finally:
                ended += 1
            raise AssertionError

        remote.handler = stuck
        call = asyncio.ensure_future(remote.backend.embed_corpus(TEXTS))
        await remote.clock.advance(0.1)
        begun = len(remote.batches)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await remote.clock.advance(0.1)
        assert 0 < begun == ended
        assert remote.backend.snapshot()["bulkhead"]["in_flight"] == 0


async def test_a_corpus_needs_a_started_backend_and_a_reading_the_server_knows() -> None:
    with pytest.raises(ServiceStoppedError):
        await Remote().backend.embed_corpus(["a"])
    with pytest.raises(NotOfferedError):
        await Remote(remote_api="cohere").backend.embed_corpus(["a"], Reading(prompt="Find: "))
