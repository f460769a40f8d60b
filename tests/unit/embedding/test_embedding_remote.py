import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any, Self

import httpx
import numpy as np
import pytest
from embedding_fakes import vector_of

from services.embedding import (
    Embedded,
    EmbeddingSettings,
    InvalidReplyError,
    RemoteBackend,
    RemoteBusyError,
    TextRejectedError,
)
from shared.infrastructure.http import UpstreamError
from shared.infrastructure.resilience import ConfigurationError
from shared.infrastructure.testing import FakeClock

Handler = Callable[[list[str]], httpx.Response]


def item(index: int, text: str, *, as_base64: bool = True) -> dict[str, Any]:
    vector = vector_of(text)
    value = base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist()
    return {"object": "embedding", "index": index, "embedding": value}


def good(texts: list[str]) -> httpx.Response:
    data = [item(index, text) for index, text in enumerate(texts)]
    return httpx.Response(200, json={"data": data, "usage": {"total_tokens": 10}})


class Remote:
    """A remote backend and the scripted server it talks to."""

    def __init__(self, **settings: Any) -> None:
        self.handler: Handler = good
        self.requests: list[httpx.Request] = []
        self.clock = FakeClock()
        config = EmbeddingSettings(
            remote_url="http://embedder/v1", model_name="m", remote_api_key="secret", **settings
        )
        self.backend = RemoteBackend(
            config, transport=httpx.MockTransport(self._answer), clock=self.clock
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.handler(json.loads(request.content)["input"])

    async def __aenter__(self) -> Self:
        await self.backend.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.backend.stop()

    async def ask(self, *texts: str) -> list[Any]:
        """Ask while time passes, so that retries and the rate limiter take none of ours."""
        call = asyncio.ensure_future(self.backend.embed_batch(texts))
        while not call.done():
            await self.clock.advance(1.0)
        return list(await call)


async def test_it_asks_for_base64_with_its_key_and_learns_the_dimension() -> None:
    async with Remote() as remote:
        (outcome,) = await remote.ask("a")
        assert isinstance(outcome, Embedded)
        assert np.array_equal(outcome.vector, vector_of("a"))
        assert remote.backend.dimension == 8
    sent = remote.requests[-1]
    assert str(sent.url) == "http://embedder/v1/embeddings"
    assert sent.headers["authorization"] == "Bearer secret"
    assert json.loads(sent.content) == {"model": "m", "input": ["a"], "encoding_format": "base64"}


async def test_vectors_go_to_their_texts_by_index_in_either_format() -> None:
    texts = ["a", "b", "c"]

    def shuffled(asked: list[str]) -> httpx.Response:
        data = [item(index, asked[index], as_base64=index == 1) for index in (2, 0, 1)]
        return httpx.Response(200, json={"data": data})

    async with Remote() as remote:
        remote.handler = shuffled
        outcomes = await remote.ask(*texts)
    for text, outcome in zip(texts, outcomes, strict=True):
        assert np.array_equal(outcome.vector, vector_of(text))


async def test_tokens_are_shared_out_by_length_unless_the_server_counts_each_text() -> None:
    async with Remote() as remote:
        outcomes = await remote.ask("a", "bbbbbbb")
        assert [outcome.token_count for outcome in outcomes] == [2, 8]

        def counted(texts: list[str]) -> httpx.Response:
            more = {"token_count": 7, "truncated": True}
            data = [item(index, text) | more for index, text in enumerate(texts)]
            return httpx.Response(200, json={"data": data})

        remote.handler = counted
        (outcome,) = await remote.ask("a")
        assert (outcome.token_count, outcome.truncated) == (7, True)


def _vector(value: Any) -> httpx.Response:
    return httpx.Response(200, json={"data": [{"index": 0, "embedding": value}]})


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(200, html="<p>hello"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"data": []}),
        httpx.Response(200, json={"data": [item(1, "a")]}),
        httpx.Response(200, json={"data": [item(0, "a"), item(0, "b")]}),
        httpx.Response(200, json={"data": [{"index": 0}]}),
        _vector([1.0] * 7),
        _vector([1.0] * 7 + [None]),
        _vector("not base64!"),
        _vector(base64.b64encode(np.full(8, np.nan, "<f4").tobytes()).decode()),
        _vector([[1.0] * 8]),
    ],
)
async def test_what_is_no_embedding_of_the_text_is_an_error(reply: httpx.Response) -> None:
    async with Remote() as remote:
        remote.handler = lambda _: reply
        (outcome,) = await remote.ask("a")
    assert isinstance(outcome, InvalidReplyError)


async def test_a_text_the_server_rejects_fails_alone() -> None:
    def picky(texts: list[str]) -> httpx.Response:
        return httpx.Response(400, text="too long") if "bad" in texts else good(texts)

    async with Remote() as remote:
        remote.handler = picky
        outcomes = await remote.ask("a", "bad", "b", "c")
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [Embedded, TextRejectedError, Embedded, Embedded]


@pytest.mark.parametrize(
    ("status", "error", "requests"),
    [(401, ConfigurationError, 1), (429, RemoteBusyError, 4), (503, UpstreamError, 4)],
)
async def test_a_failing_server_is_asked_again_where_that_can_help(
    status: int, error: type[Exception], requests: int
) -> None:
    async with Remote() as remote:
        headers = {"retry-after": "3"}
        remote.handler = lambda _: httpx.Response(status, text="no", headers=headers)
        before = len(remote.requests)
        outcomes = await remote.ask("a", "b")
        assert [type(outcome) for outcome in outcomes] == [error] * 2
        assert len(remote.requests) - before == requests
        assert outcomes[0].retry_after == (3.0 if status == 429 else None)


async def test_a_server_that_does_not_know_the_model_fails_the_start() -> None:
    remote = Remote()
    remote.handler = lambda _: httpx.Response(400, text="no such model")
    with pytest.raises(ConfigurationError, match="no such model"):
        await remote.backend.start()
    remote.handler = good
    await remote.backend.start()
    await remote.backend.stop()
    await remote.backend.start()
    await remote.backend.stop()


async def test_requests_keep_to_the_contracts_rate() -> None:
    async with Remote() as remote:
        began = remote.clock.now()
        for number in range(20):
            await remote.ask(str(number))
        assert remote.clock.now() - began >= (20 - 10) / 5
        assert remote.backend.snapshot()["rate_limiter"]["granted"] == 21
    assert "secret" not in repr(remote.backend) + repr(vars(remote.backend))
