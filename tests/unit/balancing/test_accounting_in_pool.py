"""What a pool as a whole makes of limits, prices and kept answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from shared.infrastructure.balancing import DistributedLLMClient, LLMHost
from shared.infrastructure.balancing.accounting import AnswerCacheConfig, PriceTable
from shared.infrastructure.balancing.hosts.config import HostLimits
from tests.unit.balancing.accounting_calls import chat_answer, chat_events

Handler = Callable[[httpx.Request], httpx.Response]

ASK: dict[str, Any] = {
    "model": "m",
    "temperature": 0,
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "How are you?"}],
}
PRICES = PriceTable.of({"m": {"input": 1, "output": 1}})


def pool(
    handler: Callable[[httpx.Request], httpx.Response], **options: Any
) -> DistributedLLMClient:
    limits = HostLimits(tokens_per_minute=1000)
    hosts = [LLMHost(name, f"http://{name}", limits=limits) for name in ("a", "b")]
    transport = httpx.MockTransport(handler)
    return DistributedLLMClient(hosts, prices=PRICES, transport=transport, **options)


def available(client: DistributedLLMClient, host: str) -> int:
    limits = client.get_metrics()["hosts"][host]["token_limits"]
    return round(limits["tokens"]["available"])


class Endless(httpx.AsyncByteStream):
    """A stream that says something and then falls silent."""

    def __init__(self) -> None:
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield chat_events("x" * 40, reason=None, usage=False).removesuffix(b"data: [DONE]\n\n")
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.is_closed = True


async def test_a_cancelled_stream_is_billed_and_gives_back_what_it_did_not_use() -> None:
    body = Endless()
    headers = {"content-type": "text/event-stream"}
    async with pool(lambda _: httpx.Response(200, headers=headers, stream=body)) as client:
        stream = client.stream(ASK)

        async def read() -> None:
            async with stream as pieces:
                async for _ in pieces:
                    begun.set()

        begun = asyncio.Event()
        reader = asyncio.ensure_future(read())
        await begun.wait()
        assert min(available(client, "a"), available(client, "b")) == 1000 - 107
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert body.is_closed
        assert min(available(client, "a"), available(client, "b")) == 1000 - 17
        [attempt] = stream.route.attempts
        assert (attempt.usage_estimated, attempt.cost) == (True, PRICES.cost("m", USED))


USED = {"prompt_tokens": 7, "completion_tokens": 10}


async def test_a_host_whose_tokens_are_used_up_is_spared() -> None:
    """Host a says that it has no tokens left: everything goes to b, and nothing is refused."""
    asked = {"a": 0, "b": 0}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200)
        asked[request.url.host] += 1
        headers = {"x-ratelimit-limit-tokens": "100000", "x-ratelimit-remaining-tokens": "90000"}
        if request.url.host == "a":
            headers["x-ratelimit-remaining-tokens"] = "0"
        return httpx.Response(200, json=chat_answer(), headers=headers)

    client = DistributedLLMClient(
        [LLMHost("a", "http://a"), LLMHost("b", "http://b")],
        transport=httpx.MockTransport(answer),
    )
    async with client:
        for _ in range(10):
            await client.chat({**ASK, "max_tokens": 50_000})
    assert asked == {"a": 1, "b": 9}


async def test_a_kept_answer_costs_nothing_and_asks_nobody() -> None:
    asked: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            asked.append(request.content)
        return httpx.Response(200, json=chat_answer())

    async with pool(answer, answer_cache=AnswerCacheConfig()) as client:
        first, again = [await client.chat(ASK) for _ in range(2)]
        raw = await client.post("/v1/chat/completions", json=ASK)
    assert len(asked) == 1
    assert json.loads(asked[0])["model"] == "m"
    assert first.route.cost == PRICES.cost("m", {"prompt_tokens": 7, "completion_tokens": 3})
    assert again.route.cost == 0
    assert again.route.attempts == ()
    assert raw.json() == chat_answer()
