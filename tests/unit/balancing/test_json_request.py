"""Requests that the pool makes by itself are those that httpx would make."""

import math
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.json_request import json_body, request_of, with_body

PATH = "/v1/chat/completions?a=%20b"
CONTENTS: dict[str, dict[str, Any]] = {
    "an object": {"json": {"model": "m", "messages": [{"content": "grüß 🌍"}], "n": 1.5}},
    "an empty object": {"json": {}},
    "an array": {"json": [1, None, True]},
    "text": {"json": "hi"},
    "null": {"json": None},
    "nothing": {},
    "bytes": {"content": b"{}"},
    "a form": {"data": {"a": "b"}},
    "header fields": {"json": {"a": 1}, "headers": {"X-A": "b", "Content-Type": "text/x"}},
    "a query": {"json": {"a": 1}, "params": {"q": "c d"}},
    "extensions": {"json": {"a": 1}, "extensions": {"x": 1}},
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
@pytest.mark.parametrize("method", ["POST", "post", "GET"])
def test_a_request_is_the_one_that_httpx_makes(method: str, content: dict[str, Any]) -> None:
    theirs = httpx.Request(method, f"http://pool{PATH}", **content)
    ours = request_of(method, PATH, content)
    accepted = ours.headers.pop("accept-encoding", "gzip, deflate")
    assert accepted == "gzip, deflate"
    assert ours.headers == theirs.headers
    assert (ours.method, ours.url, ours.content) == (theirs.method, theirs.url, theirs.content)
    assert ours.extensions == theirs.extensions
    assert type(ours.stream) is type(theirs.stream)


@pytest.mark.parametrize("payload", [{"a": math.nan}, {"a": object()}, {"a": "\ud800"}])
def test_what_httpx_cannot_write_raises_the_same_error(payload: object) -> None:
    with pytest.raises((TypeError, ValueError)) as theirs:
        httpx.Request("POST", "http://pool/", json=payload)
    with pytest.raises(theirs.type, match=str(theirs.value)[:20]):
        request_of("POST", "/", {"json": payload})


def test_requests_to_the_same_path_share_nothing_that_changes() -> None:
    first = request_of("POST", PATH, {"json": {"a": 1}})
    first.headers["X-A"] = "b"
    first.extensions["x"] = 1
    second = request_of("POST", PATH, {"json": {"a": 1}})
    assert "x-a" not in second.headers
    assert not second.extensions


async def test_another_body_brings_its_length_and_leaves_the_request_as_it_was() -> None:
    def chunks() -> Any:
        yield b"{}"

    for content in (b'{"a":1}', chunks()):
        request = httpx.Request("POST", "http://pool/x", content=content, headers={"X-A": "b"})
        before = request.headers.multi_items()
        changed = with_body(request, json_body({"a": "ü"}))
        assert changed.content == b'{"a":"\xc3\xbc"}'
        assert b"".join([piece async for piece in changed.stream]) == changed.content  # type: ignore[union-attr]
        assert changed.headers["content-length"] == "10"
        assert "transfer-encoding" not in changed.headers
        assert changed.headers["x-a"] == "b"
        assert request.headers.multi_items() == before
