"""Streamed chat over hosts that fail at every point of an answer."""

import asyncio
import gc
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing import (
    DistributedLLMClient,
    InBandError,
    InvalidStreamError,
    NoHostAvailableError,
    StreamInterruptedError,
    StreamTruncatedError,
    UpstreamStatusError,
)
from shared.infrastructure.http import TimeoutConfig
from shared.infrastructure.resilience import CircuitBreakerConfig, RetryConfig
from shared.infrastructure.testing import FakeClock
from shared.models import LLMChunk
from tests.scripted_host import (
    Ending,
    Step,
    answer,
    chat_events,
    chat_stream,
    choice,
    event,
    reset,
    stream,
)
from tests.unit.balancing.pools import Answer, Mocks, pool_of

FIRST = 'first: Grüße 🎉 "a"\tb'
SECOND = "second: ein anderer Text, länger als der erste"
BREAKS: list[Ending] = ["fin", "cut", "reset", "stall"]


async def chunks_of(pool: DistributedLLMClient, **options: Any) -> list[LLMChunk]:
    return [chunk async for chunk in pool.stream_chat({"messages": []}, **options)]


def text_of(chunks: list[LLMChunk]) -> str:
    """Return what a reader has in the end who forgets what it is told to forget."""
    text = ""
    for chunk in chunks:
        if chunk.restarted:
            assert chunk.discarded == len(text)
            text = ""
        text += chunk.text
    return text


async def test_chunks_carry_text_reason_usage_model_and_host() -> None:
    async with pool_of(chat_stream(FIRST, piece=3)) as (pool, a):
        chunks = await chunks_of(pool)
        assert a.requests[0].payload == {"messages": [], "stream": True}
    assert text_of(chunks) == FIRST
    assert {chunk.host for chunk in chunks} == {"a"}
    assert chunks[0].model == "scripted"
    assert chunks[0].delta == {"content": "fi"}
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    last = chunks[-1].usage
    assert last is not None
    assert last.total_tokens == 8


async def test_pieces_that_are_no_text_come_in_the_delta_and_other_choices_do_not() -> None:
    calls = [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]
    other = {"choices": [{"index": 1, "delta": {"content": "other"}}]}
    events = [event(choice({"tool_calls": calls})), event(other), event(choice({}, "tool_calls"))]
    async with pool_of(stream(events)) as (pool, _):
        chunks = await chunks_of(pool)
    assert [chunk.delta for chunk in chunks if chunk.delta] == [{"tool_calls": calls}]
    assert text_of(chunks) == ""


@pytest.mark.parametrize("ending", BREAKS)
async def test_a_broken_answer_is_an_error_with_its_partial_text(ending: Ending) -> None:
    async with pool_of(chat_stream(FIRST, ending, after=5), chat_stream(SECOND)) as (pool, _, b):
        with pytest.raises(StreamInterruptedError) as caught:
            await chunks_of(pool)
        error = caught.value
        assert error.partial == FIRST[:10]
        assert (error.host, error.attempts) == ("a", 1)
        assert error.__cause__ is not None
        assert FIRST[:10] not in str(error.to_dict())
        assert not b.requests


@pytest.mark.parametrize("ending", BREAKS)
@pytest.mark.parametrize("after", [1, 5])
async def test_a_broken_answer_begins_anew_elsewhere_if_it_may(ending: Ending, after: int) -> None:
    async with pool_of(chat_stream(FIRST, ending, after=after), chat_stream(SECOND)) as (pool, *_):
        chunks = await chunks_of(pool, recovery="restart")
        restarts = [chunk for chunk in chunks if chunk.restarted]
        assert [(chunk.host, chunk.discarded) for chunk in restarts] == [("b", 2 * after)]
        assert text_of(chunks) == SECOND
        hosts = pool.get_metrics()["hosts"]
        assert hosts["a"]["circuit_breaker"]["failure_count"] == 1
        assert hosts["b"]["circuit_breaker"]["failure_count"] == 0


async def test_a_restart_overcomes_what_goes_wrong_on_its_own_way() -> None:
    cut = chat_stream(FIRST, "fin", after=4)
    async with pool_of(cut, [reset(), chat_stream(SECOND)], answer({}, 503)) as (pool, *_):
        chunks = await chunks_of(pool, recovery="restart")
        assert text_of(chunks) == SECOND


async def test_restarts_and_retries_together_stay_within_the_attempts() -> None:
    cuts = [chat_stream(text, "fin", after=2) for text in (FIRST, SECOND)]
    async with pool_of(*cuts) as (pool, a, b):
        with pytest.raises(StreamInterruptedError) as caught:
            await chunks_of(pool, recovery="restart")
        assert len(a.requests) + len(b.requests) == 4
        assert caught.value.attempts == 4
        assert len(caught.value.earlier) == 3
        assert caught.value.partial == SECOND[:4]


async def test_the_retries_of_a_restart_count_too() -> None:
    cut = chat_stream(FIRST, "fin", after=2)
    async with pool_of([cut, answer({}, 503)], answer({}, 503)) as (pool, a, b):
        with pytest.raises(StreamInterruptedError) as caught:
            await chunks_of(pool, recovery="restart")
        assert len(a.requests) + len(b.requests) == 4
        assert caught.value.partial == FIRST[:4]


async def test_an_answer_that_breaks_before_any_content_begins_anew_unnoticed() -> None:
    pings = stream([b": ping\n\n" * 4096] * 9, "fin")  # too many to be held back
    async with pool_of(pings, chat_stream(SECOND)) as (pool, *_):
        chunks = await chunks_of(pool)
        assert text_of(chunks) == SECOND
        assert not any(chunk.restarted for chunk in chunks)


async def test_a_restart_on_the_same_host_waits_as_a_retry_would() -> None:
    def events(ending: bytes) -> Answer:
        content = event(choice({"content": "hi"})) + ending
        headers = {"Content-Type": "text/event-stream"}
        return lambda: httpx.Response(200, content=content, headers=headers)

    clock = FakeClock()
    mocks = Mocks(a=[events(b""), events(b"data: [DONE]\n\n")])
    reader = asyncio.create_task(chunks_of(mocks.pool(clock=clock), recovery="restart"))
    await clock.advance(0.9)
    assert len(mocks.calls) == 1
    await clock.advance(0.2)
    assert text_of(await reader) == "hi"


async def test_if_no_new_answer_begins_the_partial_text_is_that_of_the_old_one() -> None:
    one_strike = CircuitBreakerConfig(failure_threshold=1)
    cut = chat_stream(FIRST, "cut", after=3)
    async with pool_of(cut, circuit_breaker_config=one_strike) as (pool, _):
        with pytest.raises(StreamInterruptedError) as caught:
            await chunks_of(pool, recovery="restart")
        assert caught.value.partial == FIRST[:6]
        assert isinstance(caught.value.__cause__, NoHostAvailableError)


IN_BAND: list[tuple[Step, type[Exception]]] = [
    (
        stream([*list(chat_events(FIRST))[:4], event({"error": {"message": "boom"}})]),
        InBandError,
    ),
    (stream([*list(chat_events(FIRST))[:4], b'data: {"cho\n\n']), InvalidStreamError),
    (stream([*list(chat_events(FIRST))[:4], b'data: {"choices": 7}\n\n']), StreamTruncatedError),
    (
        stream([*list(chat_events(FIRST))[:4], event(choice({"content": 7}))]),
        InvalidStreamError,
    ),
]


@pytest.mark.parametrize(("step", "kind"), IN_BAND)
async def test_garbage_in_mid_stream_is_never_delivered(step: Step, kind: type[Exception]) -> None:
    async with pool_of(step, chat_stream(SECOND)) as (pool, *_):
        with pytest.raises(StreamInterruptedError) as caught:
            await chunks_of(pool)
        assert isinstance(caught.value.__cause__, kind)
        assert FIRST.startswith(caught.value.partial)
        pool.enable_host("a")
        assert text_of(await chunks_of(pool, recovery="restart")) == SECOND


async def test_an_error_status_is_an_error_that_says_what_the_host_said() -> None:
    refusal = answer({"error": {"message": "context too long"}}, 400)
    async with pool_of(refusal, chat_stream(SECOND)) as (pool, _, b):
        with pytest.raises(UpstreamStatusError, match="context too long") as caught:
            await chunks_of(pool, recovery="restart")
        assert (caught.value.status, caught.value.host, caught.value.attempts) == (400, "a", 1)
        assert not b.requests


async def test_leaving_a_stream_closes_it_upstream_and_blames_nobody() -> None:
    patient = TimeoutConfig(read=60.0)
    endless = chat_stream(FIRST, "stall", after=4)
    async with pool_of(endless, timeout_config=patient) as (pool, a):
        async with aclosing(pool.stream_chat({"messages": []})) as chunks:
            async for _ in chunks:
                break
            assert pool.get_metrics()["hosts"]["a"]["in_flight"] == 1
        assert pool.get_metrics()["hosts"]["a"]["in_flight"] == 0
        await a.until_idle()
        assert pool.get_metrics()["hosts"]["a"]["error_count"] == 0


@pytest.mark.parametrize("after", [0, 4])
async def test_cancelling_a_reader_closes_the_stream_upstream_and_blames_nobody(after: int) -> None:
    patient = TimeoutConfig(read=60.0)
    before = asyncio.all_tasks()
    async with pool_of(chat_stream(FIRST, "stall", after=after), timeout_config=patient) as (
        pool,
        a,
    ):
        readers = [asyncio.create_task(chunks_of(pool)) for _ in range(8)]
        await a.until(lambda: len(a.requests) == 8)
        await asyncio.sleep(0.05)
        for reader in readers:
            reader.cancel()
        done = await asyncio.gather(*readers, return_exceptions=True)
        assert {type(outcome) for outcome in done} == {asyncio.CancelledError}
        metrics = pool.get_metrics()
        assert metrics["hosts"]["a"]["in_flight"] == 0
        assert metrics["hosts"]["a"]["error_count"] == 0
        assert metrics["totals"]["in_flight"] == 0
        await a.until_idle()
    gc.collect()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_cancellation_at_any_point_comes_out_and_leaves_nothing_behind() -> None:
    async with pool_of([reset(), chat_stream(FIRST, piece=40)], chat_stream(SECOND)) as (pool, *_):
        outcomes: set[str] = set()
        for turns in range(0, 120, 2):
            reader = asyncio.create_task(chunks_of(pool))
            for _ in range(turns):
                await asyncio.sleep(0)
            reader.cancel()
            (outcome,) = await asyncio.gather(reader, return_exceptions=True)
            outcomes.add(type(outcome).__name__)
        assert "CancelledError" in outcomes
        assert outcomes <= {"CancelledError", "list"}
        metrics = pool.get_metrics()
        assert {host["in_flight"] for host in metrics["hosts"].values()} == {0}
        for _ in range(10):
            assert text_of(await chunks_of(pool)) in {FIRST, SECOND}


async def test_50_answers_at_once_never_mix_whatever_breaks() -> None:
    def uneven(name: str, odd: Ending) -> list[Step]:
        endings: list[Ending] = ["whole", odd, "whole", "fin"]
        return [
            chat_stream(
                f"{name}{n}: Grüße 🎉 {'x' * (n % 7)} {name}{n}", endings[n % 4], after=n % 9
            )
            for n in range(60)
        ]

    fast = RetryConfig(base_delay=0.01, max_retries=12)
    async with pool_of(
        uneven("a", "cut"),
        uneven("b", "reset"),
        uneven("c", "fin"),
        retry_config=fast,
        circuit_breaker_config=None,
    ) as (pool, *_):
        answers = await asyncio.gather(*(chunks_of(pool, recovery="restart") for _ in range(50)))
        texts = [text_of(chunks) for chunks in answers]
        for text in texts:
            name, _, rest = text.partition(":")
            assert rest.endswith(f" {name}")
        assert len(set(texts)) > 10
        metrics = pool.get_metrics()
        assert {host["in_flight"] for host in metrics["hosts"].values()} == {0}
