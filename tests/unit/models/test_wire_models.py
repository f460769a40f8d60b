"""What hosts send passes through the models untouched, and what is no answer does not."""

from typing import Any

import pytest
from pydantic import ValidationError

from shared.models import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    FunctionCall,
    LLMResponse,
    RouteInfo,
    StreamRestarted,
    Usage,
)

ANSWER: dict[str, Any] = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "service_tier": "default",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": None,
                "reasoning_content": "hm",
                "annotations": [],
                "tool_calls": [
                    {
                        "id": "c",
                        "type": "function",
                        "function": {"name": "f", "arguments": "{}"},
                        "extra_content": {"signature": "x"},
                    }
                ],
            },
        }
    ],
    "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1, "image_tokens": 2}},
}
CHUNK: dict[str, Any] = {
    "id": "1",
    "created": 1,
    "model": "m",
    "obfuscation": "x",
    "choices": [{"index": 0, "delta": {"content": "hi", "custom": 1}, "finish_reason": None}],
}


def test_an_answer_passes_through_with_all_its_fields() -> None:
    assert ChatCompletion.model_validate(ANSWER).model_dump(exclude_unset=True) == ANSWER


def test_the_calls_of_tools_are_typed() -> None:
    (call,) = ChatCompletion.model_validate(ANSWER).choices[0].message.tool_calls or ()
    assert call.function is not None
    assert (call.id, call.function.name, call.function.arguments) == ("c", "f", "{}")


def test_the_route_is_no_part_of_the_json() -> None:
    answer = ChatCompletion.model_validate(ANSWER).with_route(RouteInfo(host="a"), parsed=[1])
    assert answer.model_dump(exclude_unset=True) == ANSWER
    assert "route" not in ChatCompletion.model_json_schema()["properties"]
    response = LLMResponse(text="", route=RouteInfo(host="a"))
    assert "route" not in response.model_dump()
    assert (answer.route, answer.parsed) == (RouteInfo(host="a"), [1])


def test_a_field_called_route_that_a_host_sends_is_its_own() -> None:
    answer = ChatCompletion.model_validate({**ANSWER, "route": "x"})
    assert answer.model_dump()["route"] == "x"
    assert answer.route == RouteInfo()


def test_a_chunk_is_a_view_of_its_event() -> None:
    chunk = ChatCompletionChunk(CHUNK)
    assert chunk.data is CHUNK
    assert (chunk.id, chunk.created, chunk.model, chunk.text) == ("1", 1, "m", "hi")
    assert chunk.obfuscation == "x"
    assert chunk.finish_reason is None
    assert chunk.usage is None
    assert chunk.choices is chunk.choices
    assert chunk.choices[0].delta.model_dump()["custom"] == 1
    assert chunk == ChatCompletionChunk(dict(CHUNK))
    assert chunk != ChatCompletionChunk({})
    with pytest.raises(AttributeError, match="no 'nothing'"):
        _ = chunk.nothing


@pytest.mark.parametrize("choices", [None, [], [{"index": 0}], [{"index": 0, "delta": None}]])
def test_a_chunk_that_says_nothing_has_no_text(choices: Any) -> None:
    assert ChatCompletionChunk({"choices": choices}).text == ""


def test_the_text_of_a_chunk_is_that_of_the_first_choice() -> None:
    event = {"choices": [{"index": 1, "delta": {"content": "x"}, "finish_reason": "stop"}]}
    chunk = ChatCompletionChunk(event)
    assert (chunk.text, chunk.finish_reason) == ("", None)


def test_a_restart_reads_like_an_empty_chunk() -> None:
    restarted = StreamRestarted(5, "b")
    assert (restarted.text, restarted.choices, restarted.usage) == ("", (), None)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"prompt_tokens": None, "completion_tokens": 5}, (0, 5, 0, 0, 0)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (0, 0, 0, 0, 0)),
        (
            {
                "prompt_tokens": 9,
                "total_tokens": 12,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": None},
            },
            (9, 0, 12, 4, 2),
        ),
        ({"prompt_tokens_details": None}, (0, 0, 0, 0, 0)),
    ],
)
def test_counts_that_do_not_apply_are_zero(counts: Any, expected: tuple[int, ...]) -> None:
    usage = Usage.model_validate(counts)
    assert (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    ) == expected


@pytest.mark.parametrize("count", ["many", 1.5, [], ""])
def test_what_is_no_count_is_an_error(count: Any) -> None:
    with pytest.raises(ValidationError):
        Usage.model_validate({"prompt_tokens": count})


def test_usage_adds_up() -> None:
    one = Usage.model_validate(
        {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 2},
        }
    )
    both = one + one
    assert (both.prompt_tokens, both.completion_tokens, both.total_tokens) == (6, 8, 14)
    assert (both.cached_tokens, both.cache_write_tokens, both.reasoning_tokens) == (2, 4, 4)


@pytest.mark.parametrize(
    "field",
    [{"temperature": -1}, {"top_p": 0}, {"n": 0}, {"max_tokens": 0}, {"messages": "hi"}],
)
def test_a_request_that_makes_no_sense_is_refused_before_it_is_sent(field: Any) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"messages": [], **field})


def test_what_is_beside_the_answer_never_costs_it() -> None:
    odd = {"id": 7, "created": 1.5, "usage": {"prompt_tokens": "n/a"}, "system_fingerprint": 5}
    choice = {**ANSWER["choices"][0], "index": None, "logprobs": []}
    answer = ChatCompletion.model_validate({**ANSWER, **odd, "choices": [choice]})
    assert (answer.id, answer.created, answer.usage) == ("7", None, None)
    assert (answer.choices[0].index, answer.choices[0].logprobs) == (0, None)
    assert ChatCompletionChunk({"usage": {"prompt_tokens": 1.5}}).usage is None


@pytest.mark.parametrize(
    ("arguments", "text"), [({"a": 1}, '{"a": 1}'), ([1], "[1]"), ("{", "{"), (None, None)]
)
def test_arguments_are_json_however_they_come(arguments: Any, text: str | None) -> None:
    assert FunctionCall.model_validate({"arguments": arguments}).arguments == text


def test_the_text_in_parts_is_their_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]
    answer = {"choices": [{"message": {"role": "assistant", "content": parts}}]}
    assert ChatCompletion.model_validate(answer).text == "ab"
    assert ChatCompletionChunk({"choices": [{"delta": {"content": [*parts, 7]}}]}).text == "ab"


@pytest.mark.parametrize("choices", ["x", 7, [7], [{"delta": 7}], [{"delta": {"content": 7}}]])
def test_garbage_has_no_text(choices: Any) -> None:
    assert ChatCompletionChunk({"choices": choices}).text == ""
