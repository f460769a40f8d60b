import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from embedding_fakes import DIMENSION, FakeBackend, turns, unit, vector_of
from prometheus_client.parser import text_string_to_metric_families

from services.embedding import EmbeddingSettings, ProductionEmbeddingService
from services.embedding.app import EmbeddingApp
from shared.infrastructure.http import ReadTimeoutError
from shared.infrastructure.local_embeddings import InferenceError
from shared.infrastructure.resilience import CircuitOpenError, DeadlineExceededError


class Process:
    """The application over a fake model, and a client of it."""

    def __init__(self, **settings: Any) -> None:
        self.model = FakeBackend()
        self.service = ProductionEmbeddingService(EmbeddingSettings(**settings), backend=self.model)
        self.app = EmbeddingApp(self.service)
        transport = httpx.ASGITransport(self.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://embedder")

    async def post(
        self, content: Any, path: str = "/v1/embeddings", **kwargs: Any
    ) -> httpx.Response:
        if isinstance(content, bytes):
            return await self.client.post(path, content=content, **kwargs)
        return await self.client.post(path, json=content, **kwargs)

    async def metrics(self) -> dict[str, float]:
        text = (await self.client.get("/metrics")).text
        return {
            ",".join([sample.name, *sorted(sample.labels.values())]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@asynccontextmanager
async def process(**settings: Any) -> AsyncIterator[Process]:
    running = Process(**settings)
    async with running.service, running.client:
        yield running


async def test_an_answer_has_openais_shape_with_the_vectors_in_order() -> None:
    async with process() as running:
        await running.post({"input": "b"})
        reply = await running.post({"input": ["a b", "b"], "model": "model", "user": "me"})
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert body["object"] == "list"
    assert body["model"] == "model"
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7, "cached_tokens": 3}
    for index, text in enumerate(["a b", "b"]):
        item = body["data"][index]
        assert (item["object"], item["index"], item["truncated"]) == ("embedding", index, False)
        assert item["token_count"] == len(text.split()) + 2
        assert np.allclose(item["embedding"], unit(vector_of(text)), atol=1e-6)


async def test_base64_is_the_same_vector_as_little_endian_float32() -> None:
    async with process() as running:
        plain = (await running.post({"input": "a"})).json()["data"][0]["embedding"]
        reply = await running.post({"input": "a", "encoding_format": "base64"})
    raw = base64.b64decode(reply.json()["data"][0]["embedding"])
    assert np.array_equal(np.frombuffer(raw, "<f4"), np.asarray(plain, np.float32))


async def test_dimensions_shorten_the_vectors_of_both_protocols() -> None:
    async with process() as running:
        openai = await running.post({"input": "a", "dimensions": 3})
        tei = await running.post({"inputs": ["a"], "dimensions": 3}, "/embed")
    expected = unit(vector_of("a")[:3])
    assert np.allclose(openai.json()["data"][0]["embedding"], expected, atol=1e-6)
    assert np.allclose(tei.json(), [expected], atol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b'{"input": NaN}', 400, None),
        (b"[]", 400, None),
        ({}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": 7}, 400, "input"),
        ({"input": [1, 2]}, 400, "input"),
        ({"input": [[1, 2]]}, 400, "input"),
        ({"input": ["a", None]}, 400, "input[1]"),
        ({"input": ["a"] * 2049}, 400, "input"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": "a", "encoding_format": {"a": 1}}, 400, "encoding_format"),
        ({"input": "a", "dimensions": "8"}, 400, "dimensions"),
        ({"input": "a", "dimensions": True}, 400, "dimensions"),
        ({"input": "a", "dimensions": DIMENSION + 1}, 422, "dimensions"),
        ({"input": "a", "dimensions": 0}, 422, "dimensions"),
        ({"input": "a", "model": 7}, 400, "model"),
        ({"input": "a", "model": "gpt"}, 404, "model"),
        ({"input": "bad"}, 422, "input"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(
    body: Any, status: int, param: str | None
) -> None:
    async with process() as running:
        running.model.poison = {"bad"}
        reply = await running.post(body)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (CircuitOpenError("secret", retry_after=2.2), 503, "circuit_open"),
        (ReadTimeoutError("host 10.0.0.1"), 502, "read_timeout"),
        (DeadlineExceededError("secret"), 504, "deadline_exceeded"),
        (InferenceError("/secret/path"), 500, "inference_failed"),
        (RuntimeError("/secret/path"), 500, "internal_error"),
    ],
)
async def test_a_failure_has_its_status_and_shows_nothing_of_our_insides(
    error: Exception, status: int, code: str
) -> None:
    async with process() as running:
        running.model.error = error
        reply = await running.post({"input": "a"})
        tei = await running.post({"inputs": "a"}, "/embed")
    assert reply.status_code == tei.status_code == status
    assert reply.json()["error"]["code"] == tei.json()["error_type"] == code
    assert str(error) not in reply.text + tei.text
    if status == 503:
        assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("3", "2200")


async def test_an_overloaded_process_says_when_to_come_back() -> None:
    async with process(max_queue=1) as running:
        running.model.open.clear()
        calls: list[asyncio.Task[httpx.Response]] = []
        for text in ("runs", "waits"):
            calls.append(asyncio.create_task(running.post({"input": text})))
            await turns(60)
        refused = await running.post({"input": "c"})
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        running.model.open.set()
        assert [(await call).status_code for call in calls] == [200, 200]


async def test_keys_are_asked_for_where_there_are_any() -> None:
    async with process(api_keys="old, new") as running:
        for header in ({}, {"authorization": "Bearer nope"}, {"authorization": "Basic new"}):
            reply = await running.post({"input": "a"}, headers=header)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.json()["error"]["code"] == "invalid_api_key"
        for key in ("old", "new"):
            headers = {"authorization": f"Bearer {key}"}
            assert (await running.post({"input": "a"}, headers=headers)).status_code == 200
        assert (await running.client.get("/v1/models")).status_code == 401
        for path in ("/health", "/health/live", "/health/ready", "/metrics"):
            assert (await running.client.get(path)).status_code == 200


async def test_a_body_over_the_limit_is_refused_before_it_is_all_there() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100

    async with process(max_body_bytes=1000) as running:
        declared = await running.post(b"x" * 1001)
        streamed = await running.client.post("/v1/embeddings", content=endless())
        assert (await running.post({"input": "a" * 900})).status_code == 200
    for reply in (declared, streamed):
        assert reply.status_code == 413
        assert reply.json()["error"]["code"] == "body_too_large"
        assert reply.headers["connection"] == "close"


async def test_unknown_paths_and_methods_are_told_so_and_share_a_label() -> None:
    async with process() as running:
        assert (await running.client.get("/nothing/here")).status_code == 404
        wrong = await running.client.get("/v1/embeddings")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        metrics = await running.metrics()
    assert metrics["emb_requests_total,404,other"] == 1
    assert metrics["emb_requests_total,/v1/embeddings,405"] == 1


async def test_metrics_tell_where_vectors_came_from() -> None:
    async with process() as running:
        await running.post({"input": ["a", "a", "b"]})
        await running.post({"input": ["a", "c"]})
        metrics = await running.metrics()
    assert metrics["emb_items_total,computed"] == 3
    assert metrics["emb_items_total,cached"] == 1
    assert metrics["emb_items_total,inflight"] == 1
    assert metrics["emb_tokens_total,cached"] == 3
    assert metrics["emb_batch_rows_bucket,1.0"] == 1
    assert metrics["emb_batch_rows_bucket,2.0"] == metrics["emb_batch_rows_count"] == 2
    assert metrics["emb_batch_rows_sum"] == metrics["emb_cache_entries"] == 3
    assert metrics["emb_request_seconds_count,/v1/embeddings"] == 2


async def test_models_lists_every_name_a_client_may_use() -> None:
    async with process(model_aliases="text-embedding-3-small") as running:
        listed = (await running.client.get("/v1/models")).json()
        names = [entry["id"] for entry in listed["data"]]
        assert names == ["fake/model", "text-embedding-3-small"]
        for name in names:
            assert (await running.post({"input": "a", "model": name})).json()["model"] == name


async def test_readiness_follows_the_model_and_liveness_does_not() -> None:
    running = Process()
    running.model.open.clear()

    async def state() -> tuple[int, int, str]:
        live = await running.client.get("/health/live")
        ready = await running.client.get("/health/ready")
        return live.status_code, ready.status_code, ready.json()["status"]

    messages: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    sent: list[str] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await messages.put({"type": "lifespan.startup"})
    lifespan = asyncio.create_task(running.app({"type": "lifespan"}, messages.get, send))
    await turns()
    assert sent == ["lifespan.startup.complete"]
    assert await state() == (200, 503, "loading")
    early = await running.post({"input": "a"})
    assert (early.status_code, early.headers["retry-after"]) == (503, "1")
    running.model.open.set()
    await turns()
    assert await state() == (200, 200, "ready")
    running.model.is_healthy = False
    assert await state() == (200, 503, "unhealthy")
    running.model.is_healthy = True
    running.app.draining = True
    assert await state() == (200, 503, "draining")
    served = await running.post({"input": "a"})
    assert (served.status_code, served.headers["connection"]) == (200, "close")
    await messages.put({"type": "lifespan.shutdown"})
    await lifespan
    assert sent[-1] == "lifespan.shutdown.complete"
    assert running.model.stops == 1


async def test_a_model_that_cannot_be_loaded_is_reported() -> None:
    model = FakeBackend()
    model.start_error = RuntimeError("no model")
    failures: list[Exception] = []
    service = ProductionEmbeddingService(EmbeddingSettings(), backend=model)
    app = EmbeddingApp(service, on_failure=failures.append)
    messages: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def send(_message: Any) -> None:
        await asyncio.sleep(0)

    for kind in ("lifespan.startup", "lifespan.shutdown"):
        await messages.put({"type": kind})
    await app({"type": "lifespan"}, messages.get, send)
    assert failures == [model.start_error]


async def test_the_texts_of_a_client_who_hung_up_never_reach_the_model() -> None:
    async with process() as running:
        running.model.open.clear()
        held = asyncio.create_task(running.post({"input": "held"}))
        await turns(60)
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        await messages.put({"type": "http.request", "body": b'{"input": "gone"}'})
        scope = {"type": "http", "path": "/v1/embeddings", "method": "POST", "headers": []}
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        gone = asyncio.create_task(running.app(scope, messages.get, send))
        await turns()
        assert running.service.get_metrics()["queue_length"] == 1
        await messages.put({"type": "http.disconnect"})
        await gone
        running.model.open.set()
        assert (await held).status_code == 200
        assert sent == []
        assert running.model.texts == ["held"]
        assert (await running.metrics())["emb_requests_total,/v1/embeddings,499"] == 1
