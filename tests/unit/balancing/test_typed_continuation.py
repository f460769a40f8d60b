"""An answer that broke off, and goes on at another host as if it had not."""

from typing import Any

import pytest

from shared.infrastructure.balancing.errors import (
    NoHostAvailableError,
    StreamInterruptedError,
    StreamTruncatedError,
)
from shared.infrastructure.balancing.hosts.config import Capability
from shared.models import StreamRestarted
from tests.scripted_host import choice
from tests.unit.balancing.typed_scripts import (
    QUESTION,
    Reply,
    ScriptedPool,
    pool_with,
    refusing,
    saying,
)

CUT = StreamTruncatedError("cut")


async def continued(pool: ScriptedPool, payload: Any = None) -> str:
    async with pool.stream(payload, "continue") as stream:
        pieces = [piece async for piece in stream]
    assert not any(isinstance(piece, StreamRestarted) for piece in pieces)
    assert "".join(piece.text for piece in pieces) == stream.text
    return stream.text


async def test_another_host_goes_on_with_the_text() -> None:
    pool = pool_with(saying("Grüße aus", CUT), saying(" Wien"))
    async with pool.stream(recovery="continue") as stream:
        answer = await stream.get_final()
    assert answer.text == "Grüße aus Wien"
    rest = pool.requests[1]
    assert rest["messages"] == [
        *QUESTION["messages"],
        {"role": "assistant", "content": "Grüße aus"},
    ]
    assert (rest["continue_final_message"], rest["add_generation_prompt"]) == (True, False)
    assert Capability.PREFILL in pool.calls[1].facts.needs
    assert pool.pauses == 1


async def test_the_usage_is_that_of_both_together() -> None:
    pool = pool_with(saying("Grüße aus", CUT), saying(" Wien"))
    async with pool.stream(recovery="continue") as stream:
        chunks = [chunk async for chunk in stream]
        answer = await stream.get_final()
    assert answer.usage is not None
    assert chunks[-1].usage == answer.usage
    assert answer.usage.completion_tokens == 3 + 5  # nine characters are about three tokens
    assert answer.usage.prompt_tokens > 3
    assert answer.route.recovered
    assert answer.route.cost_estimated


SEAMS = [
    ("word ", " next", "word next"),
    ("word ", "next", "word next"),
    ("word  ", " next", "word  next"),
    ("word\n\n", "\n\nnext", "word\n\nnext"),
    ("word \n", "\nnext", "word \n\nnext"),
    ("wo", "rd next", "word next"),
    ("word ", "", "word "),
]


@pytest.mark.parametrize(("before", "after", "whole"), SEAMS)
async def test_nothing_is_doubled_or_missing_at_the_seam(
    before: str, after: str, whole: str
) -> None:
    pool = pool_with(saying(before, CUT), saying(after))
    assert await continued(pool) == whole
    assert pool.requests[1]["messages"][-1]["content"] == before.rstrip()


async def test_space_that_comes_in_pieces_is_not_doubled() -> None:
    rest = Reply([choice({"content": piece}) for piece in (" ", " ", " next")])
    pool = pool_with(saying("word  ", CUT), rest)
    assert await continued(pool) == "word   next"


async def test_the_first_token_is_that_which_the_caller_saw() -> None:
    pool = pool_with(saying("one ", CUT), saying("two ", CUT), saying("three"))
    async with pool.stream(recovery="continue") as stream:
        async for _ in stream:
            pass
    assert stream.route.time_to_first_token == stream.route.attempts[0].time_to_first_token == 1.0


async def test_halves_of_characters_are_passed_on_as_they_came() -> None:
    pool = pool_with(saying("a\ud83d\ude00", CUT), saying("!"))
    assert await continued(pool) == "a\ud83d\ude00!"
    assert pool.requests[1]["messages"][-1]["content"] == "a\U0001f600"


async def test_it_may_break_off_again() -> None:
    pool = pool_with(saying("one ", CUT), saying("two ", CUT), saying("three"))
    assert await continued(pool) == "one two three"
    assert pool.requests[2]["messages"][-1]["content"] == "one two"
    assert len(pool.requests[2]["messages"]) == 2


async def test_what_was_said_counts_against_the_limit() -> None:
    pool = pool_with(saying("a" * 40, CUT), saying("b"))
    await continued(pool, {**QUESTION, "max_tokens": 15})
    assert pool.requests[1]["max_tokens"] == 5


@pytest.mark.parametrize(
    "refusal",
    [
        refusing(400, "assistant prefill is not supported"),
        Reply(error=NoHostAvailableError({"b": "cannot do prefill"})),
    ],
)
async def test_a_refused_continuation_never_hides_what_went_wrong(refusal: Reply) -> None:
    pool = pool_with(saying("abcd", CUT), refusal)
    with pytest.raises(StreamInterruptedError, match="cut") as caught:
        await continued(pool)
    assert caught.value.__cause__ is CUT
    assert caught.value.partial == "abcd"
    assert caught.value.attempts == 2
    assert not pool.open


NOT_PLAIN_REQUESTS: list[dict[str, Any]] = [
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"response_format": {"type": "json_schema", "json_schema": {}}},
    {"response_format": {"type": "json_object"}},
    {"n": 2},
    {"logprobs": True},
    {"reasoning_effort": "high"},
    {"modalities": ["text", "audio"]},
]


@pytest.mark.parametrize("more", NOT_PLAIN_REQUESTS)
async def test_only_plain_text_is_asked_to_go_on(more: dict[str, Any]) -> None:
    pool = pool_with(saying("abcd", CUT), saying("ef"))
    with pytest.raises(StreamInterruptedError):
        await continued(pool, {**QUESTION, **more})
    assert len(pool.requests) == 1


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "hm"},
        {"tool_calls": [{"index": 0, "function": {"name": "f"}}]},
        {"refusal": "no"},
        {"content": "   "},
    ],
)
async def test_an_answer_that_is_no_plain_text_is_not_continued(delta: dict[str, Any]) -> None:
    pool = pool_with(Reply([choice(delta)], CUT), saying("ef"))
    with pytest.raises(StreamInterruptedError):
        await continued(pool)
    assert len(pool.requests) == 1
