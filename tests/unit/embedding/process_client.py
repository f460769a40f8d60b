"""The process over a scripted service, and a client that holds it to its OpenAPI document."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
from process_service import ScriptedService
from prometheus_client.parser import text_string_to_metric_families

from services.embedding import EmbeddingSettings, ProductionEmbeddingService
from services.embedding.process import EmbeddingApp

EMBED = {
    "/v1/embeddings": {"input": ["a", "b c"]},
    "/embed": {"inputs": ["a", "b c"]},
    "/v2/embed": {"texts": ["a", "b c"], "input_type": "search_document"},
}
"""A good body for each route that embeds."""

POST = {
    **EMBED,
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["a", "b"]}},
    "/rerank": {"query": "a", "texts": ["b", "cc"]},
    "/tokenize": {"inputs": ["a b"]},
}


class Process:
    """The application and a client of it."""

    def __init__(self, **settings: Any) -> None:
        self.service = ScriptedService(EmbeddingSettings(**settings))
        self.app = EmbeddingApp(cast("ProductionEmbeddingService", self.service))
        transport = httpx.ASGITransport(self.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://embedder")

    async def post(
        self, content: Any, path: str = "/v1/embeddings", **kwargs: Any
    ) -> httpx.Response:
        if isinstance(content, bytes):
            return await self.request("POST", path, content=content, **kwargs)
        return await self.request("POST", path, json=content, **kwargs)

    async def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return await self.request("GET", path, **kwargs)

    async def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        reply = await self.client.request(method, path, **kwargs)
        route = self.app.routes.get(path)
        if route is not None and method == route.method:
            assert reply.status_code in route.statuses, f"{path} may not answer {reply.status_code}"
        return reply

    async def metrics(self) -> dict[str, float]:
        text = (await self.get("/metrics")).text
        return {
            ",".join([sample.name, *sorted(sample.labels.values())]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@asynccontextmanager
async def process(**settings: Any) -> AsyncIterator[Process]:
    running = Process(**settings)
    async with running.client:
        yield running


def told(path: str, reply: httpx.Response) -> dict[str, Any]:
    """Return what an error says, after a look at the shape that its route owes."""
    body: dict[str, Any] = reply.json()
    if path.startswith("/v1/"):
        assert body["error"].keys() == {"message", "type", "param", "code"}
        error: dict[str, Any] = body["error"]
        return error
    if path.startswith("/v2/"):
        assert body.keys() == {"id", "message", "code"}
        return body
    assert body.keys() == {"error", "error_type"}
    return {"message": body["error"], "code": body["error_type"]}
