import json
from typing import Any

import pytest

from shared.infrastructure.balancing.dialects import OpenAIResponses
from shared.infrastructure.balancing.errors import InvalidResponseError
from tests.unit.balancing.answering import SSE, Answering, stream_of

DIALECT = OpenAIResponses()
USAGE = {"input_tokens": 3, "output_tokens": 5}
BODY = {
    "object": "response",
    "status": "completed",
    "output": [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Grüße"}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
    ],
    "usage": USAGE,
}


def event(kind: str, **fields: Any) -> bytes:
    text = json.dumps({"type": kind, **fields}, ensure_ascii=False)
    return f"event: {kind}\ndata: {text}\n\n".encode()


def read(kind: str, **fields: Any) -> Any:
    return DIALECT.read_event(kind, json.dumps({"type": kind, **fields}).encode())


@pytest.mark.parametrize(
    "kind",
    [
        "response.output_text.delta",
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
        "response.function_call_arguments.delta",
        "response.refusal.delta",
    ],
)
def test_a_delta_is_content(kind: str) -> None:
    assert read(kind, delta="abc")[1:3] == (3, (0,))
    assert read(kind, delta="")[1:3] == (0, ())


def test_a_whole_item_is_content_and_the_announcement_of_one_is_none() -> None:
    for kind in (
        "response.output_item.done",
        "response.image_generation_call.partial_image",
        "response.web_search_call.searching",
        "response.code_interpreter_call.interpreting",
        "response.reasoning_summary_text.done",
        "response.smell.rising",
    ):
        assert read(kind).is_content
    for kind in ("created", "in_progress", "queued", "output_item.added", "content_part.added"):
        assert not read(f"response.{kind}", response={"usage": None}).is_content
    for kind in ("ping", "keepalive"):
        assert not read(kind).is_content


def test_an_end_says_what_it_cost() -> None:
    for kind in ("response.completed", "response.incomplete"):
        end = read(kind, response=BODY)
        assert (end.finished, end.is_end, end.usage, end.error) == ((0,), True, USAGE, None)


ERRORS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("response.failed", {"response": {"error": {"code": "x"}}}, {"code": "x"}),
    ("response.failed", {}, {"message": "response.failed"}),
    ("error", {"code": "x"}, {"type": "error", "code": "x"}),
    ("error", {"error": {"code": "x"}}, {"code": "x"}),
]


@pytest.mark.parametrize(("kind", "fields", "error"), ERRORS)
def test_a_failure_is_an_error(kind: str, fields: Any, error: Any) -> None:
    assert read(kind, **fields).error == error


async def test_a_stream_ends_with_its_last_event_and_needs_no_end_mark() -> None:
    created = event("response.created", response={"instructions": "x" * 300_000})
    said = event("response.output_text.delta", delta="hi")
    host = Answering(created, said, event("response.completed", response=BODY), 60.0, headers=SSE)
    payload = {"stream": True, "input": "hi"}

    async def kinds() -> list[str]:
        response = await host.send(payload, path="/v1/responses")
        return [item.data["type"] async for item in stream_of(response).events() if item.data]

    assert await host.outcome(kinds(), 0.2) == [
        *("response.created", "response.output_text.delta", "response.completed")
    ]
    assert host.attempt.usage == USAGE


async def test_a_failure_before_the_first_word_becomes_a_status() -> None:
    failed = {"error": {"code": "rate_limit_exceeded", "message": "slow down"}}
    host = Answering(event("response.created"), event("response.failed", response=failed))
    response = await host.send({"stream": True}, path="/v1/responses")
    assert response.status_code == 429


def test_what_is_a_whole_answer() -> None:
    DIALECT.check(BODY, {})
    DIALECT.check({"status": "incomplete", "output": []}, {})
    assert DIALECT.content_length(BODY) == 10
    assert DIALECT.usage_of(BODY) == USAGE
    for body in ({}, {"output": "x"}, {"status": "completed", "output": []}):
        with pytest.raises(InvalidResponseError, match="no 'output'"):
            DIALECT.check(body, {})
    assert DIALECT.error_of({"status": "failed", "error": {"code": "x"}}) == {"code": "x"}
    assert DIALECT.error_of({"status": "failed", "error": None})
    assert DIALECT.error_of(BODY) is None


def test_what_is_asked_for() -> None:
    image = {"role": "user", "content": [{"type": "input_image"}]}
    form = {"format": {"type": "json_schema"}}
    assert DIALECT.needs({"input": [image], "tools": [{}], "text": form, "top_logprobs": 2}) == {
        *("vision", "tools", "json_schema", "logprobs")
    }
    assert DIALECT.needs({"input": "hi"}) == set()
    assert DIALECT.prompt({"instructions": "Be kind.", "input": "Hi"}) == (
        "system: Be kind.\nuser: Hi"
    )
    assert DIALECT.max_output({"max_output_tokens": 7}) == 7
    assert DIALECT.is_streamed({"stream": True})
