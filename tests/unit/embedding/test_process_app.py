import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
from process_client import POST, Process, process, told

from services.embedding import (
    ProductionEmbeddingService,
    QueueFullError,
)
from services.embedding.process import EmbeddingApp
from services.embedding.process.embedding import ranges
from shared.infrastructure.server.messages import Request


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_keys_are_asked_for_where_there_are_any() -> None:
    async with process(api_keys="old, new") as running:
        for header in ({}, {"authorization": "Bearer nope"}, {"authorization": "Basic new"}):
            for path, body in POST.items():
                reply = await running.post(body, path, headers=header)
                assert reply.status_code == 401
                assert reply.headers["www-authenticate"] == "Bearer"
                assert told(path, reply)["message"]
            assert (await running.get("/v1/models", headers=header)).status_code == 401
        for key in ("old", "new"):
            header = {"authorization": f"bearer {key}"}
            assert (await running.post({"input": "a"}, headers=header)).status_code == 200
        for path in ("/health", "/health/live", "/ping", "/metrics", "/openapi.json"):
            assert (await running.get(path)).status_code == 200
        tenants = {options.tenant for _, options in running.service.calls}
    assert len(tenants) == 2


async def test_a_body_over_the_limit_is_refused_whether_it_says_so_or_not() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    async with process(max_body_bytes=1000) as running:
        declared = await running.post({"input": "a" * 2000})
        streamed = await running.client.post("/v1/embeddings", content=endless())
        assert (await running.post({"input": "a" * 900})).status_code == 200
    for reply in (declared, streamed):
        assert reply.status_code == 413
        assert reply.json()["error"]["code"] == "body_too_large"
        assert reply.headers["connection"] == "close"


async def test_a_body_that_does_not_come_is_given_up() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    async with process(body_timeout=0.05) as running:
        reply = await running.client.post("/v1/embeddings", content=slow())
    assert (reply.status_code, reply.json()["error"]["code"]) == (408, "too_slow")


async def test_an_encoded_body_is_refused() -> None:
    async with process() as running:
        reply = await running.post(b"\x1f\x8b", headers={"content-encoding": "gzip"})
        assert (
            await running.post({"input": "a"}, headers={"content-encoding": "identity"})
        ).is_success
    assert (reply.status_code, reply.headers["accept-encoding"]) == (415, "identity")


async def test_unknown_paths_and_methods_are_told_so_and_share_a_label() -> None:
    async with process() as running:
        for number in range(3):
            assert (await running.get(f"/nothing/{number}")).status_code == 404
        for method in ("GET", "HEAD", "OPTIONS", "DELETE", "BREW"):
            wrong = await running.request(method, "/v1/embeddings")
            assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        metrics = await running.metrics()
    assert metrics["emb_requests_total,404,other"] == 3
    assert metrics["emb_requests_total,/v1/embeddings,405"] == 5


async def test_metrics_show_the_process_the_scheduler_and_every_tier() -> None:
    async with process() as running:
        for _ in range(2):
            await running.post({"input": "cached"})
        running.service.error = QueueFullError("full")
        await running.post({"input": "b"})
        metrics = await running.metrics()
    assert metrics["emb_requests_total,/v1/embeddings,200"] == 2
    assert metrics["emb_rejected_total,overloaded"] == 1
    assert metrics["emb_request_seconds_count,/v1/embeddings"] == 3
    assert metrics["emb_items_total,computed"] == 2
    assert metrics["emb_tokens_total,padded"] == 12
    assert metrics["emb_queue_tokens,bulk"] == 8
    assert metrics["emb_queue_wait_seconds_sum,interactive"] == 0.25
    assert metrics["emb_batch_rows_sum"] == 3
    assert metrics["emb_batch_waste_ratio"] == 1.2
    assert metrics["emb_cache_hits_total,disk"] == 5
    assert metrics["emb_cache_bytes,memory"] == 64


async def test_a_tier_is_labelled_and_the_lag_of_the_loop_is_measured() -> None:
    async with process() as running:
        await running.app.start()
        async with asyncio.timeout(5):
            while not (await running.metrics())["emb_event_loop_lag_seconds_count"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await running.app.stop()


async def test_an_answer_is_made_once_if_all_of_it_came_out_of_the_cache() -> None:
    async with process() as running:
        body = {"input": ["cached", "cached"]}
        first = await running.post(body)
        again = [await recalled(running, body), await recalled(running, body)]
        metrics = await running.metrics()
        for other in ({"input": "new"}, {**body, "cache": "refresh"}):
            await running.post(other)
            assert await recalled(running, other) is None
    assert again == [first.content, first.content]
    assert metrics["emb_items_total,reply"] == 4
    assert metrics["emb_cache_entries,reply"] == 1


async def test_a_large_request_leaves_nothing_to_answer_others_with() -> None:
    async with process() as running:
        spaces = b" " * 600_000
        assert (await running.post(b'{"input": "cached"' + spaces + b"}")).status_code == 200
        request = Request("POST", "/v1/embeddings", {b"accept": b"*/*"})
        assert running.app.recall(request) is None


async def test_no_answer_is_kept_where_vectors_age_or_the_service_has_stopped() -> None:
    body = {"input": "cached"}
    async with process(cache_ttl=60) as running:
        await running.post(body)
        assert await recalled(running, body) is None
    async with process() as running:
        await running.post(body)
        await running.service.stop()
        assert await recalled(running, body) is None


async def recalled(running: Process, body: Any) -> bytes | None:
    """Return the answer that the process has ready for a body."""
    request = Request("POST", "/v1/embeddings", {b"accept": b"*/*"})
    assert running.app.refuse(request) is None
    request.body = httpx.Request("POST", "http://a", json=body).content
    reply = running.app.recall(request)
    return reply and reply.body


async def test_readiness_follows_the_model_and_liveness_does_not() -> None:
    running = Process()
    running.service.is_started = running.service.is_ready = False
    running.service.open.clear()

    async def state() -> tuple[int, int, int, str]:
        replies = [await running.get(f"/health/{part}") for part in ("live", "startup", "ready")]
        statuses = [reply.status_code for reply in replies]
        return statuses[0], statuses[1], statuses[2], replies[2].json()["status"]

    messages: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    sent: list[str] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await messages.put({"type": "lifespan.startup"})
    lifespan = asyncio.create_task(running.app({"type": "lifespan"}, messages.get, send))
    await turns()
    assert sent == ["lifespan.startup.complete"]
    assert await state() == (200, 503, 503, "loading")
    for path, body in POST.items():
        early = await running.post(body, path)
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
    assert (await running.get("/info")).status_code == 503
    running.service.open.set()
    await turns()
    assert await state() == (200, 200, 200, "ready")
    running.service.is_ready = False
    assert await state() == (200, 200, 503, "unhealthy")
    running.service.is_ready = True
    running.app.draining = True
    assert await state() == (200, 200, 503, "draining")
    served = await running.post({"input": "a"})
    assert (served.status_code, served.headers["connection"]) == (200, "close")
    await messages.put({"type": "lifespan.shutdown"})
    await lifespan
    assert sent[-1] == "lifespan.shutdown.complete"
    assert running.service.stops == 1


async def test_a_model_that_cannot_be_loaded_is_reported() -> None:
    running = Process()
    running.service.start_error = RuntimeError("no model")
    failures: list[Exception] = []
    service = cast("ProductionEmbeddingService", running.service)
    app = EmbeddingApp(service, on_failure=failures.append)
    await app.start()
    await app.stop()
    assert failures == [running.service.start_error]


async def test_what_a_client_who_hung_up_wanted_is_given_up() -> None:
    async with process() as running:
        running.service.open.clear()
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        await messages.put({"type": "http.request", "body": b'{"input": "gone"}'})
        scope = {"type": "http", "path": "/v1/embeddings", "method": "POST", "headers": []}
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        gone = asyncio.create_task(running.app(scope, messages.get, send))
        await turns()
        await messages.put({"type": "http.disconnect"})
        await gone
        assert (sent, running.service.cancelled) == ([], 1)
        assert (await running.metrics())["emb_requests_total,/v1/embeddings,499"] == 1


def test_positions_are_told_as_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
