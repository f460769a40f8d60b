"""`ChatStream` over attempts that fail at every point of an answer."""

import asyncio
import gc
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.accounting.answer_cache_layer import CACHED
from shared.infrastructure.balancing.accounting.replay import ReplayedStream
from shared.infrastructure.balancing.answers import STREAM
from shared.infrastructure.balancing.call import CALL, call_of
from shared.infrastructure.balancing.errors import (
    BadRequestError,
    InBandError,
    InvalidStreamError,
    NoHostAvailableError,
    StreamIdleTimeoutError,
    StreamInterruptedError,
    StreamTruncatedError,
)
from shared.infrastructure.balancing.typed import ChatStream
from shared.infrastructure.resilience import DeadlineExceededError
from shared.models import StreamRestarted
from tests.scripted_host import chat_events, choice
from tests.unit.balancing.typed_scripts import (
    DIALECT,
    QUESTION,
    USAGE,
    Reply,
    pool_with,
    refusing,
    saying,
)

FIRST = 'first: Grüße 🎉 "a"\tb'
SECOND = "second: ein anderer Text, länger als der erste"
CUT = StreamTruncatedError("cut")


async def heard(stream: ChatStream) -> str:
    """Return what a reader has in the end who forgets what it is told to forget."""
    text = ""
    async with stream:
        async for piece in stream:
            if isinstance(piece, StreamRestarted):
                assert piece.discarded_characters == len(text)
                text = ""
            text += piece.text
    return text


async def test_chunks_are_the_events_as_the_host_sent_them() -> None:
    pool = pool_with(saying("hello"))
    async with pool.stream() as stream:
        chunks = [chunk async for chunk in stream]
    assert [chunk.text for chunk in chunks] == ["", "he", "ll", "o", "", ""]
    assert chunks[1].choices[0].delta.content == "he"
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 8
    assert stream.text == "hello"
    assert not pool.open


async def test_usage_is_asked_for_and_the_final_answer_has_it() -> None:
    pool = pool_with(saying(FIRST))
    async with pool.stream() as stream:
        answer = await stream.get_final()
    assert pool.requests == [
        {**QUESTION, "stream": True, "stream_options": {"include_usage": True}}
    ]
    assert answer.text == FIRST
    assert answer.object == "chat.completion"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert (answer.route.host, answer.route.served_model) == ("a", "scripted")
    assert (answer.route.time_to_first_token, answer.route.recovered) == (1.0, False)


@pytest.mark.parametrize("status", [400, 422])
async def test_a_host_that_knows_no_usage_is_asked_again_without(status: int) -> None:
    pool = pool_with(refusing(status, "unknown field: stream_options"), saying(FIRST))
    assert await heard(pool.stream(max_attempts=1)) == FIRST
    assert pool.requests[1] == {**QUESTION, "stream": True}


async def test_a_host_that_never_knows_it_is_asked_twice_only() -> None:
    refusal = refusing(400, "unknown field: stream_options")
    pool = pool_with(refusal, refusal)
    with pytest.raises(BadRequestError):
        await heard(pool.stream())
    assert len(pool.requests) == 2


async def test_what_keeps_an_answer_from_beginning_is_raised_on_entry() -> None:
    pool = pool_with(refusing(400, "no such parameter"))
    with pytest.raises(BadRequestError, match="no such parameter") as caught:
        async with pool.stream():
            pytest.fail("it has not begun")
    assert (caught.value.host, caught.value.status) == ("a", 400)


@pytest.mark.parametrize("after", [1, 5])
async def test_a_broken_answer_is_an_error_with_its_text_and_its_cost(after: int) -> None:
    pool = pool_with(saying(FIRST[: 2 * after], CUT))
    with pytest.raises(StreamInterruptedError) as caught:
        await heard(pool.stream())
    error = caught.value
    assert error.partial == FIRST[: 2 * after]
    assert (error.host, error.attempts) == ("a", 1)
    assert error.__cause__ is CUT
    assert error.usage is not None
    assert error.usage["estimated"]
    assert error.usage["completion_tokens"] == -(-2 * after // 4)
    assert error.partial not in str(error.to_dict())
    assert not pool.pauses


@pytest.mark.parametrize(
    "error", [CUT, InBandError("boom"), StreamIdleTimeoutError("silent", host="a")]
)
@pytest.mark.parametrize("after", [1, 5])
async def test_a_broken_answer_begins_anew_if_it_may(error: Exception, after: int) -> None:
    pool = pool_with(saying(FIRST[: 2 * after], error), saying(SECOND))
    async with pool.stream(recovery="restart") as stream:
        pieces = [piece async for piece in stream]
        answer = await stream.get_final()
    restarts = [piece for piece in pieces if isinstance(piece, StreamRestarted)]
    assert restarts == [StreamRestarted(2 * after, "b")]
    assert "".join(piece.text for piece in pieces) == FIRST[: 2 * after] + SECOND
    assert answer.text == SECOND
    assert answer.usage is not None
    assert answer.usage.total_tokens == 8
    assert answer.route.recovered
    assert [attempt.host for attempt in answer.route.attempts] == ["a", "b"]
    assert answer.route.attempts[0].usage_estimated
    assert pool.pauses == 1


async def test_restarts_stay_within_the_attempts() -> None:
    cuts = [saying(f"{number}: text", StreamTruncatedError(str(number))) for number in range(9)]
    pool = pool_with(*cuts)
    with pytest.raises(StreamInterruptedError) as caught:
        await heard(pool.stream(recovery="restart", max_attempts=3))
    assert len(pool.requests) == 3
    assert caught.value.attempts == 3
    assert [str(error) for error in caught.value.earlier] == ["0", "1"]
    assert caught.value.partial == "2: text"


async def test_nothing_begins_anew_when_no_further_attempt_is_to_be_made() -> None:
    pool = pool_with(saying("abcd", CUT), saying(SECOND))
    pool.patient = False
    with pytest.raises(StreamInterruptedError):
        await heard(pool.stream(recovery="restart"))
    assert len(pool.requests) == 1


async def test_nothing_begins_anew_after_the_deadline() -> None:
    pool = pool_with(saying("abcd", DeadlineExceededError("over")), saying(SECOND))
    with pytest.raises(StreamInterruptedError) as caught:
        await heard(pool.stream(recovery="restart"))
    assert isinstance(caught.value.__cause__, DeadlineExceededError)
    assert not pool.pauses


async def test_if_no_new_answer_begins_the_partial_text_is_that_of_the_old_one() -> None:
    pool = pool_with(saying("abcd", CUT), Reply(error=NoHostAvailableError({"b": "open"})))
    with pytest.raises(StreamInterruptedError) as caught:
        await heard(pool.stream(recovery="restart"))
    assert caught.value.partial == "abcd"
    assert isinstance(caught.value.__cause__, NoHostAvailableError)


GARBAGE = [
    {"choices": 7},
    {"choices": [7]},
    choice({"content": 7}),
    choice({"content": "x", "reasoning_content": []}),
    choice({"tool_calls": {"index": 0}}),
    {"choices": [{"index": "first", "delta": {}}]},
]


@pytest.mark.parametrize(
    "event",
    [
        {"choices": [{"index": 0, "delta": None}]},
        {"choices": [{"index": None, "delta": {"content": ""}}]},
        {"choices": [], "usage": {"prompt_tokens": "many"}},
        {"choices": [], "usage": {"prompt_tokens": 1.5}},
        {"choices": [], "usage": 7},
        {"choices": [{"index": 0, "delta": {}, "logprobs": []}], "id": 7, "created": 1.5},
    ],
)
async def test_what_sdks_take_is_taken(event: Any) -> None:
    pool = pool_with(Reply([choice({"content": "ab"}), event, choice({"content": "cd"}, "stop")]))
    async with pool.stream() as stream:
        pieces = [piece async for piece in stream]
        answer = await stream.get_final()
    assert [piece.usage for piece in pieces] == [None] * 3
    assert [len(piece.choices) for piece in pieces] == [1, len(event["choices"]), 1]
    assert (answer.text, answer.usage) == ("abcd", None)


async def test_text_may_come_in_parts() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, *PARTS]
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    pool = pool_with(Reply([choice({"content": parts}), choice({"content": "cd"}, "stop")]))
    async with pool.stream() as stream:
        assert [piece.text async for piece in stream] == ["ab", "cd"]
        message = (await stream.get_final()).choices[0].message
    assert (message.content, message.reasoning_content) == ("abcd", "hm")
    pool = pool_with(Reply([choice({"content": [*PARTS, image]}, "stop")]))
    answer = await pool.stream().get_final()
    assert (answer.text, answer.choices[0].message.content) == ("ab", [*PARTS, image])


PARTS = [{"type": "text", "text": "ab"}]


@pytest.mark.parametrize("event", GARBAGE)
async def test_garbage_is_never_delivered(event: Any) -> None:
    pool = pool_with(Reply([choice({"content": "abcd"}), event]), saying(SECOND))
    with pytest.raises(StreamInterruptedError) as caught:
        await heard(pool.stream())
    assert isinstance(caught.value.__cause__, InvalidStreamError)
    assert caught.value.partial == "abcd"
    assert not pool.open


@pytest.mark.parametrize("event", GARBAGE)
async def test_garbage_before_anything_else_goes_unnoticed(event: Any) -> None:
    pool = pool_with(Reply([event]), saying(SECOND))
    async with pool.stream() as stream:
        assert not any([isinstance(piece, StreamRestarted) async for piece in stream])
    assert stream.text == SECOND


async def test_leaving_the_block_early_closes_the_stream() -> None:
    pool = pool_with(saying(FIRST))
    async with pool.stream() as stream:
        async for chunk in stream:
            if chunk.text:
                break
        assert pool.open == 1
    assert not pool.open
    assert stream.text == FIRST[:2]
    with pytest.raises(StreamTruncatedError):
        await stream.get_final()


async def test_entering_the_block_alone_leaves_nothing_behind() -> None:
    pool = pool_with(saying(FIRST))
    async with pool.stream():
        assert pool.open == 1
    assert not pool.open


async def test_a_forgotten_stream_is_closed_at_once() -> None:
    pool = pool_with(saying(FIRST))
    gc.disable()
    try:
        async for _ in pool.stream():
            break
        for _ in range(3):
            await asyncio.sleep(0)
        assert not pool.open
    finally:
        gc.enable()


async def test_a_cancelled_reader_closes_the_stream_within_a_tick_and_notes_what_it_cost() -> None:
    pool = pool_with(saying("abcdefgh", hangs=True))
    reader = asyncio.create_task(heard(pool.stream()))
    for _ in range(3):
        await asyncio.sleep(0)
    assert pool.open == 1
    reader.cancel()
    await asyncio.sleep(0)
    assert not pool.open
    with pytest.raises(asyncio.CancelledError):
        await reader
    (attempt,) = pool.calls[0].attempts
    assert attempt.usage is not None
    assert attempt.usage["estimated"]
    assert attempt.usage["completion_tokens"] == 2


async def test_a_cancellation_while_a_restart_waits_comes_out() -> None:
    pool = pool_with(saying("abcd", CUT), saying(SECOND))
    waiting = asyncio.Event()

    async def pause(_: object) -> bool:
        waiting.set()
        await asyncio.Event().wait()
        return True

    pool.pause = pause  # type: ignore[method-assign]
    reader = asyncio.create_task(heard(pool.stream(recovery="restart")))
    await waiting.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert len(pool.requests) == 1


async def test_the_usage_a_host_has_counted_is_not_replaced_by_an_estimate() -> None:
    events = [{**choice({"content": "ab"}), "usage": USAGE}]
    pool = pool_with(Reply(events, hangs=True))
    async with pool.stream() as stream:
        await anext(stream)
    assert pool.calls[0].attempts[0].usage == USAGE


async def test_a_stream_that_is_none_is_an_error() -> None:
    pool = pool_with(Reply(body={"choices": []}), Reply(body={"choices": []}))
    with pytest.raises(InvalidStreamError):
        await heard(pool.stream(max_attempts=1))


async def test_a_stream_out_of_the_cache_reads_like_any_other() -> None:
    stream = ReplayedStream(b"".join(chat_events(FIRST)), DIALECT)

    async def exchange(request: httpx.Request) -> httpx.Response:
        call = call_of(request.extensions)
        return httpx.Response(200, extensions={CALL: call, CACHED: "hit", STREAM: stream})

    pool = pool_with()
    pool.exchange = exchange  # type: ignore[method-assign]
    async with pool.stream() as answer:
        assert await heard(answer) == FIRST
    assert answer.route.cached
    assert (answer.route.host, answer.route.attempts, answer.route.cost) == (None, (), 0)


async def test_50_streams_at_once_never_mix() -> None:
    async def one(number: int) -> None:
        text = f"{number}: Grüße {number}"
        pool = pool_with(saying(f"x{number}", CUT), saying(text))
        assert await heard(pool.stream(recovery="restart")) == text
        assert not pool.open

    await asyncio.gather(*map(one, range(50)))
