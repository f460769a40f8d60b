"""Streams in the answer cache: written down on their way, and read out again."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.accounting.replay import RecordedStream, ReplayedStream
from shared.infrastructure.balancing.dialects import Event, dialect_of
from tests.unit.balancing.accounting_calls import (
    BrokenStream,
    Hosts,
    cached,
    chat_answer,
    chat_events,
    how,
    question,
)


async def body_of(response: httpx.Response) -> bytes:
    return b"".join([piece async for piece in response.aiter_raw()])


async def typed_data_of(response: httpx.Response) -> list[dict[str, Any]]:
    events = response.extensions["stream_events"].events()
    return [event.data async for event in events if event.data is not None]


def said(chunks: list[dict[str, Any]]) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


STREAM = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("typed", [False, True])
async def test_a_stream_that_was_read_to_its_end_is_given_again(typed: bool) -> None:
    hosts = Hosts(chat_events("Fi", "ne."))
    ask = cached(hosts)
    first = await ask(question(**STREAM))
    await (typed_data_of(first) if typed else body_of(first))
    await first.aclose()
    again = await ask(question(**STREAM))
    chunks = await typed_data_of(again)
    assert (how(again), len(hosts.asked), said(chunks)) == ("hit", 1, "Fine.")
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:2]] == [None, "stop"]
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    assert (await body_of(again)).endswith(b"data: [DONE]\n\n")


async def test_who_leaves_the_events_early_leaves_those_of_the_stream_too() -> None:
    left: list[bool] = []

    class Left(ReplayedStream):
        async def events(self) -> AsyncIterator[Event]:
            try:
                async for event in super().events():
                    yield event
            finally:
                left.append(True)

    hosts = Hosts(chat_events("Fine."))
    hosts.stream_class = Left
    response = await cached(hosts)(question(**STREAM))
    async with aclosing(response.extensions["stream_events"].events()) as events:
        await anext(events)
    assert left


async def test_a_stream_is_kept_although_its_reader_leaves_at_the_end_mark() -> None:
    ask = cached(Hosts(chat_events("Fine.")))
    response = await ask(question(**STREAM))
    async for _ in response.aiter_raw():
        break
    await response.aclose()
    assert how(await ask(question(**STREAM))) == "hit"


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize(
    "events",
    [
        chat_events("Fi", reason=None),
        chat_events("Fi", reason="length"),
        chat_events("x" * 3000),
    ],
    ids=["no end", "cut at its length", "too large"],
)
async def test_a_stream_that_is_not_whole_is_not_kept(events: bytes, typed: bool) -> None:
    ask = cached(Hosts(events), max_answer_bytes=2000)
    response = await ask(question(**STREAM))
    await (typed_data_of(response) if typed else body_of(response))
    await response.aclose()
    assert how(await ask(question(**STREAM))) is None


@pytest.mark.parametrize("typed", [False, True])
async def test_all_that_a_stream_says_counts_as_its_size(typed: bool) -> None:
    """What is no content, such as probabilities, is kept, too, and takes memory."""
    heavy = b'"logprobs":"%s","delta"' % (b"x" * 3000)
    events = chat_events("Fine.").replace(b'"delta"', heavy)
    dialect = dialect_of("/v1/chat/completions")
    assert dialect is not None
    kept: list[Any] = []
    for max_bytes in (9000, 5000):
        inner = ReplayedStream(events, dialect)
        stream = RecordedStream(inner, dialect, max_bytes, kept.append)
        async for _ in stream.events() if typed else stream:
            pass
    assert len(kept) == 1


@pytest.mark.parametrize("typed", [False, True])
async def test_a_stream_that_breaks_off_is_not_kept(typed: bool) -> None:
    hosts = Hosts(chat_events("Fine.").replace(b"data: [DONE]\n\n", b""))
    hosts.stream_class = BrokenStream
    ask = cached(hosts)
    response = await ask(question(**STREAM))
    with pytest.raises(httpx.ReadError):
        await (typed_data_of(response) if typed else body_of(response))
    await response.aclose()
    assert how(await ask(question(**STREAM))) is None


async def test_a_plain_answer_is_given_again_as_a_stream() -> None:
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = chat_answer(reason="tool_calls")
    answer["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
    ask = cached(Hosts(answer), tool_calls=True)
    await ask(question())
    chunks = await typed_data_of(await ask(question(stream=True)))
    delta = {"role": "assistant", "tool_calls": [{"index": 0, **call}]}
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [delta, {}]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_stream_is_given_again_as_a_plain_answer() -> None:
    ask = cached(Hosts(chat_events("Fi", "ne.")))
    await body_of(await ask(question(**STREAM)))
    answer = (await ask(question())).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Fine."}
    assert answer["usage"]["prompt_tokens"] == 7
    assert answer["object"] == "chat.completion"


async def test_a_stream_without_usage_is_no_plain_answer() -> None:
    hosts = Hosts(chat_events("Fine.", usage=False))
    ask = cached(hosts)
    await body_of(await ask(question(stream=True)))
    hosts.answer = chat_answer()
    assert how(await ask(question(stream=True))) == "hit"
    assert how(await ask(question())) is None


OTHER_STREAMS: dict[str, list[dict[str, Any]]] = {
    "/v1/messages": [
        {"type": "message_start", "message": {"usage": {"input_tokens": 1}}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    ],
    "/v1/responses": [
        {"type": "response.created", "response": {"object": "response", "status": "in_progress"}},
        {"type": "response.output_text.delta", "delta": "x"},
        {
            "type": "response.completed",
            "response": {"object": "response", "status": "completed", "output": []},
        },
    ],
    "/v1/completions": [{"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}],
}


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("path", OTHER_STREAMS)
async def test_a_stream_of_another_dialect_is_given_again_as_it_was(path: str, typed: bool) -> None:
    events = OTHER_STREAMS[path]
    names = [f"event: {event['type']}\n" if "type" in event else "" for event in events]
    data = [f"data: {json.dumps(event, separators=(',', ':'))}\n\n" for event in events]
    body = "".join(map("".join, zip(names, data, strict=True))).encode()
    body += b"" if names[0] else b"data: [DONE]\n\n"
    ask = cached(Hosts(body))
    first = await ask(question(path, stream=True))
    await (typed_data_of(first) if typed else body_of(first))
    again = await ask(question(path, stream=True))
    assert (how(again), await typed_data_of(again)) == ("hit", events)
    assert await body_of(again) == body


async def test_an_answer_that_should_be_a_stream_and_is_none_goes_through() -> None:
    hosts = Hosts(httpx.Response(503))
    response = await cached(hosts)(question(**STREAM))
    assert response.status_code == 503
