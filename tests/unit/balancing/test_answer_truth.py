"""What is an answer and what is none, on real sockets; the second host has to save the call."""

import gzip
import json

import httpx
import pytest

from shared.infrastructure.balancing import (
    DistributedLLMClient,
    InvalidResponseError,
    StreamTruncatedError,
    route_of,
)
from shared.infrastructure.http import TimeoutConfig, UpstreamError
from tests.scripted_host import (
    Ending,
    Step,
    answer,
    chat,
    chat_events,
    chat_stream,
    choice,
    completion,
    event,
    raw,
    reset,
    short,
    silence,
    stream,
)
from tests.unit.balancing.pools import CHAT, pool_of

TEXT = 'Grüße 🎉 "finish_reason": "stop"\tand data: [DONE]\n'


def said(response: httpx.Response) -> str:
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


BODY = json.dumps(completion(TEXT)).encode()
PLAIN_FAULTS = {
    "reset before headers": reset(),
    "silence": silence(),
    "60 % of the body": short(BODY),
    "body cut without a length": raw(b"HTTP/1.1 200 OK\r\n\r\n" + BODY[:-9]),
    "empty": answer(b""),
    "HTML": answer(b"<html>502</html>"),
    "malformed": answer(BODY.replace(b"{", b"[", 1)),
    "gzip garbage": answer(BODY, headers={"Content-Encoding": "gzip"}),
    "a list": answer([1]),
    "no choices": answer({"choices": []}),
    "garbage choices": answer({"choices": "x"}),
    "an error with status 200": answer({"object": "error", "message": "out of memory"}),
    "a busy host with status 200": answer({"error": {"code": 429, "message": "slow down"}}),
    "not HTTP": raw(b"nonsense\r\n\r\n"),
    "503": answer({}, 503),
}


@pytest.mark.parametrize("fault", PLAIN_FAULTS.values(), ids=PLAIN_FAULTS.keys())
async def test_what_is_no_answer_fails_over(fault: Step) -> None:
    async with pool_of(fault, chat(TEXT)) as (pool, a, b):
        response = await pool.post(CHAT, json={})
        assert said(response) == TEXT
        assert (len(a.requests), len(b.requests)) == (1, 1)


async def test_what_is_no_answer_is_a_typed_error_in_the_end_and_counts_against_the_host() -> None:
    async with pool_of(answer(b"<html>")) as (pool, _):
        with pytest.raises(InvalidResponseError, match="not valid JSON") as caught:
            await pool.post(CHAT, json={})
        assert (caught.value.host, caught.value.attempts) == ("a", 4)
        host = pool.get_metrics()["hosts"]["a"]
        assert host["circuit_breaker"]["failure_count"] == 4
        # The first active check, which finds nothing wrong, may come after the first attempt.
        assert host["health"]["consecutive_failures"] >= 3


async def test_an_error_with_status_200_gets_the_status_it_names() -> None:
    error = {"object": "error", "message": "too long", "code": 400}
    async with pool_of(answer(error), chat(TEXT)) as (pool, _, b):
        response = await pool.post(CHAT, json={})
        assert response.status_code == 400
        assert response.json()["error"]["message"] == "too long"
        assert not b.requests


async def test_a_compressed_answer_is_read_and_handed_on_as_it_came() -> None:
    packed = answer(gzip.compress(BODY), headers={"Content-Encoding": "gzip"})
    async with pool_of(packed) as (pool, _):
        assert said(await pool.post(CHAT, json={})) == TEXT


async def test_other_paths_are_none_of_our_business() -> None:
    async with pool_of(answer(b"")) as (pool, _):
        assert (await pool.post("/metrics")).content == b""


async def read(pool: DistributedLLMClient) -> bytes:
    async with pool.stream(CHAT, json={"stream": True}) as response:
        assert response.status_code == 200
        return b"".join([chunk async for chunk in response.aiter_raw()])


WHOLE = b"".join(chat_events(TEXT))
EARLY_FAULTS = {
    **{name: step for name, step in PLAIN_FAULTS.items() if name != "no choices"},
    "JSON instead of a stream": chat(TEXT),
    **{f"only a role, then {end}": chat_stream("x", end) for end in ("fin", "cut", "reset")},
    "only a role, then silence": chat_stream("x", "stall"),
    "an error event": stream([event({"error": {"message": "boom"}}), b"data: [DONE]\n\n"]),
    "an error object": stream([event({"object": "error", "message": "boom"})]),
    "an event that is no JSON": stream([b"data: {\n\n"]),
    "an event that is no object": stream([b"data: 7\n\n"]),
    "no events at all": stream([]),
}


@pytest.mark.parametrize("fault", EARLY_FAULTS.values(), ids=EARLY_FAULTS.keys())
async def test_a_stream_that_fails_before_its_first_content_fails_over(fault: Step) -> None:
    async with pool_of(fault, chat_stream(TEXT)) as (pool, a, b):
        assert await read(pool) == WHOLE
        assert (len(a.requests), len(b.requests)) == (1, 1)
        assert b.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("piece", [0, 1, 7, 100_000])
@pytest.mark.parametrize("ending", ["whole", "no_done"])
async def test_a_whole_stream_comes_through_byte_by_byte(ending: Ending, piece: int) -> None:
    async with pool_of(chat_stream(TEXT, ending, piece=piece)) as (pool, _):
        expected = WHOLE if ending == "whole" else WHOLE.removesuffix(b"data: [DONE]\n\n")
        assert await read(pool) == expected
        assert pool.get_metrics()["hosts"]["a"]["error_count"] == 0


@pytest.mark.parametrize("ending", ["fin", "cut", "reset", "stall"])
async def test_a_stream_cut_short_is_an_error_that_breaker_and_monitor_see(ending: Ending) -> None:
    after = len(TEXT) // 2 - 1  # what the model says about [DONE] and finish_reason is out by then
    async with pool_of(chat_stream(TEXT, ending, after=after)) as (pool, _):
        with pytest.raises(UpstreamError):
            await read(pool)
        host = pool.get_metrics()["hosts"]["a"]
        assert host["circuit_breaker"]["failure_count"] == 1
        assert host["health"]["consecutive_failures"] == 1
        assert host["in_flight"] == 0


async def test_a_clean_end_of_file_without_a_sign_of_completion_has_a_type_of_its_own() -> None:
    async with pool_of(chat_stream(TEXT, "fin", after=3)) as (pool, _):
        with pytest.raises(StreamTruncatedError, match="neither finish_reason nor"):
            await read(pool)


async def test_after_a_finish_reason_a_lost_connection_no_longer_matters() -> None:
    events = [event(choice({"content": "hi"})), event(choice({}, "stop"))]
    async with pool_of(stream(events, "reset")) as (pool, _):
        assert await read(pool) == b"".join(events)
        assert pool.get_metrics()["hosts"]["a"]["error_count"] == 0


async def test_a_stream_that_lingers_after_done_ends_at_once_all_the_same() -> None:
    patient = TimeoutConfig(read=60.0)
    lingering = stream(list(chat_events(TEXT)), "stall")
    async with pool_of(lingering, timeout_config=patient) as (pool, a):
        assert await read(pool) == WHOLE
        await a.until_idle()


async def test_a_connection_is_used_again_after_a_whole_stream() -> None:
    async with pool_of(chat_stream(TEXT)) as (pool, a):
        for _ in range(3):
            await read(pool)
        ports = {r.writer.get_extra_info("peername")[1] for r in a.requests}
        assert len(ports) == 1


async def test_a_finish_reason_of_error_is_one() -> None:
    events = [event(choice({"content": "hi"})), event(choice({}, "error")), b"data: [DONE]\n\n"]
    async with pool_of(stream(events, pause=0.05)) as (pool, _):
        with pytest.raises(InvalidResponseError, match="finish_reason is error"):
            await read(pool)


async def test_no_more_than_256_kib_of_a_stream_are_held_back() -> None:
    pings = [b": ping\n\n" * 4096] * 9
    patient = TimeoutConfig(read=60.0)
    async with (
        pool_of(stream(pings, "stall"), timeout_config=patient) as (pool, _),
        pool.stream(CHAT, json={"stream": True}) as response,
    ):
        pieces = response.aiter_raw()
        assert (await anext(pieces)).startswith(b": ping")
        await pieces.aclose()


async def test_a_client_of_httpx_on_the_pool_is_told_the_truth_too() -> None:
    cut = chat_stream(TEXT, "fin", after=2)
    async with (
        pool_of([short(BODY), cut], chat(TEXT)) as (pool, a, b),
        httpx.AsyncClient(transport=pool.transport, base_url="http://llm") as client,
    ):
        assert said(await client.post(CHAT, json={})) == TEXT
        assert (len(a.requests), len(b.requests)) == (1, 1)
        pool.disable_host("b")
        async with client.stream("POST", CHAT, json={"stream": True}) as response:
            assert route_of(response).host == "a"
            with pytest.raises(StreamTruncatedError):
                await response.aread()
