import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.infrastructure.balancing.dialects import dialect_of
from shared.infrastructure.balancing.facts import facts_of

CHAT = "/v1/chat/completions"
PATHS = {
    "/v1/chat/completions": "openai.chat",
    "/openai/deployments/x/chat/completions": "openai.chat",
    "/chat/completions": "openai.chat",
    "/v1/chat/completions/": "openai.chat",
    "/v1/completions": "openai.completions",
    "/v1/embeddings": "openai.embeddings",
    "/v1/responses": "openai.responses",
    "/v1/messages": "anthropic.messages",
    "/anthropic/v1/messages": "anthropic.messages",
    "/v1/threads/t_1/messages": None,
    "/v1/threads/t_1/messages/": None,
    "/v1/messages/count_tokens": None,
    "/v1/models": None,
    "/v1/rechat/completionsx": None,
    "/": None,
    "": None,
}


@pytest.mark.parametrize(("path", "name"), PATHS.items())
def test_a_path_has_the_dialect_at_its_end(path: str, name: str | None) -> None:
    dialect = dialect_of(path)
    assert (dialect and dialect.name) == name


def test_what_is_asked_is_read_from_a_payload_or_from_its_bytes() -> None:
    payload = {"model": "m", "stream": True, "user": "u", "tools": [{}]}
    for body in (payload, json.dumps(payload).encode()):
        facts = facts_of(CHAT, body)
        assert (facts.model, facts.streamed, facts.affinity) == ("m", True, "u")
        assert facts.payload == payload
        assert facts.needs == {"tools"}


@pytest.mark.parametrize(
    "body", [None, b"", b"{", b"[1]", b"7", b"\xff", b"[" * 100_000, "{}", 7, [1], object()]
)
def test_of_what_is_no_json_object_nothing_is_known(body: object) -> None:
    facts = facts_of(CHAT, body)
    assert (facts.payload, facts.model, facts.streamed, facts.needs) == (None, None, False, set())
    assert facts.dialect is dialect_of(CHAT)


AFFINITY: list[tuple[dict[str, Any], str | None]] = [
    ({"prompt_cache_key": "k", "user": "u"}, "k"),
    ({"user": "u", "metadata": {"user_id": "x"}}, "u"),
    ({"safety_identifier": "s"}, "s"),
    ({"metadata": {"user_id": "x"}}, "x"),
    ({"user": 7, "metadata": ["user_id"]}, None),
    ({"user": "", "metadata": {"user_id": 7}}, None),
]


@pytest.mark.parametrize(("payload", "affinity"), AFFINITY)
def test_what_calls_have_in_common(payload: dict[str, Any], affinity: str | None) -> None:
    assert facts_of(CHAT, payload).affinity == affinity


KEYS = st.sampled_from(
    [
        *("model", "stream", "messages", "tools", "input", "prompt", "content", "role", "type"),
        *("metadata", "user", "n", "max_tokens", "response_format", "text", "format", "logprobs"),
        *("system", "tool_calls", "function", "instructions", "image_url", "output_config"),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@given(st.sampled_from(list(PATHS)), st.dictionaries(KEYS, VALUES, max_size=6))
def test_no_body_makes_it_fail(path: str, payload: dict[str, Any]) -> None:
    facts = facts_of(path, payload)
    assert facts.payload is payload
    dialect = facts.dialect
    if dialect is not None:
        assert isinstance(dialect.prompt(payload), str)
        assert dialect.answers(payload) >= 1
        most = dialect.max_output(payload)
        assert most is None or most > 0


@given(st.sampled_from(list(PATHS)), st.binary(max_size=30))
def test_no_bytes_make_it_fail(path: str, body: bytes) -> None:
    assert facts_of(path, body).dialect is dialect_of(path)
