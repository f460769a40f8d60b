"""Three real llama-servers that are killed, frozen and started again while they answer."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from examples.demo.processes import LlamaHost
from shared.infrastructure.balancing.config import AnswerTimeoutConfig, BalanceConfig
from shared.infrastructure.balancing.distributed_llm import DistributedLLMClient
from shared.infrastructure.balancing.errors import StreamInterruptedError
from shared.infrastructure.balancing.hosts import LLMHost
from shared.infrastructure.resilience import CircuitBreakerConfig, HealthConfig, RetryConfig
from shared.models import StreamRestarted

Fresh = Callable[[int], list[LlamaHost]]
CHAT = "/v1/chat/completions"
# Long enough for a busy machine to begin an answer, short enough to wait for.
FIRST_TOKEN = 8.0
OPTIONS: Any = {
    "retry_config": RetryConfig(base_delay=0.05),
    "answer_timeouts": AnswerTimeoutConfig(first_token=FIRST_TOKEN, idle=FIRST_TOKEN),
    "circuit_breaker_config": CircuitBreakerConfig(timeout=0.5, max_timeout=1.0),
}


def ask(number: int, tokens: int = 24) -> dict[str, Any]:
    return {
        "model": LlamaHost.model,
        "messages": [{"role": "user", "content": f"Count to {number}."}],
        "max_tokens": tokens,
        "temperature": 0,
        "seed": 1,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }


def pool_over(hosts: list[LlamaHost], **options: Any) -> DistributedLLMClient:
    configs = [LLMHost(host.name, host.url) for host in hosts]
    return DistributedLLMClient(configs, **{**OPTIONS, **options})


async def plain(pool: DistributedLLMClient, number: int, tokens: int = 24) -> str:
    """Ask for an answer that is not streamed; return who gave it."""
    answer = await pool.chat(ask(number, tokens))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == tokens
    assert answer.choices[0].message.content
    assert answer.route is not None
    assert answer.route.host is not None
    return answer.route.host


async def streamed(
    pool: DistributedLLMClient, number: int, recovery: Any, begun: Callable[[str | None], None]
) -> bool:
    """Read a stream; return whether it was whole, and be sure that it says so if not."""
    text, broken = "", None
    chunks = pool.stream(ask(number), recovery=recovery)
    try:
        async with chunks:
            async for chunk in chunks:
                if isinstance(chunk, StreamRestarted):
                    assert chunk.discarded_characters == len(text)
                    text = ""
                elif chunk.text:
                    begun(chunks.route.host)
                text += chunk.text
    except StreamInterruptedError as error:
        broken = error
    if broken is not None:
        assert (broken.partial, recovery) == (text, "error")
        return False
    final = await chunks.get_final()
    assert final.choices[0].message.content == text
    assert final.usage is not None
    assert final.usage.completion_tokens == 24
    return True


def freeze(host: LlamaHost) -> None:
    os.kill(host.pid, signal.SIGSTOP)


@pytest.mark.parametrize("recovery", ["error", "restart", "buffer"])
async def test_streams_of_a_host_that_is_killed_are_whole_or_say_that_they_are_not(
    fresh_llama_hosts: Fresh, recovery: Any
) -> None:
    hosts = fresh_llama_hosts(3)
    has_begun = asyncio.Event()

    def begun(host: str | None) -> None:
        if host == hosts[0].name:
            has_begun.set()

    async with pool_over(hosts) as pool:
        streams = [
            asyncio.create_task(streamed(pool, number, recovery, begun)) for number in range(9)
        ]
        plains = [asyncio.create_task(plain(pool, number)) for number in range(6)]
        if recovery == "buffer":  # nothing is heard of it before its end
            while pool.get_metrics()["hosts"][hosts[0].name]["in_flight"] < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        else:
            await has_begun.wait()
        hosts[0].kill()
        whole = await asyncio.gather(*streams)
        assert all(whole) or recovery == "error"
        assert any(whole)
        await asyncio.gather(*plains)
        metrics = pool.get_metrics()
        assert {host["in_flight"] for host in metrics["hosts"].values()} == {0}
        assert set(await asyncio.gather(*(plain(pool, n, 4) for n in range(6)))) <= {
            hosts[1].name,
            hosts[2].name,
        }


async def test_a_frozen_host_costs_no_answer(fresh_llama_hosts: Fresh) -> None:
    hosts = fresh_llama_hosts(3)
    async with pool_over(hosts) as pool:
        await asyncio.gather(*(plain(pool, number, 4) for number in range(3)))
        streams = [
            asyncio.create_task(streamed(pool, number, "restart", lambda _: None))
            for number in range(6)
        ]
        plains = [asyncio.create_task(plain(pool, number)) for number in range(6)]
        while pool.get_metrics()["hosts"][hosts[0].name]["in_flight"] < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        freeze(hosts[0])
        try:
            assert all(await asyncio.gather(*streams))
            await asyncio.gather(*plains)
        finally:
            os.kill(hosts[0].pid, signal.SIGCONT)
        assert {host["in_flight"] for host in pool.get_metrics()["hosts"].values()} == {0}


async def test_a_host_that_returns_is_given_its_share_little_by_little(
    fresh_llama_hosts: Fresh,
) -> None:
    hosts = fresh_llama_hosts(3)
    name = hosts[0].name
    health = HealthConfig(interval=0.2, timeout=5.0)
    balance = BalanceConfig(slow_start=600.0)
    async with pool_over(hosts, health_config=health, balance_config=balance) as pool:
        await pool.wait_ready(3)
        hosts[0].kill()
        served = await asyncio.gather(*(plain(pool, number, 4) for number in range(9)))
        assert name not in served
        while state(pool, name) not in {"open", "down"}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        hosts[0].launch()
        hosts[0].wait_ready()
        while state(pool, name) != "slow_start":
            await plain(pool, 1, 2)
        served = [await plain(pool, number, 2) for number in range(30)]
        # A third of them would be its whole share, and a tenth of that is where it begins.
        assert served.count(name) < 8
        pool.set_weight(name, 100.0)
        served = [await plain(pool, number, 2) for number in range(10)]
        assert name in served


def state(pool: DistributedLLMClient, name: str) -> str:
    return str(pool.get_metrics()["hosts"][name]["state"])


async def test_a_pool_whose_hosts_start_one_by_one_serves_from_the_first(
    fresh_llama_hosts: Fresh,
) -> None:
    hosts = fresh_llama_hosts(3)
    hosts[0].kill()
    hosts[1].kill()
    async with pool_over(hosts, health_config=HealthConfig(interval=0.2)) as pool:
        await pool.wait_ready(1)
        assert await plain(pool, 3, 4) == hosts[2].name
        hosts[1].launch()
        await pool.wait_ready(2)
        hosts[2].kill()
        assert await plain(pool, 3, 4) == hosts[1].name
