import json
from typing import Any

import pytest

from shared.infrastructure.balancing.dialects import AnthropicMessages
from shared.infrastructure.balancing.errors import InvalidResponseError, StreamTruncatedError
from tests.unit.balancing.answering import Answering, Piece, stream_of

DIALECT = AnthropicMessages()


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def read(kind: str, **fields: Any) -> Any:
    return DIALECT.read_event(kind, json.dumps({"type": kind, **fields}).encode())


START = event("message_start", message={"usage": {"input_tokens": 3, "output_tokens": 1}})
SAID = event("content_block_delta", delta={"type": "text_delta", "text": "hi"})
REASON = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5})
STOP = event("message_stop")


@pytest.mark.parametrize(
    ("delta", "characters"),
    [
        ({"type": "text_delta", "text": "abc"}, 3),
        ({"type": "thinking_delta", "thinking": "hm"}, 2),
        ({"type": "input_json_delta", "partial_json": '{"a"'}, 4),
        ({"type": "compaction_delta", "content": "so far"}, 6),
        ({"type": "text_delta", "text": ""}, 0),
        ({"type": "signature_delta", "signature": "x"}, 0),
        ({"type": "citations_delta", "citation": {"a": 1}}, 0),
        ({"type": []}, 0),
        ("garbage", 0),
    ],
)
def test_what_a_delta_says(delta: Any, characters: int) -> None:
    said = read("content_block_delta", delta=delta)
    assert (said.characters, said.is_content) == (characters, characters > 0)


def test_the_name_of_a_tool_is_content_and_an_empty_block_is_none() -> None:
    tool = {"type": "tool_use", "name": "f", "input": {}}
    assert read("content_block_start", content_block=tool)[1:3] == (1, (0,))
    assert not read("content_block_start", content_block={"type": "text", "text": ""}).is_content
    assert not read("ping").is_content


BLOCKS = {
    "thought that is kept secret": {"type": "redacted_thinking", "data": "abc"},
    "a tool of the host": {"type": "server_tool_use", "id": "1", "name": "web_search", "input": {}},
    "what it found": {"type": "web_search_tool_result", "tool_use_id": "1", "content": [{"a": 1}]},
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_whatever_a_block_brings_is_content(block: Any) -> None:
    assert read("content_block_start", content_block=block).is_content
    thinking = {"type": "thinking", "thinking": "", "signature": ""}
    assert not read("content_block_start", content_block=thinking).is_content


async def texts(host: Answering) -> list[str]:
    response = await host.send({"stream": True, "model": "m"}, path="/v1/messages")
    return [item.data["type"] async for item in stream_of(response).events() if item.data]


async def test_a_stream_ends_with_its_last_event_and_its_usage_is_put_together() -> None:
    host = Answering(START, event("ping"), SAID, REASON, STOP, 60.0)
    kinds = await host.outcome(texts(host), 0.2)
    assert kinds == ["message_start", "ping", "content_block_delta", "message_delta", *STOPPED]
    assert host.attempt.usage == {"input_tokens": 3, "output_tokens": 5}
    assert host.attempt.characters == 2


STOPPED = ["message_stop"]


@pytest.mark.parametrize("pieces", [[START], [START, SAID], [START, SAID, SAID[:-9]]])
async def test_a_stream_without_a_reason_to_stop_is_cut_short(pieces: list[Piece]) -> None:
    with pytest.raises(StreamTruncatedError):
        await texts(Answering(*pieces))
    assert await texts(Answering(START, SAID, REASON))


async def test_an_overloaded_host_says_so_before_its_first_word() -> None:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    host = Answering(START, event("error", error=error))
    response = await host.send({"stream": True}, path="/v1/messages")
    assert response.status_code == 503


def test_what_is_a_whole_answer() -> None:
    content = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "abc"},
        {"type": "tool_use", "name": "f", "input": {"a": 1}},
    ]
    body = {"content": content, "stop_reason": "end_turn", "usage": {"input_tokens": 3}}
    DIALECT.check(body, {})
    DIALECT.check({"content": [], "stop_reason": "end_turn"}, {})
    assert DIALECT.content_length(body) == 2 + 3 + 1 + len('{"a": 1}')
    assert DIALECT.usage_of(body) == {"input_tokens": 3}
    for wrong in ({}, {"content": []}, {"content": "x"}):
        with pytest.raises(InvalidResponseError, match="no 'content'"):
            DIALECT.check(wrong, {})
    error = {"type": "error", "error": {"type": "overloaded_error"}}
    assert DIALECT.error_of(error) == error["error"]
    assert DIALECT.error_of({"type": "error"}) == {"type": "error"}
    assert DIALECT.error_of(body) is None


def test_what_is_asked_for() -> None:
    image = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}
    payload = {"system": [{"type": "text", "text": "Be kind."}], "messages": [image]}
    assert DIALECT.needs({**payload, "tools": [{}]}) == {"vision", "tools"}
    assert DIALECT.needs({"output_config": {"format": {"type": "json_schema"}}}) == {"json_schema"}
    assert DIALECT.prompt(payload) == "system: Be kind.\nuser: Hi"
    assert DIALECT.max_output({"max_tokens": 7}) == 7
