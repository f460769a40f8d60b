"""Three real llama-servers: balanced, killed in the middle of answers, and left early."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import httpx

from examples.demo.processes import LlamaHost
from shared.infrastructure import DistributedLLMClient, LLMHost, LoadBalancingStrategy, RetryConfig
from shared.models import LLMChunk

CHAT = "/v1/chat/completions"
QUICK = RetryConfig(base_delay=0.05)


def ask(question: str, tokens: int) -> dict[str, object]:
    return {
        "model": LlamaHost.model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0,
        "seed": 1,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,  # so that every answer has all its tokens
    }


def pool_over(hosts: list[LlamaHost], **options: object) -> DistributedLLMClient:
    configs = [LLMHost(host.name, host.url) for host in hosts]
    return DistributedLLMClient(configs, retry_config=QUICK, **options)  # type: ignore[arg-type]


def text_of(chunks: list[LLMChunk]) -> str:
    last_start = max((n for n, chunk in enumerate(chunks) if chunk.restarted), default=0)
    return "".join(chunk.text for chunk in chunks[last_start:])


async def test_three_hosts_share_the_work_and_answer_alike(llama_hosts: list[LlamaHost]) -> None:
    async with pool_over(llama_hosts) as pool:
        answers = await asyncio.gather(
            *(pool.post(CHAT, json=ask("Name a colour.", 8)) for _ in range(12))
        )
        counts = [host["request_count"] for host in pool.get_metrics()["hosts"].values()]
        assert {health["status"] for health in (await pool.health_check_all()).values()} == {
            "healthy"
        }
    assert counts == [4, 4, 4]
    assert all(answer.json()["usage"]["completion_tokens"] == 8 for answer in answers)


async def test_a_host_killed_in_mid_stream_does_not_cost_the_answer(
    fresh_llama_hosts: Callable[[int], list[LlamaHost]],
) -> None:
    hosts = fresh_llama_hosts(2)
    by_name = {host.name: host for host in hosts}
    async with pool_over(hosts) as pool:
        chunks: list[LLMChunk] = []
        stream = pool.stream_chat(ask("Tell me a story.", 48), recovery="restart")
        async for chunk in stream:
            chunks.append(chunk)
            if len(chunks) == 5:
                assert chunk.host is not None
                by_name[chunk.host].kill()
        restarted = next(chunk for chunk in chunks if chunk.restarted)
        assert restarted.discarded > 0
        assert text_of(chunks).strip()
        assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["length"]
        usage = chunks[-1].usage
        assert usage is not None
        assert usage.completion_tokens == 48
        assert chunks[-1].host != chunks[0].host
        dead = pool.get_metrics()["hosts"][chunks[0].host]
        assert dead["error_count"] >= 1
        assert dead["in_flight"] == 0


async def test_12_streams_at_once_outlive_a_kill(
    fresh_llama_hosts: Callable[[int], list[LlamaHost]],
) -> None:
    hosts = fresh_llama_hosts(3)
    first_words = asyncio.Event()
    async with pool_over(hosts, strategy=LoadBalancingStrategy.LEAST_LOADED) as pool:

        async def answer(number: int) -> list[LLMChunk]:
            chunks: list[LLMChunk] = []
            question = ask(f"Count to {number}.", 24)
            async for chunk in pool.stream_chat(question, recovery="restart"):
                chunks.append(chunk)
                if chunk.host == hosts[0].name and len(chunks) == 3:
                    first_words.set()
            return chunks

        answers = [asyncio.create_task(answer(number)) for number in range(12)]
        await first_words.wait()
        hosts[0].kill()
        done = await asyncio.gather(*answers)
        assert all(chunks[-1].usage and text_of(chunks) for chunks in done)
        assert {chunk.usage.completion_tokens for chunk in map(last, done) if chunk.usage} == {24}
        metrics = pool.get_metrics()
        assert metrics["totals"]["failover_count"] > 0
        assert {host["in_flight"] for host in metrics["hosts"].values()} == {0}


def last(chunks: list[LLMChunk]) -> LLMChunk:
    return chunks[-1]


async def test_streams_left_early_in_any_way_are_over_at_the_hosts_too(
    llama_hosts: list[LlamaHost],
) -> None:
    async with pool_over(llama_hosts) as pool:

        async def closed() -> None:
            async with aclosing(pool.stream_chat(ask("Tell me a long story.", 1000))) as chunks:
                await anext(chunks)

        async def abandoned() -> None:
            async for _ in pool.stream_chat(ask("Tell me another one.", 1000)):
                return

        async def cancelled() -> None:
            async for _ in pool.stream_chat(ask("And one more.", 1000)):
                asyncio.current_task().cancel()  # type: ignore[union-attr]

        leaving = (closed(), abandoned(), cancelled())
        done = await asyncio.gather(*leaving, return_exceptions=True)
        assert [type(outcome) for outcome in done] == [
            type(None),
            type(None),
            asyncio.CancelledError,
        ]
        await until_idle(llama_hosts)
        metrics = pool.get_metrics()
    assert {host["in_flight"] for host in metrics["hosts"].values()} == {0}
    assert {host["error_count"] for host in metrics["hosts"].values()} == {0}
    assert metrics["totals"]["in_flight"] == 0


async def until_idle(hosts: list[LlamaHost]) -> None:
    async with httpx.AsyncClient() as client:
        for host in hosts:
            idle = "llamacpp:requests_processing 0\n"
            while idle not in (await client.get(f"{host.url}/metrics")).text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
