import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from services.llm import LLMServiceSettings, ProductionLLMService
from shared.infrastructure.balancing import (
    InvalidResponseError,
    LLMHost,
    NotRunningError,
    StreamInterruptedError,
    UpstreamStatusError,
)
from shared.infrastructure.resilience import DeadlineExceededError, RateLimitExceededError
from shared.infrastructure.testing import FakeClock
from shared.models import LLMRequest
from tests.scripted_host import ScriptedHost, Step, answer, chat, chat_stream, completion

ASK = LLMRequest(prompt="Say hello.")
HOSTS = [LLMHost("a", "http://a"), LLMHost("b", "http://b")]


def service(reply: Callable[[httpx.Request], httpx.Response], **fields: Any) -> Any:
    clock = fields.pop("clock", FakeClock())
    settings = LLMServiceSettings(**{"hosts": HOSTS, "max_retries": 0, **fields})
    return ProductionLLMService(settings, clock=clock, transport=httpx.MockTransport(reply))


def vectors(*rows: tuple[int, list[Any]]) -> httpx.Response:
    data = [{"index": index, "embedding": row} for index, row in rows]
    return httpx.Response(200, json={"data": data, "usage": {"total_tokens": 4}})


async def test_an_answer_says_what_it_cost_and_who_gave_it() -> None:
    async with ScriptedHost(chat("Hello", finish_reason="length")) as host:
        settings = LLMServiceSettings(hosts=[LLMHost("only", host.url)], model="m")
        async with ProductionLLMService(settings) as llm:
            reply = await llm.generate(ASK)
            await llm.generate(LLMRequest(prompt="x", model="other", max_tokens=3))
            metrics = llm.get_metrics()
        assert [request.payload["model"] for request in host.requests] == ["m", "other"]
    assert (reply.text, reply.model, reply.finish_reason) == ("Hello", "scripted", "length")
    assert (reply.host, reply.attempts, reply.message["role"]) == ("only", 1, "assistant")
    assert metrics["generation_count"] == 2
    assert metrics["total_tokens_used"] == 16
    assert metrics["requests_per_second"] > 0.0


async def test_a_stream_is_counted_when_it_is_whole() -> None:
    steps: list[Step] = [chat_stream("Hello"), chat_stream("Hello", "fin", after=1)]
    async with ScriptedHost(*steps) as host:
        settings = LLMServiceSettings(hosts=[LLMHost("only", host.url)])
        async with ProductionLLMService(settings) as llm:
            text = "".join([chunk.text async for chunk in llm.stream(ASK)])
            assert host.requests[0].payload["stream_options"] == {"include_usage": True}
            with pytest.raises(StreamInterruptedError):
                _ = [chunk async for chunk in llm.stream(ASK)]
            async with aclosing(llm.stream(ASK)) as chunks:
                await anext(chunks)
            metrics = llm.get_metrics()
    assert text == "Hello"
    assert (metrics["generation_count"], metrics["total_tokens_used"]) == (1, 8)
    assert (metrics["request_count"], metrics["error_count"]) == (2, 1)
    assert (metrics["cancelled_count"], metrics["in_flight"]) == (1, 0)


async def test_vectors_come_in_the_order_of_the_texts() -> None:
    bodies: list[Any] = []

    def reply(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return vectors((1, [3, 4.5]), (0, [1, 2]))

    async with service(reply, embedding_model="e", model="m") as llm:
        assert await llm.embed(["one", "two"]) == [[1.0, 2.0], [3.0, 4.5]]
        assert await llm.embed([]) == []
        metrics = llm.get_metrics()
    assert bodies == [{"input": ["one", "two"], "model": "e"}]
    assert (metrics["embedding_count"], metrics["total_tokens_used"]) == (2, 4)


BAD_VECTORS = {
    "too few": vectors((0, [1.0])),
    "an index twice": vectors((0, [1.0]), (0, [2.0])),
    "an index that is none": httpx.Response(200, json={"data": [{"index": []}, {"index": {}}]}),
    "of different length": vectors((0, [1.0]), (1, [1.0, 2.0])),
    "empty": vectors((0, []), (1, [])),
    "not numbers": vectors((0, [{}]), (1, [{}])),
    "missing": httpx.Response(200, json={"data": [{"index": 0}, {"index": 1}]}),
    "not finite": httpx.Response(
        200,
        content=b'{"data":[{"index":0,"embedding":[NaN]},{"index":1,"embedding":[1e999]}]}',
    ),
}


@pytest.mark.parametrize("reply", BAD_VECTORS.values(), ids=BAD_VECTORS.keys())
async def test_vectors_that_are_none_are_a_typed_error(reply: httpx.Response) -> None:
    async with service(lambda _: reply) as llm:
        with pytest.raises(InvalidResponseError):
            await llm.embed(["one", "two"])
        assert llm.get_metrics()["embedding_count"] == 0
        assert llm.get_metrics()["error_rate"] == 1.0


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {"content": 7}}]},
        {"choices": []},
    ],
)
async def test_an_answer_of_the_wrong_shape_is_a_typed_error(body: Any) -> None:
    async with service(lambda _: httpx.Response(200, json=body)) as llm:
        with pytest.raises(InvalidResponseError):
            await llm.generate(ASK)


async def test_a_count_of_tokens_that_is_none_costs_no_answer() -> None:
    body = {"choices": [{"message": {"content": "x"}}], "usage": {"total_tokens": "many"}}
    async with service(lambda _: httpx.Response(200, json=body)) as llm:
        assert (await llm.generate(ASK)).text == "x"
        assert llm.get_metrics()["total_tokens_used"] == 0


async def test_an_error_status_is_a_typed_error_with_what_the_host_said() -> None:
    async with service(lambda _: httpx.Response(404, json={"error": "no such model"})) as llm:
        for call in (llm.generate(ASK), llm.embed("x"), anext(llm.stream(ASK))):
            with pytest.raises(UpstreamStatusError, match="no such model") as caught:
                await call
            assert caught.value.status == 404
            assert caught.value.host in {"a", "b"}


async def test_calls_outside_start_and_stop_are_refused() -> None:
    llm = service(lambda _: httpx.Response(500))
    with pytest.raises(NotRunningError, match=r"call start\(\) first"):
        await llm.generate(ASK)
    assert (await llm.health_check())["status"] == "unknown"
    await llm.start()
    await llm.start()
    await llm.stop()
    await llm.stop()
    with pytest.raises(NotRunningError):
        await anext(llm.stream(ASK))
    with pytest.raises(NotRunningError, match="make a new one"):
        await llm.start()
    assert llm.get_metrics()["request_count"] == 0


async def test_the_rate_is_that_of_the_service_whatever_the_hosts() -> None:
    clock = FakeClock()
    answers = [httpx.Response(200, json={"choices": [{"message": {"content": "x"}}]})] * 100
    async with service(
        lambda _: answers.pop(), clock=clock, requests_per_second=10.0, burst_size=3
    ) as llm:
        calls = [asyncio.create_task(llm.generate(ASK)) for _ in range(6)]
        await clock.advance(0.0)
        assert sum(call.done() for call in calls) == 3
        await clock.advance(0.1)
        assert sum(call.done() for call in calls) == 4
        calls[4].cancel()
        await clock.advance(0.1)
        assert [call.done() for call in calls] == [True] * 6
        assert llm.get_metrics()["cancelled_count"] == 1
        assert (await llm.health_check())["rate_limiter"]["granted"] == 5


@pytest.mark.parametrize(
    ("down", "status", "circuit"),
    [("", "healthy", "closed"), ("a", "degraded", "closed"), ("ab", "unhealthy", "open")],
)
async def test_health_is_that_of_the_hosts(down: str, status: str, circuit: str) -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503 if request.url.host in down else 200, json=completion("x"))

    async with service(reply, failure_threshold=1) as llm:
        for _ in range(2):
            await asyncio.gather(llm.generate(ASK), return_exceptions=True)
        for _ in range(3):
            health = await llm.health_check()
    assert health["status"] == status
    assert health["circuit_breaker"]["state"] == circuit
    assert health["metrics"]["hosts"].keys() == {"a", "b"}


async def test_health_can_be_asked_for_when_every_host_is_out() -> None:
    async with service(lambda _: httpx.Response(200)) as llm:
        for name in "ab":
            llm.client.disable_host(name)
        health = await llm.health_check()
    assert health["status"] == "unhealthy"
    assert health["circuit_breaker"]["state"] == "forced_open"


async def test_the_wait_for_the_rate_is_part_of_the_time_for_a_call() -> None:
    clock = FakeClock()

    async def slow(_: httpx.Request) -> httpx.Response:
        await clock.sleep(100.0)
        return httpx.Response(200)

    limits: dict[str, Any] = {"requests_per_second": 0.5, "burst_size": 1, "total_timeout": 3.0}
    async with service(slow, clock=clock, **limits) as llm:  # type: ignore[arg-type]
        calls = [
            asyncio.create_task(call)
            for call in (llm.embed("x"), llm.generate(ASK), llm.generate(ASK))
        ]
        await clock.advance(0.0)
        assert isinstance(calls[2].exception(), RateLimitExceededError)
        await clock.advance(2.9)
        assert not calls[1].done()
        # A second is left of the three after the wait of two.
        await clock.advance(0.2)
        assert [isinstance(call.exception(), DeadlineExceededError) for call in calls[:2]] == [
            True,
            True,
        ]


async def test_the_wait_of_a_stream_is_part_of_its_time() -> None:
    clock = FakeClock()

    async def slow(_: httpx.Request) -> httpx.Response:
        await clock.sleep(100.0)
        return httpx.Response(200)

    limits: dict[str, Any] = {"requests_per_second": 0.5, "burst_size": 1, "total_timeout": 3.0}
    async with service(slow, clock=clock, **limits) as llm:  # type: ignore[arg-type]
        calls = [asyncio.create_task(anext(llm.stream(ASK))) for _ in range(2)]
        await clock.advance(3.1)
        errors = [call.exception() for call in calls]
    assert [isinstance(error, DeadlineExceededError) for error in errors] == [True, True]


async def test_a_fault_of_one_host_is_none_of_the_service() -> None:
    async with (
        ScriptedHost(answer(b"<html>")) as broken,
        ScriptedHost(chat("Hello")) as good,
    ):
        hosts = [LLMHost("broken", broken.url), LLMHost("good", good.url)]
        async with ProductionLLMService(LLMServiceSettings(hosts=hosts)) as llm:
            reply = await llm.generate(ASK)
            metrics = llm.get_metrics()
    assert (reply.text, reply.host, reply.attempts) == ("Hello", "good", 2)
    assert (metrics["error_rate"], metrics["failover_count"]) == (0.0, 1)
