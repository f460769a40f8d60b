import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.infrastructure.balancing.dialects import (
    AnthropicMessages,
    Dialect,
    OpenAIChat,
    OpenAICompletions,
    OpenAIEmbeddings,
    OpenAIResponses,
)
from shared.infrastructure.balancing.dialects.payloads import parse_event
from shared.infrastructure.balancing.errors import InvalidResponseError, InvalidStreamError
from tests.scripted_host import choice, completion
from tests.unit.balancing.test_facts import VALUES

CHAT, TEXT, EMBED = OpenAIChat(), OpenAICompletions(), OpenAIEmbeddings()


def data(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


CONTENT: dict[str, tuple[dict[str, Any], int]] = {
    "text": ({"content": "Grüße"}, 5),
    "white space": ({"content": "\n"}, 1),
    "reasoning": ({"reasoning_content": "hm"}, 2),
    "reasoning and its details": ({"reasoning": "hm", "reasoning_details": [{"text": "hm"}]}, 2),
    "a refusal": ({"refusal": "no"}, 2),
    "the name of a tool": ({"tool_calls": [{"function": {"name": "f", "arguments": ""}}]}, 1),
    "arguments": ({"tool_calls": [{"function": {"arguments": '{"a"'}}]}, 4),
    "an older call": ({"function_call": {"name": "f", "arguments": "{}"}}, 3),
    "parts": ({"content": [{"type": "thinking", "thinking": [{"text": "hm"}]}]}, 2),
    "something of tomorrow": ({"smell": "roses"}, 5),
}


@pytest.mark.parametrize(("delta", "characters"), CONTENT.values(), ids=CONTENT)
def test_what_is_content(delta: dict[str, Any], characters: int) -> None:
    event = CHAT.read_event(None, data(choice({"role": "assistant", **delta})))
    assert (event.is_content, event.characters) == (True, characters)
    assert event[2:] == ((0,), (), False, None, None)


NO_CONTENT: dict[str, Any] = {
    "a role": choice({"role": "assistant", "content": None, "tool_calls": None}),
    "a blank": choice({"content": "", "reasoning_content": "", "tool_calls": []}),
    "an annotation": choice({"annotations": [{"type": "url_citation"}]}),
    "a filter's verdict": {"choices": [], "prompt_filter_results": [{"a": 1}]},
    "garbage choices": {"choices": "x"},
    "a number of choices": {"choices": 7},
    "choices that are none": {"choices": [7, None]},
    "a delta that is none": {"choices": [{"delta": 7}]},
    "nothing": {},
}


@pytest.mark.parametrize("chunk", NO_CONTENT.values(), ids=NO_CONTENT)
def test_what_is_no_content(chunk: dict[str, Any]) -> None:
    event = CHAT.read_event(None, data(chunk))
    assert event == (chunk, 0, (), (), False, None, None)


def test_an_end_and_why() -> None:
    assert CHAT.read_event(None, data(choice({}, "length"))).finished == (0,)
    for end in (b"[DONE]", b" [DONE]\r"):
        assert CHAT.read_event(None, end) == (None, 0, (), (), True, None, None)
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    assert CHAT.read_event(None, data({"choices": [], "usage": usage})).usage == usage
    assert CHAT.read_event(None, data({"choices": [], "usage": None})).usage is None


@pytest.mark.parametrize("text", [b"", b"OK", b"null", b"7", b'"x"', b"<html>"])
def test_what_does_not_even_begin_like_a_chunk_is_skipped(text: bytes) -> None:
    assert CHAT.read_event(None, text) == (None, 0, (), (), False, None, None)


@pytest.mark.parametrize(
    "text", [b"{", b'{"a": 1', b'{"a": 1} x', b"{'a': 1}", b"[1]", b'{"a": "\xff"}', b"[" * 100_000]
)
def test_what_begins_like_a_chunk_and_is_none_is_an_error(text: bytes) -> None:
    with pytest.raises(InvalidStreamError, match="not"):
        CHAT.read_event(None, text)


def test_what_json_has_no_numbers_for_is_taken_all_the_same() -> None:
    event = CHAT.read_event(None, b' {"choices": [{"delta": {"content": "x"}, "p": -Infinity}]} ')
    assert event.characters == 1


ERRORS: dict[str, tuple[Any, Any]] = {
    "OpenAI": ({"error": {"code": 429}}, {"code": 429}),
    "in one word": ({"error": "boom"}, {"message": "boom"}),
    "in one word, and a sentence": (
        {"error": "Bad", "message": "so bad"},
        {"message": "Bad: so bad"},
    ),
    "vLLM": ({"object": "error", "message": "x"}, {"object": "error", "message": "x"}),
    "OpenRouter": ({**choice({}, "error"), "error": {"code": 502}}, {"code": 502}),
    "in a choice": (
        {"choices": [{"finish_reason": "error", "error": {"code": 502}}]},
        {"code": 502},
    ),
    "a finish reason": (choice({}, "error"), {"message": "finish_reason is error"}),
    "in a choice that goes on": ({"choices": [{"delta": {}, "error": {"code": 1}}]}, {"code": 1}),
    "none": ({**choice({"content": "x"}), "error": None}, None),
}


@pytest.mark.parametrize(("body", "error"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_found_wherever_it_is(body: Any, error: Any) -> None:
    assert CHAT.read_event(None, data(body)).error == error
    assert CHAT.error_of(body) == error


NAMELESS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "FastAPI": ({"detail": "no memory"}, {"detail": "no memory", "message": "no memory"}),
    "a code": ({"code": 500, "message": "boom"}, {"code": 500, "message": "boom"}),
    "several": ({"errors": [{"message": "x"}]}, {"message": "x"}),
    "a type": ({"type": "error", "message": "boom"}, {"type": "error", "message": "boom"}),
    "a status": ({"status": "error", "id": "1"}, {"status": "error", "id": "1"}),
    "a word for it": ({"id": "1", "error_message": "x"}, {"message": "x"}),
}


@pytest.mark.parametrize(("event", "error"), NAMELESS.values(), ids=NAMELESS)
@pytest.mark.parametrize("name", [None, "error"])
@pytest.mark.parametrize("dialect", [CHAT, TEXT, AnthropicMessages(), OpenAIResponses()])
def test_an_event_that_is_no_piece_of_an_answer_is_an_error(
    dialect: Dialect, name: str | None, event: dict[str, Any], error: dict[str, Any]
) -> None:
    reported = dialect.read_event(name, data(event)).error
    assert reported is not None
    assert error.items() <= reported.items()


def test_an_event_named_an_error_is_one_whatever_it_holds() -> None:
    for event in ({}, {"object": "x"}, choice({"content": "x"})):
        assert CHAT.read_event("error", data(event)).error is not None


@pytest.mark.parametrize(
    "event", [{"type": "ping"}, {"object": "chat.completion.chunk"}, {"timings": {}}, {"usage": {}}]
)
def test_news_of_a_request_are_no_error(event: dict[str, Any]) -> None:
    assert CHAT.read_event(None, data(event)).error is None
    assert CHAT.read_event("ping", data({"at": 1})).error is None


def test_an_event_may_speak_for_several_answers() -> None:
    two = [
        {"index": 0, "delta": {"content": "a"}},
        {"index": 2, "delta": {"content": "b"}, "finish_reason": "stop"},
        {"index": None, "delta": {}, "finish_reason": "stop"},
    ]
    event = CHAT.read_event(None, data({"choices": two}))
    assert (event.said, event.finished) == ((0, 2), (2, 0))


def in_base64(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


NAN = float("nan")
TWO = {"input": ["a", "b"]}
NO_VECTORS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "one too few": ([[1.0]], TWO),
    "one too many": ([[1.0], [1.0]], {"input": "a"}),
    "one too many of tokens": ([[1.0], [1.0]], {"input": [1, 2]}),
    "not a number": ([[1.0], [NAN, 1.0]], TWO),
    "infinity": ([[1.0], [float("inf"), 1.0]], TWO),
    "nothing among numbers": ([[None, 1.0]], {"input": "a"}),
    "text among numbers": ([["x"]], {"input": "a"}),
    "a number without end": ([[10**400]], {"input": "a"}),
    "not a number in base64": ([in_base64(1.0, NAN)], {"input": "a"}),
    "no base64": (["not base64!"], {"input": "a"}),
    "half a number in base64": (["YWJj"], {"input": "a"}),
    "not a number among several vectors": ([[[1.0], [NAN]]], {}),
}


@pytest.mark.parametrize(("vectors", "payload"), NO_VECTORS.values(), ids=NO_VECTORS)
def test_vectors_that_are_none(vectors: list[Any], payload: dict[str, Any]) -> None:
    body = {"data": [{"embedding": vector} for vector in vectors]}
    with pytest.raises(InvalidResponseError, match="vector"):
        EMBED.check(body, payload)


def test_vectors_of_other_forms_are_taken() -> None:
    for vectors, payload in (
        ([[1.7e308, 1.7e308]], {"input": "a"}),
        ([[[1.0], [2.0]]], {"input": [[1, 2]]}),
        (["YWJj"], {"input": "a", "output_dtype": "int8"}),
        ([[1.0], [2.0]], {}),
    ):
        EMBED.check({"data": [{"embedding": vector} for vector in vectors]}, payload)


def test_what_a_chat_needs() -> None:
    image = {"role": "user", "content": [{"type": "text"}, {"type": "image_url"}]}
    schema = {"type": "json_schema", "json_schema": {}}
    assert CHAT.needs({"messages": [{"content": "hi"}], "tools": [], "logprobs": False}) == set()
    assert CHAT.needs({"tools": [{}]}) == CHAT.needs({"functions": [{}]}) == {"tools"}
    assert CHAT.needs({"messages": [image]}) == {"vision"}
    assert CHAT.needs({"response_format": schema}) == {"json_schema"}
    assert CHAT.needs({"response_format": {"type": "json_object"}}) == set()
    assert CHAT.needs({"logprobs": True}) == {"logprobs"}
    assert TEXT.needs({"logprobs": 0}) == {"logprobs"}
    assert TEXT.needs({}) == set()


def test_what_a_model_reads_stands_in_order() -> None:
    payload = {
        "tools": [{"name": "f"}],
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url"}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        ],
    }
    assert CHAT.prompt(payload) == '[{"name": "f"}]\nsystem: Be kind.\nuser: Hi\nassistant: f{}'
    assert TEXT.prompt({"prompt": ["a", [1, 2]]}) == "a\n1 2"
    assert EMBED.prompt({"input": [3, 4]}) == "3 4"


def test_a_prompt_without_a_bottom_is_read_as_far_as_it_makes_sense() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [{"content": deep}]
    tools: list[Any] = []
    tools.append(tools)
    payload = {"tools": tools, "messages": [{"role": "user", "content": deep}]}
    assert CHAT.prompt(payload) == "\nuser: "
    assert CHAT.content_length({"choices": [{"message": {"content": deep}}]}) == 0


def test_how_much_is_asked_for() -> None:
    assert CHAT.max_output({"max_completion_tokens": 5, "max_tokens": 9, "n": 2}) == 10
    assert CHAT.max_output({"max_tokens": 9}) == 9
    assert CHAT.max_output({"max_tokens": "9"}) is CHAT.max_output({}) is None
    assert TEXT.answers({"prompt": ["a", "b", "c"], "n": 2}) == 6
    assert TEXT.answers({"prompt": [1, 2, 3]}) == TEXT.answers({"prompt": "a"}) == 1
    assert EMBED.max_output({"input": "x"}) is None
    assert not EMBED.is_streamed({"stream": True})


def test_what_is_a_whole_answer() -> None:
    body = completion("Grüße")
    CHAT.check(body, {})
    assert CHAT.content_length(body) == 5
    assert CHAT.usage_of(body) == body["usage"]
    text = {"choices": [{"text": "ab"}, {"text": ""}]}
    TEXT.check(text, {})
    assert TEXT.content_length(text) == 2
    EMBED.check({"data": [{"embedding": [0.1]}, {"embedding": "AACAPw=="}]}, {"input": ["a", "b"]})


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (CHAT, {}),
        (CHAT, {"choices": [{"text": "x"}]}),
        (TEXT, {"choices": [{"message": {}}]}),
        (EMBED, {"data": []}),
        (EMBED, {"data": [{"embedding": []}]}),
        (EMBED, {"data": [{"embedding": [1.0]}, {}]}),
    ],
)
def test_what_is_none(dialect: Any, body: Any) -> None:
    with pytest.raises(InvalidResponseError, match="the answer has no"):
        dialect.check(body, {})


def test_the_end_mark_of_embeddings_is_no_embedding() -> None:
    assert EMBED.read_event(None, b"[DONE]").is_end
    assert EMBED.read_event(None, b'{"error": "x"}').error == {"message": "x"}


@given(st.dictionaries(st.sampled_from(["choices", "error", "object", "usage"]), VALUES))
def test_no_event_makes_it_fail(chunk: dict[str, Any]) -> None:
    text = data(chunk)
    event = CHAT.read_event(None, text)
    assert isinstance(event.characters, int)
    assert json.dumps(event.data) == json.dumps(parse_event(text))
    CHAT.error_of(chunk)
    CHAT.content_length(chunk)
    CHAT.usage_of(chunk)
