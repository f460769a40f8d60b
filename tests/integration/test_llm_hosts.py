"""Three real llama-servers: balanced, and left early in every way."""

import asyncio
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from examples.demo.processes import LlamaHost
from shared.infrastructure.balancing.distributed_llm import DistributedLLMClient
from shared.infrastructure.balancing.hosts import LLMHost
from shared.infrastructure.resilience import RetryConfig

CHAT = "/v1/chat/completions"
QUICK = RetryConfig(base_delay=0.05)


def ask(question: str, tokens: int) -> dict[str, Any]:
    return {
        "model": LlamaHost.model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0,
        "seed": 1,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,  # so that every answer has all its tokens
    }


def pool_over(hosts: list[LlamaHost], **options: Any) -> DistributedLLMClient:
    configs = [LLMHost(host.name, host.url) for host in hosts]
    return DistributedLLMClient(configs, **{"retry_config": QUICK, **options})


async def test_three_hosts_share_the_work_and_answer_alike(llama_hosts: list[LlamaHost]) -> None:
    async with pool_over(llama_hosts) as pool:
        answers = await asyncio.gather(
            *(pool.post(CHAT, json=ask("Name a colour.", 8)) for _ in range(12))
        )
        counts = [host["request_count"] for host in pool.get_metrics()["hosts"].values()]
        health = await pool.health_check_all()
        assert {state["status"] for state in health.values()} == {"healthy"}
    assert counts == [4, 4, 4]
    assert all(answer.json()["usage"]["completion_tokens"] == 8 for answer in answers)


async def test_a_typed_answer_and_its_stream_are_the_same(llama_hosts: list[LlamaHost]) -> None:
    async with pool_over(llama_hosts) as pool:
        whole = await pool.chat(ask("Name a colour.", 12))
        async with pool.stream(ask("Name a colour.", 12)) as chunks:
            final = await chunks.get_final()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert whole.usage is not None
    assert final.usage is not None
    assert final.usage.completion_tokens == whole.usage.completion_tokens == 12
    assert final.route is not None
    assert final.route.host in {host.name for host in llama_hosts}


async def closed(pool: DistributedLLMClient) -> None:
    async with aclosing(pool.stream(ask("Tell me a long story.", 1000))) as chunks:
        await anext(chunks)


async def abandoned(pool: DistributedLLMClient) -> None:
    async for _ in pool.stream(ask("Tell me another one.", 1000)):
        return


async def cancelled(pool: DistributedLLMClient) -> None:
    async for _ in pool.stream(ask("And one more.", 1000)):
        asyncio.current_task().cancel()  # type: ignore[union-attr]


async def hurried(pool: DistributedLLMClient) -> None:
    async with asyncio.timeout(0.3):
        await pool.chat(ask("Tell me the longest one.", 1000))


async def test_answers_left_early_in_any_way_are_over_at_the_hosts_too(
    llama_hosts: list[LlamaHost],
) -> None:
    async with pool_over(llama_hosts) as pool:
        leaving = (leave(pool) for leave in (closed, abandoned, cancelled, hurried))
        done = await asyncio.gather(*leaving, return_exceptions=True)
        kinds = [type(None), type(None), asyncio.CancelledError, TimeoutError]
        assert [type(outcome) for outcome in done] == kinds
        await until_idle(llama_hosts)
        metrics = pool.get_metrics()
    assert {host["in_flight"] for host in metrics["hosts"].values()} == {0}
    assert {host["error_count"] for host in metrics["hosts"].values()} == {0}
    assert metrics["totals"]["in_flight"] == 0


@pytest.mark.parametrize("recovery", ["error", "buffer"])
async def test_nine_streams_outlive_the_drain_of_their_host(
    llama_hosts: list[LlamaHost], recovery: Any
) -> None:
    first = llama_hosts[0].name
    async with pool_over(llama_hosts) as pool:

        async def answer(number: int) -> str:
            question = ask(f"Count to {number}.", 24)
            async with pool.stream(question, recovery=recovery) as chunks:
                final = await chunks.get_final()
            assert final.usage is not None
            assert final.usage.completion_tokens == 24
            assert final.route is not None
            assert final.route.host is not None
            assert len(final.route.attempts) == 1
            return final.route.host

        live = [asyncio.create_task(answer(number)) for number in range(9)]
        while pool.get_metrics()["hosts"][first]["in_flight"] < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        drain = asyncio.create_task(pool.drain_host(first, 60.0))
        await asyncio.sleep(0)
        late = await asyncio.gather(*(answer(number) for number in range(4)))
        assert first not in late
        assert await drain
        hosts = await asyncio.gather(*live)
        assert hosts.count(first) == 3
        pool.enable_host(first)


async def until_idle(hosts: list[LlamaHost]) -> None:
    async with httpx.AsyncClient() as client:
        for host in hosts:
            idle = "llamacpp:requests_processing 0\n"
            while idle not in (await client.get(f"{host.url}/metrics")).text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
