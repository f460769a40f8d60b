"""The whole of an answer, out of pieces of all kinds."""

from typing import Any

import pytest

from shared.infrastructure.balancing.errors import InvalidStreamError
from shared.infrastructure.balancing.typed.accumulate import AnswerBuilder
from shared.models import ChatCompletion, ChatCompletionChunk
from tests.scripted_host import choice


def built(*events: Any) -> dict[str, Any]:
    builder = AnswerBuilder()
    for event in events:
        builder.add(ChatCompletionChunk(event))
    answer = builder.completion()
    ChatCompletion.model_validate(answer)
    return answer


def message_of(*deltas: Any) -> dict[str, Any]:
    message: dict[str, Any] = built(*map(choice, deltas))["choices"][0]["message"]
    return message


def test_texts_add_up() -> None:
    message = message_of(
        {"role": "assistant", "content": "", "refusal": None},
        {"reasoning_content": "hm"},
        {"reasoning_content": "m"},
        {"content": "a", "tool_calls": None},
        {"content": "b"},
        {"refusal": "no"},
    )
    assert message == {
        "role": "assistant",
        "content": "ab",
        "reasoning_content": "hmm",
        "refusal": "no",
    }


def call(index: int | str | None, **fields: Any) -> dict[str, Any]:
    place = {} if index is None else {"index": index}
    function = {key: fields.pop(key) for key in ("name", "arguments") if key in fields}
    return {"tool_calls": [{**place, **fields, "function": function}]}


TOOL_CALLS = [
    {"id": "1", "type": "function", "function": {"name": "sum", "arguments": '{"a": 1}'}},
    {"id": "2", "type": "function", "function": {"name": "max", "arguments": "{}"}},
]


@pytest.mark.parametrize(
    "deltas",
    [
        [
            call(0, id="1", type="function", name="sum", arguments=""),
            call(0, arguments='{"a"'),
            call(1, id="2", type="function", name="max", arguments="{"),
            call(0, arguments=": 1}"),
            call(1, arguments="}"),
        ],
        [
            call(1, id="2", type="function", name="max", arguments="{}"),
            call(0, id="1", type="function", name="sum", arguments='{"a": 1}'),
        ],
        [
            call(0, id="1", type="function", name="sum", arguments='{"a"'),
            call(0, id="1", type="function", name="sum", arguments=": 1}"),
            call(1, id="2", type="function", name="max", arguments="{}"),
        ],
        [
            call(None, id="1", type="function", name="sum", arguments='{"a"'),
            call(None, arguments=": 1}"),
            call(None, id="2", type="function", name="max", arguments="{}"),
        ],
    ],
    ids=["interleaved", "out of order", "names repeated", "no index"],
)
def test_calls_of_tools_add_up_by_their_index(deltas: list[Any]) -> None:
    message = message_of({"role": "assistant", "content": None}, *deltas)
    assert message["tool_calls"] == TOOL_CALLS
    assert message["content"] is None


def test_several_answers_are_kept_apart() -> None:
    def piece(index: int, text: str, reason: str | None = None) -> dict[str, Any]:
        choices = [{"index": index, "delta": {"content": text}, "finish_reason": reason}]
        return {"choices": choices}

    answer = built(piece(1, "x"), piece(0, "a"), piece(1, "y", "length"), piece(0, "b", "stop"))
    assert [
        (one["index"], one["message"]["content"], one["finish_reason"]) for one in answer["choices"]
    ] == [(0, "ab", "stop"), (1, "xy", "length")]


def test_an_answer_that_never_came_is_none_of_them() -> None:
    only = {"choices": [{"index": 1, "delta": {"content": "x"}, "finish_reason": "stop"}]}
    assert [one["index"] for one in built(only)["choices"]] == [1]
    assert [one["index"] for one in built({"choices": []})["choices"]] == [0]


def test_what_the_head_leaves_empty_is_filled_in() -> None:
    blank = {"id": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [1]}
    said = {**choice({"content": "a"}), "id": "1", "created": 5, "system_fingerprint": "f"}
    for chunks in ((blank, said), (said, blank)):
        answer = built(*chunks, choice({}, "stop"))
        assert (answer["id"], answer["created"], answer["system_fingerprint"]) == ("1", 5, "f")


def test_another_id_and_name_at_the_same_place_are_another_call() -> None:
    calls = [
        call(0, id="a", name="f", arguments='{"x"'),
        call(0, id="b", arguments=":1}"),  # another name of the same
        call(0, id="c", name="g", arguments={"y": 2}),
    ]
    message = message_of(*calls)
    assert [one["function"] for one in message["tool_calls"]] == [
        {"name": "f", "arguments": '{"x":1}'},
        {"name": "g", "arguments": '{"y": 2}'},
    ]


def test_probabilities_add_up() -> None:
    def piece(token: str) -> dict[str, Any]:
        event = choice({"content": token})
        event["choices"][0]["logprobs"] = {"content": [{"token": token}], "refusal": None}
        return event

    answer = built(piece("a"), piece("b"))
    assert answer["choices"][0]["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_the_latest_usage_counts_and_an_explicit_zero_is_one() -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "cost": 0.1}
    early = {**choice({"content": "a"}), "usage": {"prompt_tokens": 9}}
    answer = built(early, {"choices": [], "usage": usage}, {"choices": [], "usage": None})
    assert answer["usage"] == usage


def test_the_name_is_the_first_and_the_model_the_last_that_was_said() -> None:
    first = {**choice({"content": "a"}), "id": "1", "model": "x", "system_fingerprint": "f"}
    last = {**choice({}, "stop"), "id": "2", "model": "y"}
    answer = built(first, last)
    assert (answer["id"], answer["model"], answer["system_fingerprint"]) == ("1", "y", "f")
    assert answer["object"] == "chat.completion"


def test_fields_of_tomorrow_add_up_by_their_form() -> None:
    message = message_of(
        {"audio": {"id": "9", "data": "ab"}, "citations": [1], "score": 1},
        {"audio": {"id": "9", "data": "cd"}, "citations": [2], "score": 2},
        {"reasoning_details": [{"index": 0, "type": "text", "text": "x"}]},
        {"reasoning_details": [{"index": 0, "type": "text", "text": "y"}]},
    )
    assert message["audio"] == {"id": "9", "data": "abcd"}
    assert message["citations"] == [1, 2]
    assert message["score"] == 2
    assert message["reasoning_details"] == [{"index": 0, "type": "text", "text": "xy"}]


@pytest.mark.parametrize("content", [7, ["a"], {"text": "a"}])
def test_what_is_no_text_is_no_content(content: Any) -> None:
    with pytest.raises(InvalidStreamError):
        built(choice({"content": content}))


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"text": "x"}
    for _ in range(depth):
        value = {"inner": value}
    return value


@pytest.mark.parametrize("depth", [3, 400])
def test_what_is_nested_deeply_comes_as_it_is(depth: int) -> None:
    assert message_of({"custom": nested(depth)})["custom"] == nested(depth)


def test_lists_of_all_sorts_are_kept() -> None:
    message = message_of({"custom": [1, {"index": 0, "text": "a"}, {"text": "b"}]})
    assert message["custom"] == [1, {"index": 0, "text": "a"}, {"text": "b"}]


def test_the_place_of_a_tool_call_may_be_written_as_text() -> None:
    pieces = [call("1", name="b"), call(0, name="a")]
    names = [one["function"]["name"] for one in message_of(*pieces)["tool_calls"]]
    assert names == ["a", "b"]


def test_a_text_where_something_else_was_begins_anew() -> None:
    assert message_of({"custom": {"a": 1}}, {"custom": "b"})["custom"] == "b"
