"""A remote backend and the scripted server it talks to, on a clock that moves only when told to."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

import httpx
import numpy as np
from embedding_fakes import vector_of

from services.embedding import EmbeddingSettings, RemoteBackend
from services.embedding.backends.protocol import CANARY
from services.embedding.options import Item, Reading
from shared.infrastructure.testing import FakeClock

Body = dict[str, Any]
Handler = Callable[[Body], httpx.Response | Awaitable[httpx.Response]]

AS_IT_IS = Reading()


def as_base64(text: str) -> str:
    return base64.b64encode(vector_of(text).astype("<f4").tobytes()).decode()


def entry(index: int, text: str, *, plain: bool = False) -> Body:
    value = vector_of(text).tolist() if plain else as_base64(text)
    return {"object": "embedding", "index": index, "embedding": value}


def good(body: Body) -> httpx.Response:
    """Answer as an OpenAI-compatible server does that knows base64."""
    plain = body.get("encoding_format") != "base64"
    data = [entry(index, str(text), plain=plain) for index, text in enumerate(body["input"])]
    return httpx.Response(200, json={"data": data, "model": "m-1", "usage": {"total_tokens": 10}})


def failing(status: int, text: str = "no", **headers: str) -> Handler:
    return lambda _: httpx.Response(status, text=text, headers=headers)


class Remote:
    """The two of them; `async with` starts the backend.

    Attributes:
        handler: Answers a request by its body.
        requests: What the server was sent, oldest first.
        most_at_once: Requests that were under way at the same time, at most.
    """

    def __init__(
        self, handler: Handler = good, *, vector_space: str | None = None, **settings: Any
    ) -> None:
        self.handler = handler
        self.requests: list[httpx.Request] = []
        self.most_at_once = self._now = 0
        self.clock = FakeClock()
        fields: dict[str, Any] = {
            "remote_url": "http://embedder/v1",
            "model_name": "m",
            "remote_api_key": "secret",
            "requests_per_second": 1e6,
            "burst_size": 10_000,
        }
        self.backend = RemoteBackend(
            EmbeddingSettings(**{**fields, **settings}),
            vector_space=vector_space,
            transport=httpx.MockTransport(self._answer),
            clock=self.clock,
        )

    @property
    def bodies(self) -> list[Body]:
        return [json.loads(request.content) for request in self.requests]

    @property
    def batches(self) -> list[list[str]]:
        """What was embedded, without the canary."""
        asked = [body.get("input") or body.get("inputs") or body["texts"] for body in self.bodies]
        return [texts for texts in asked if texts != [CANARY]]

    async def __aenter__(self) -> Self:
        await self.passing(self.backend.start())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.backend.stop()

    async def passing(self, call: Awaitable[Any]) -> Any:
        """Wait for a call while time passes, so that retries take none of ours."""
        task = asyncio.ensure_future(call)
        while not task.done():
            await self.clock.advance(0.5)
        return await task

    async def ask(self, *items: Item, reading: Reading = AS_IT_IS) -> list[Any]:
        prepared: Sequence[Any] = await self.backend.prepare(items, reading)
        return list(await self.passing(self.backend.embed(prepared)))

    async def corpus(self, texts: Sequence[str], **options: Any) -> Any:
        return await self.passing(self.backend.embed_corpus(texts, **options))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            answer = self.handler(json.loads(request.content))
            return answer if isinstance(answer, httpx.Response) else await answer
        finally:
            self._now -= 1


def same(outcomes: Sequence[Any], texts: Sequence[str]) -> bool:
    """Whether each outcome is the vector of its text."""
    return len(outcomes) == len(texts) and all(
        np.array_equal(outcome.vector, vector_of(text))
        for outcome, text in zip(outcomes, texts, strict=True)
    )
