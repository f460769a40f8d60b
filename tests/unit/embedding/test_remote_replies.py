import asyncio
import base64
from typing import Any

import httpx
import numpy as np
import pytest
from embedding_fakes import DIMENSION, vector_of
from remote_server import Body, Remote, as_base64, entry, failing, good, same

from services.embedding import (
    InvalidReplyError,
    NotOfferedError,
    RemoteBackend,
    RemoteBusyError,
    TextRejectedError,
)
from services.embedding.options import Reading
from shared.infrastructure.http import UpstreamError
from shared.infrastructure.local_embeddings import Truncation
from shared.infrastructure.resilience import ConfigurationError

ONES = [1.0] * DIMENSION


def answering(**document: Any) -> httpx.Response:
    return httpx.Response(200, json=document)


def with_vector(value: Any) -> httpx.Response:
    return answering(data=[{"index": 0, "embedding": value}], model="m-1")


async def test_it_asks_for_base64_with_its_key_and_learns_the_dimension() -> None:
    async with Remote() as remote:
        assert same(await remote.ask("a"), ["a"])
        assert remote.backend.facts.dimension == DIMENSION
    sent = remote.requests[-1]
    assert str(sent.url) == "http://embedder/v1/embeddings"
    assert sent.headers["authorization"] == "Bearer secret"
    assert remote.bodies[-1] == {"model": "m", "input": ["a"], "encoding_format": "base64"}
    assert "secret" not in repr(remote.backend) + repr(vars(remote.backend))


async def test_vectors_go_to_their_texts_by_index_in_either_format() -> None:
    def shuffled(body: Body) -> httpx.Response:
        texts = body["input"]
        order = [2, 0, 1][: len(texts)]
        return answering(data=[entry(at, texts[at], plain=at == 1) for at in order], model="m-1")

    async with Remote() as remote:
        remote.handler = shuffled
        assert same(await remote.ask("a", "b", "c"), ["a", "b", "c"])


async def test_tokens_are_shared_out_by_length_unless_the_server_counts_each_text() -> None:
    async with Remote() as remote:
        outcomes = await remote.ask("a", "bbbbbbb")
        assert [outcome.token_count for outcome in outcomes] == [2, 8]

        def counted(body: Body) -> httpx.Response:
            told = {"token_count": 7, "truncated": True}
            return answering(data=[entry(0, "a") | told], model="m-1")

        remote.handler = counted
        (outcome,) = await remote.ask("a")
        assert (outcome.token_count, outcome.truncated) == (7, True)


@pytest.mark.parametrize(
    "usage",
    [None, 7, [], {}, *({"total_tokens": told} for told in (None, "9", -5, 3e9, [], {"a": 1}))],
    ids=str,
)
async def test_vectors_count_though_what_is_told_of_their_tokens_makes_no_sense(usage: Any) -> None:
    async with Remote() as remote:
        remote.handler = lambda _: answering(data=[entry(0, "a")], model="m-1", usage=usage)
        (outcome,) = await remote.ask("a")
    assert same([outcome], ["a"])
    assert outcome.token_count == 0


async def test_a_fraction_of_a_token_is_none() -> None:
    async with Remote() as remote:
        remote.handler = lambda _: answering(
            data=[entry(0, "a")], model="m-1", usage={"total_tokens": 3.5}
        )
        (outcome,) = await remote.ask("a")
    assert outcome.token_count == 3


@pytest.mark.parametrize("told", ["-5", "many", "", "9999999999"])
async def test_a_tei_header_that_makes_no_sense_costs_no_vector(told: str) -> None:
    def tei(_: Body) -> httpx.Response:
        return httpx.Response(200, json=[ONES], headers={"x-compute-tokens": told})

    async with Remote(tei, remote_api="tei") as remote:
        (outcome,) = await remote.ask("a")
    assert outcome.token_count == 0


async def test_a_vector_that_is_kept_keeps_no_other() -> None:
    async with Remote() as remote:
        first, _ = await remote.ask("a", "b")
    assert first.vector.base is None


NOT_FINITE = base64.b64encode(np.full(DIMENSION, np.nan, "<f4").tobytes()).decode()
CUT = base64.b64encode(bytes(4 * DIMENSION - 1)).decode()


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(httpx.Response(200, html="<p>hello"), id="HTML"),
        pytest.param(httpx.Response(200, content=b'{"data": [{"index": 0, "embe'), id="cut JSON"),
        pytest.param(httpx.Response(200, content=b'{"data": ' + b"[" * 9_000), id="deep JSON"),
        pytest.param(httpx.Response(200, json=[]), id="a list"),
        pytest.param(answering(data=[]), id="no vectors"),
        pytest.param(answering(data=[entry(1, "a")]), id="wrong index"),
        pytest.param(answering(data=[entry(0, "a"), entry(0, "b")]), id="duplicate index"),
        pytest.param(answering(data=[entry(0, "a"), entry(1, "b")]), id="too many"),
        pytest.param(answering(data=[{"embedding": ONES}]), id="no index"),
        pytest.param(answering(data=[{"index": None, "embedding": ONES}]), id="null index"),
        pytest.param(answering(data=[{"index": "0", "embedding": ONES}]), id="index in words"),
        pytest.param(answering(data=[{"index": 0}]), id="no vector"),
        pytest.param(with_vector(None), id="null vector"),
        pytest.param(with_vector([]), id="empty vector"),
        pytest.param(with_vector(""), id="empty base64"),
        pytest.param(with_vector(ONES[1:]), id="too short"),
        pytest.param(with_vector([*ONES[1:], None]), id="null number"),
        pytest.param(with_vector([*ONES[1:], 1e300]), id="number out of range"),
        pytest.param(with_vector("not base64!"), id="no base64"),
        pytest.param(with_vector(NOT_FINITE), id="NaN"),
        pytest.param(with_vector(CUT), id="cut number"),
        pytest.param(with_vector([ONES]), id="nested vector"),
        pytest.param(answering(data=[entry(0, "a") | {"token_count": -7}]), id="negative count"),
        pytest.param(answering(data=[entry(0, "a") | {"token_count": 2**31}]), id="vast count"),
    ],
)
async def test_what_is_no_embedding_of_the_text_is_an_error(reply: httpx.Response) -> None:
    async with Remote() as remote:
        remote.handler = lambda _: reply
        (outcome,) = await remote.ask("a")
    assert isinstance(outcome, InvalidReplyError)
    assert len(str(outcome)) < 500


async def test_vectors_of_different_lengths_in_one_reply_are_an_error() -> None:
    def ragged(body: Body) -> httpx.Response:
        long = {"index": 1, "embedding": [*ONES, *ONES]}
        return answering(data=[entry(0, "a", plain=True), long], model="m-1")

    async with Remote() as remote:
        remote.handler = ragged
        outcomes = await remote.ask("a", "b")
    assert [type(outcome) for outcome in outcomes] == [InvalidReplyError] * 2


async def test_a_passing_nonsense_is_asked_again() -> None:
    async with Remote() as remote:
        replies = iter([httpx.Response(200, html="<p>starting up")])
        remote.handler = lambda body: next(replies, None) or good(body)
        assert same(await remote.ask("a"), ["a"])


@pytest.mark.parametrize(
    ("status", "error", "requests"),
    [
        (400, TextRejectedError, 1),
        (401, ConfigurationError, 1),
        (404, ConfigurationError, 1),
        (408, UpstreamError, 4),
        (413, TextRejectedError, 1),
        (422, TextRejectedError, 1),
        (424, UpstreamError, 4),
        (429, RemoteBusyError, 4),
        (500, UpstreamError, 4),
        (503, UpstreamError, 4),
    ],
)
async def test_a_failing_server_is_asked_again_where_that_can_help(
    status: int, error: type[Exception], requests: int
) -> None:
    async with Remote() as remote:
        remote.handler = failing(status, **{"retry-after": "3"})
        before, began = len(remote.requests), remote.clock.now()
        (outcome,) = await remote.ask("a")
        assert isinstance(outcome, error)
        assert len(remote.requests) - before == requests
        if status in {429, 503}:
            assert outcome.retry_after == 3.0
            assert remote.clock.now() - began >= 9.0


async def test_a_server_that_rejects_base64_is_asked_for_floats_from_then_on() -> None:
    def hater(body: Body) -> httpx.Response:
        return httpx.Response(400, text="bad") if "encoding_format" in body else good(body)

    async with Remote(hater) as remote:
        assert same(await remote.ask("a"), ["a"])
        assert ["encoding_format" in body for body in remote.bodies] == [True, False, False]
        await remote.backend.stop()
        await remote.backend.start()
        assert "encoding_format" not in remote.bodies[-1]
        assert remote.backend.facts.details["encoding"] == "float"


async def test_a_server_that_spoils_base64_is_asked_for_floats_from_then_on() -> None:
    def spoiler(body: Body) -> httpx.Response:
        return with_vector(None) if "encoding_format" in body else good(body)

    async with Remote(spoiler) as remote:
        assert same(await remote.ask("a"), ["a"])


async def test_a_server_that_objects_to_base64_later_is_asked_for_floats_from_then_on() -> None:
    def hater(body: Body) -> httpx.Response:
        objection = httpx.Response(422, text="unknown field: encoding_format")
        return objection if "encoding_format" in body else good(body)

    async with Remote() as remote:
        remote.handler = hater
        assert same(await remote.ask("a", "b"), ["a", "b"])
        assert same(await remote.ask("c"), ["c"])
    assert ["encoding_format" in body for body in remote.bodies] == [True, True, False, False]


async def test_requests_that_find_out_about_base64_together_all_succeed() -> None:
    waiting, together = 0, asyncio.Event()

    async def hater(body: Body) -> httpx.Response:
        nonlocal waiting
        if "encoding_format" not in body:
            return good(body)
        waiting += 1
        if waiting == 2:
            together.set()
        await together.wait()
        return httpx.Response(422, text="unknown field: encoding_format")

    async with Remote(remote_hedging=0.0) as remote:
        remote.handler = hater
        both = await remote.passing(
            asyncio.gather(*(_embedded_by(remote.backend, text) for text in "ab"))
        )
    assert same(both, ["a", "b"])


async def _embedded_by(backend: RemoteBackend, text: str) -> Any:
    prepared: Any = await backend.prepare([text], Reading())
    (outcome,) = await backend.embed(prepared)
    return outcome


async def test_a_server_that_does_not_know_the_model_fails_the_start_and_may_start_later() -> None:
    remote = Remote(failing(400, "no such model"))
    with pytest.raises(ConfigurationError, match="no such model"):
        await remote.backend.start()
    remote.handler = good
    await remote.backend.start()
    assert remote.backend.facts.details["encoding"] == "base64"
    await remote.backend.stop()


async def test_a_tei_server_is_asked_for_vectors_as_the_model_made_them() -> None:
    def tei(body: Body) -> httpx.Response:
        vectors = [vector_of(text).tolist() for text in body["inputs"]]
        return httpx.Response(200, json=vectors, headers={"x-compute-tokens": "9"})

    reading = Reading(truncation=Truncation.START)
    async with Remote(tei, remote_api="tei", remote_url="http://tei") as remote:
        outcomes = await remote.ask("a", "b", reading=reading)
        assert same(outcomes, ["a", "b"])
        assert sum(outcome.token_count for outcome in outcomes) == 9
        assert remote.backend.facts.max_rows == 32
        remote.handler = lambda _: httpx.Response(200, json=[ONES])
        assert isinstance((await remote.ask("a", "b"))[0], InvalidReplyError)
    assert str(remote.requests[0].url) == "http://tei/embed"
    assert remote.bodies[1] == {
        "inputs": ["a", "b"],
        "normalize": False,
        "truncate": True,
        "truncation_direction": "Left",
    }


@pytest.mark.parametrize("knows_base64", [True, False])
async def test_a_cohere_server_is_told_what_the_texts_are(knows_base64: bool) -> None:
    def cohere(body: Body) -> httpx.Response:
        (kind,) = body["embedding_types"]
        if kind == "base64":
            if not knows_base64:
                return httpx.Response(400, text="invalid type")
            vectors: list[Any] = [as_base64(text) for text in body["texts"]]
        else:
            vectors = [vector_of(text).tolist() for text in body["texts"]]
        billed = {"billed_units": {"input_tokens": 6}}
        return answering(id="1", embeddings={kind: vectors}, meta=billed)

    async with Remote(cohere, remote_api="cohere", remote_url="http://cohere") as remote:
        facts = remote.backend.facts
        query = Reading(prompt=facts.prompts["query"])
        outcomes = await remote.ask("a", "b", reading=query)
        assert same(outcomes, ["a", "b"])
        assert [outcome.token_count for outcome in outcomes] == [3, 3]
        assert (facts.max_rows, facts.default_prompt) == (96, "search_document")
        (refused,) = remote.backend.prepare_now(["a"], Reading(prompt="Find: "))
        assert isinstance(refused, NotOfferedError)
    assert [body["input_type"] for body in (remote.bodies[0], remote.bodies[-1])] == [
        "search_document",
        "search_query",
    ]
    assert str(remote.requests[0].url) == "http://cohere/v2/embed"
