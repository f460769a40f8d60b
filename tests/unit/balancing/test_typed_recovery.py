"""Streams of the pool over hosts on sockets that fail at every point of an answer."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from shared.infrastructure.balancing.config import AnswerTimeoutConfig, FallbackConfig
from shared.infrastructure.balancing.distributed_llm import DistributedLLMClient
from shared.infrastructure.balancing.errors import (
    InBandError,
    StreamIdleTimeoutError,
    StreamInterruptedError,
    StreamTruncatedError,
)
from shared.infrastructure.balancing.hosts import Capability, LLMHost
from shared.infrastructure.resilience import RetryConfig
from shared.models import ChatCompletion, StreamRestarted
from tests.scripted_host import (
    Ending,
    ScriptedHost,
    Step,
    answer,
    chat,
    chat_events,
    chat_stream,
    event,
    stream,
)

FIRST = 'first: Grüße 🎉 "a"\tb'
SECOND = "second: ein anderer Text, länger als der erste"
QUESTION = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
BREAKS: list[Ending] = ["fin", "cut", "reset", "stall"]


@asynccontextmanager
async def pool_of(*scripts: Step | list[Step], **options: Any) -> AsyncIterator[Any]:
    """Give a pool over one scripted host per script, and the hosts."""
    options.setdefault("retry_config", RetryConfig(base_delay=0.0))
    options.setdefault("answer_timeouts", AnswerTimeoutConfig(first_token=5.0, idle=0.3))
    options.setdefault("rng", random.Random(3))
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(ScriptedHost(*(s if isinstance(s, list) else [s])))
            for s in scripts
        ]
        configs = [
            LLMHost(name, host.url, capabilities=frozenset(Capability))
            for name, host in zip("abc", hosts, strict=False)
        ]
        pool = await stack.enter_async_context(DistributedLLMClient(configs, **options))
        yield pool, *hosts


async def final(pool: DistributedLLMClient, recovery: Any) -> ChatCompletion:
    """Return the answer, having checked that a reader heard just that."""
    heard = ""
    async with pool.stream(QUESTION, recovery=recovery) as pieces:
        async for piece in pieces:
            if isinstance(piece, StreamRestarted):
                assert piece.discarded_characters == len(heard)
                heard = ""
            heard += piece.text
        whole: ChatCompletion = await pieces.get_final()
    assert whole.text == heard
    return whole


def in_flight(pool: DistributedLLMClient) -> set[int]:
    return {host["in_flight"] for host in pool.get_metrics()["hosts"].values()}


@pytest.mark.parametrize("recovery", ["restart", "buffer"])
@pytest.mark.parametrize("ending", BREAKS)
@pytest.mark.parametrize("after", [1, 5])
async def test_an_answer_that_breaks_off_comes_whole_from_elsewhere(
    recovery: str, ending: Ending, after: int
) -> None:
    async with pool_of(chat_stream(FIRST, ending, after=after), chat_stream(SECOND)) as (pool, *_):
        whole = await final(pool, recovery)
    assert whole.text == SECOND
    route = whole.route
    assert route.host == "b"
    assert route.recovered == (recovery == "restart")
    assert [attempt.host for attempt in route.attempts] == ["a", "b"]
    assert [attempt.fault is None for attempt in route.attempts] == [False, True]


@pytest.mark.parametrize("ending", BREAKS)
async def test_an_answer_that_breaks_off_is_continued(ending: Ending) -> None:
    first = chat_stream(FIRST, ending, after=5)
    async with pool_of(first, chat_stream(FIRST[10:])) as (pool, _, b):
        whole = await final(pool, "continue")
        (request,) = b.requests
    assert whole.text == FIRST
    assert request.payload["messages"][-1] == {"role": "assistant", "content": FIRST[:10].rstrip()}


@pytest.mark.parametrize("ending", BREAKS)
async def test_no_recovery_is_a_typed_error_with_what_was_delivered(ending: Ending) -> None:
    first = chat_stream(FIRST, ending, after=5)
    async with pool_of(first, chat_stream(SECOND)) as (pool, _, b):
        with pytest.raises(StreamInterruptedError) as caught:
            await final(pool, "error")
        assert not b.requests
        assert in_flight(pool) == {0}
    assert caught.value.partial == FIRST[:10]
    assert caught.value.host == "a"


async def test_a_refused_continuation_is_never_the_final_error() -> None:
    refusal = answer({"error": {"message": "prefill is not supported"}}, 400)
    async with pool_of(chat_stream(FIRST, "cut", after=5), refusal, refusal) as (pool, *_):
        with pytest.raises(StreamInterruptedError) as caught:
            await final(pool, "continue")
    assert "prefill" not in str(caught.value)
    assert caught.value.partial == FIRST[:10]


BOOM = event({"error": {"message": "boom"}})
IN_BAND = [
    ([*list(chat_events(FIRST))[:6], BOOM], InBandError),
    ([*list(chat_events(FIRST))[:6], b"data: [DONE"], StreamTruncatedError),
]


@pytest.mark.parametrize(("events", "kind"), IN_BAND)
async def test_what_a_host_reports_in_mid_stream_is_a_break(
    events: list[bytes], kind: type[Exception]
) -> None:
    async with pool_of(stream(events, "fin"), chat_stream(SECOND)) as (pool, *_):
        with pytest.raises(StreamInterruptedError) as caught:
            await final(pool, "error")
    assert isinstance(caught.value.__cause__, kind)
    assert caught.value.partial == FIRST[:10]
    async with pool_of(stream(events, "fin"), chat_stream(SECOND)) as (pool, *_):
        assert (await final(pool, "restart")).text == SECOND


@pytest.mark.parametrize("events", [[BOOM], [*list(chat_events(FIRST))[:1], BOOM]])
async def test_what_a_host_reports_before_any_content_goes_unnoticed(events: list[bytes]) -> None:
    async with pool_of(stream(events), chat_stream(SECOND)) as (pool, *_):
        whole = await final(pool, "error")
    assert whole.text == SECOND
    assert not whole.route.recovered


async def test_model_and_usage_are_those_of_the_host_that_served() -> None:
    busy = answer({"error": {"message": "busy"}}, 503)
    async with pool_of(busy, chat_stream(SECOND)) as (pool, *_):
        whole = await final(pool, "error")
    assert (whole.model, whole.route.served_model) == ("scripted", "scripted")
    assert whole.route.host == "b"
    assert whole.usage is not None
    assert whole.usage.total_tokens == 8
    assert [attempt.usage is None for attempt in whole.route.attempts] == [True, False]


async def test_the_route_names_the_model_that_was_asked_for_if_another_answered() -> None:
    missing = answer({"error": {"code": "model_not_found", "message": "no m"}}, 404)
    chains = FallbackConfig(models={"real": ["other"]}, aliases={"m": "real"})
    script = [missing, chat_stream(SECOND), chat(SECOND), chat(SECOND)]
    async with pool_of(script, fallback_config=chains) as (pool, a):
        assert (await final(pool, "error")).route.fallback_from == "real"
        whole = await pool.chat({**QUESTION, "model": "other"})
        assert whole.route.fallback_from is None
        assert [request.payload["model"] for request in a.requests] == ["real", "other", "other"]


async def test_a_whole_answer_over_a_stream_is_protected_like_one() -> None:
    stalls = chat_stream(FIRST, "stall", after=5)
    async with pool_of(stalls, chat_stream(SECOND)) as (pool, *_):
        whole = await pool.chat(QUESTION, stream_internally=True)
    assert whole.text == SECOND
    assert whole.route.attempts[0].fault == "silent"


async def test_silence_is_what_it_is_called() -> None:
    async with pool_of(chat_stream(FIRST, "stall", after=5)) as (pool, _):
        with pytest.raises(StreamInterruptedError) as caught:
            await final(pool, "error")
    assert isinstance(caught.value.__cause__, StreamIdleTimeoutError)


@pytest.mark.parametrize("after", [0, 4])
async def test_cancelling_a_reader_closes_the_stream_upstream_and_blames_nobody(after: int) -> None:
    patient = AnswerTimeoutConfig(first_token=60.0, idle=60.0)
    before = asyncio.all_tasks()
    async with pool_of(chat_stream(FIRST, "stall", after=after), answer_timeouts=patient) as (
        pool,
        a,
    ):
        readers = [asyncio.create_task(final(pool, "restart")) for _ in range(8)]
        await a.until(lambda: len(a.requests) == 8)
        await asyncio.sleep(0.05)
        for reader in readers:
            reader.cancel()
        done = await asyncio.gather(*readers, return_exceptions=True)
        assert {type(outcome) for outcome in done} == {asyncio.CancelledError}
        assert in_flight(pool) == {0}
        await a.until_idle()
        host = pool.get_metrics()["hosts"]["a"]
        assert host["error_count"] == 0
    gc.collect()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_stream_may_be_closed_while_another_task_reads_it() -> None:
    patient = AnswerTimeoutConfig(first_token=60.0, idle=60.0)
    stalls = chat_stream(FIRST, "stall", after=4)
    async with pool_of(stalls, stalls, answer_timeouts=patient) as (pool, a, b):
        pieces = pool.stream(QUESTION, recovery="restart")
        reader = asyncio.create_task(pieces.get_final())
        await a.until(lambda: len(pieces.text) == 8)
        await pieces.aclose()
        with pytest.raises(StreamInterruptedError) as caught:
            await reader
        assert caught.value.partial == FIRST[:8]
        assert not b.requests
        assert in_flight(pool) == {0}
        await a.until_idle()


@pytest.mark.parametrize("recovery", ["continue", "restart"])
async def test_a_cancellation_at_any_point_comes_out_and_leaves_nothing(recovery: str) -> None:
    cut = chat_stream(FIRST, "cut", after=3)
    async with pool_of(
        [cut, chat_stream(FIRST)] * 100, chat_stream(SECOND), circuit_breaker_config=None
    ) as (pool, *_):
        outcomes: set[str] = set()
        for turns in range(0, 90, 2):
            reader = asyncio.create_task(final(pool, recovery))
            for _ in range(turns):
                await asyncio.sleep(0)
            reader.cancel()
            (outcome,) = await asyncio.gather(reader, return_exceptions=True)
            outcomes.add(type(outcome).__name__)
        assert "CancelledError" in outcomes
        assert outcomes <= {"CancelledError", "ChatCompletion"}
        assert in_flight(pool) == {0}


async def test_50_answers_at_once_never_mix_whatever_breaks() -> None:
    def uneven(name: str, odd: Ending) -> list[Step]:
        endings: list[Ending] = ["whole", odd, "whole", "fin"]
        return [
            chat_stream(
                f"{name}{n}: Grüße 🎉 {'x' * (n % 7)} {name}{n}", endings[n % 4], after=n % 9
            )
            for n in range(60)
        ]

    async with pool_of(
        uneven("a", "cut"),
        uneven("b", "reset"),
        uneven("c", "fin"),
        retry_config=RetryConfig(base_delay=0.01, max_retries=12),
        circuit_breaker_config=None,
        retry_budget=None,
    ) as (pool, *_):
        answers = await asyncio.gather(
            *(final(pool, "restart") for _ in range(50)), return_exceptions=True
        )
        texts = {one.text for one in answers if isinstance(one, ChatCompletion)}
        errors = [one for one in answers if not isinstance(one, ChatCompletion)]
        for text in texts:
            name, _, rest = text.partition(":")
            assert rest.endswith(f" {name}")
        assert len(texts) > 10
        assert all(isinstance(error, StreamInterruptedError) for error in errors)
        assert in_flight(pool) == {0}
