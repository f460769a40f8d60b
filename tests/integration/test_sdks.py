"""Unmodified SDKs over our transport, on real sockets: retries, streams, and a doubled retry."""

import json
import warnings
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from shared.infrastructure.http import IdempotencyKeyLayer, ResilientTransport, WireTransport
from shared.infrastructure.http import httpx2 as second
from shared.infrastructure.resilience import (
    CallStats,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerLayer,
    CircuitOpenError,
    ObserveLayer,
    RetryConfig,
    RetryLayer,
)
from tests.raw_server import Peer, RawServer, raw_server

FAST = RetryConfig(base_delay=0.0)
WORDS = ("Hel", "lo ", "you")


def answer(status: int, body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunked(*events: bytes) -> list[bytes]:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    return [head, *(b"%x\r\n%b\r\n" % (len(event), event) for event in events), b"0\r\n\r\n"]


def openai_body() -> bytes:
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "hi"},
    }
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    ).encode()


def openai_events() -> list[bytes]:
    def event(delta: dict[str, str], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        return f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode()

    return [
        *(event({"content": word}, None) for word in WORDS),
        event({}, "stop"),
        b"data: [DONE]\n\n",
    ]


def anthropic_body() -> bytes:
    return json.dumps(
        {
            "id": "1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [{"type": "text", "text": "hi"}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
    ).encode()


class Service:
    """Plays answers in turn, each a list of pieces; the last one for ever."""

    def __init__(self, *answers: list[bytes]) -> None:
        self._answers = answers
        self.heads: list[bytes] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            head = await peer.request()
            length = next(
                (
                    int(line[15:])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                ),
                0,
            )
            await peer.body(length)
            pieces = self._answers[min(len(self.heads), len(self._answers) - 1)]
            self.heads.append(head)
            await peer.send(*pieces)


def layered(stats: CallStats, *layers: Any) -> Any:
    transport = second.ResilientTransport(second.WireTransport(), ObserveLayer(stats), *layers)
    return httpx2.AsyncClient(transport=transport)


def openai_client(server: RawServer, http: Any, **options: Any) -> openai.AsyncOpenAI:
    options.setdefault("max_retries", 0)
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", http_client=http, **options)


MESSAGES: Any = [{"role": "user", "content": "hi"}]


async def test_openai_gets_its_answer_at_the_second_attempt() -> None:
    service = Service([answer(503, b"{}")], [answer(200, openai_body())])
    stats = CallStats()
    layers = IdempotencyKeyLayer(), RetryLayer(FAST)
    async with raw_server(service) as server, layered(stats, *layers) as http:
        client = openai_client(server, http)
        done = await client.chat.completions.create(model="m", messages=MESSAGES)
    assert done.choices[0].message.content == "hi"
    assert len(service.heads) == 2
    assert stats.ok == 1


async def test_openai_streams_and_may_read_past_the_end() -> None:
    service = Service(chunked(*openai_events()))
    stats = CallStats()
    async with raw_server(service) as server, layered(stats, RetryLayer(FAST)) as http:
        client = openai_client(server, http)
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        words = [chunk.choices[0].delta.content async for chunk in stream]
    assert [word for word in words if word] == list(WORDS)
    assert (stats.ok, stats.errors, stats.in_flight) == (1, 0, 0)


async def test_anthropic_gets_its_answer() -> None:
    service = Service([answer(200, anthropic_body())])
    stats = CallStats()
    async with raw_server(service) as server, layered(stats, RetryLayer(FAST)) as http:
        client = anthropic.AsyncAnthropic(
            base_url=server.url, api_key="k", http_client=http, max_retries=0
        )
        message = await client.messages.create(model="m", max_tokens=8, messages=MESSAGES)
    assert message.content[0].type == "text"
    assert stats.ok == 1


async def test_a_refusal_reaches_the_caller_of_an_sdk_without_a_retry() -> None:
    service = Service([answer(500, b"{}")])
    breaker = CircuitBreaker("llm", CircuitBreakerConfig(failure_threshold=1))
    stats = CallStats()
    async with (
        raw_server(service) as server,
        layered(stats, CircuitBreakerLayer(breaker)) as http,
    ):
        client = openai_client(server, http)
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="m", messages=MESSAGES)
        with pytest.raises((CircuitOpenError, openai.APIConnectionError)) as caught:
            await client.chat.completions.create(model="m", messages=MESSAGES)
    assert isinstance(caught.value.__cause__ or caught.value, CircuitOpenError)
    assert len(service.heads) == 1


async def test_an_sdk_that_retries_on_top_of_ours_is_pointed_out_once() -> None:
    service = Service([answer(500, b"{}")])
    stats = CallStats()
    async with raw_server(service) as server, layered(stats, RetryLayer(FAST)) as http:
        client = openai_client(server, http, max_retries=2)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="m", messages=MESSAGES)
    assert ["max_retries=0" in str(warning.message) for warning in told] == [True]


async def test_a_plain_client_of_httpx_streams_through_it() -> None:
    service = Service(chunked(b"one", b"two"))
    stats = CallStats()
    transport = ResilientTransport(WireTransport(), ObserveLayer(stats))
    async with (
        raw_server(service) as server,
        httpx.AsyncClient(transport=transport) as http,
        http.stream("GET", f"{server.url}/x") as response,
    ):
        assert await response.aread() == b"onetwo"
    assert stats.ok == 1
