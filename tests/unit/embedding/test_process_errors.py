"""What is wrong with a request, or went wrong with it, is told in the shape of its route."""

from typing import Any

import pytest
from process_client import EMBED, POST, process, told

from services.embedding import (
    InvalidDimensionsError,
    QueueFullError,
    ServiceStoppedError,
    TextRejectedError,
)
from services.embedding.errors import NotOfferedError, TooManyTokensError, UnknownPromptError
from shared.infrastructure.http import ReadTimeoutError
from shared.infrastructure.local_embeddings import (
    InferenceError,
    InvalidTextError,
    MemoryPressureError,
    TextTooLongError,
)
from shared.infrastructure.resilience import CircuitOpenError, DeadlineExceededError


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"", 400, None),
        (b'{"input": NaN}', 400, None),
        (b'{"input": "\\ud800"}', 400, None),
        (b'{"input": "\xff"}', 400, None),
        (b"[" * 5000 + b"]" * 5000, 400, None),
        (b"[]", 400, None),
        ({}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": 7}, 400, "input"),
        ({"input": ["a", None]}, 400, "input[1]"),
        ({"input": ["a", 1]}, 400, "input[1]"),
        ({"input": [1, "a"]}, 400, "input"),
        ({"input": [1, True]}, 400, "input"),
        ({"input": [-1]}, 400, "input"),
        ({"input": [2**31]}, 400, "input"),
        ({"input": [[1], []]}, 400, "input[1]"),
        ({"input": [[1], "a"]}, 400, "input[1]"),
        ({"input": [[1], [1.5]]}, 400, "input[1]"),
        ({"input": ["a"] * 2049}, 400, "input"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": "a", "encoding_format": {"a": 1}}, 400, "encoding_format"),
        ({"input": "a", "dimensions": "8"}, 400, "dimensions"),
        ({"input": "a", "dimensions": True}, 400, "dimensions"),
        ({"input": "a", "model": 7}, 400, "model"),
        ({"input": "a", "model": "gpt"}, 404, "model"),
        ({"input": "a", "input_type": "passages"}, 400, "input_type"),
        ({"input": "a", "input_type": "query", "prompt_name": "q"}, 400, "prompt_name"),
        ({"input": "a", "truncate": "none"}, 400, "truncate"),
        ({"input": "a", "priority": 1}, 400, "priority"),
        ({"input": "a", "deadline_ms": 0}, 400, "deadline_ms"),
        ({"input": "a", "cache": "no"}, 400, "cache"),
        ({"input": "a", "normalize": 1}, 400, "normalize"),
        ({"input": "a", "embed_dtype": "fp8"}, 400, "embed_dtype"),
        ({"input": "a", "embed_dtype": "int8", "normalize": False}, 422, "normalize"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(
    body: Any, status: int, param: str | None
) -> None:
    async with process() as running:
        reply = await running.post(body)
        assert running.service.calls == []
    assert reply.status_code == status
    error = told("/v1/embeddings", reply)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": "a", "truncate": "END"}),
        ("/embed", {"inputs": "a", "truncate": False, "truncation_direction": "left"}),
        ("/v2/embed", {"texts": ["a"]}),
        ("/v2/embed", {"texts": ["a"], "input_type": "search_query", "embedding_types": []}),
        ("/v2/embed", {"texts": ["a"], "input_type": "search_query", "embedding_types": ["f"]}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}),
        ("/similarity", {"inputs": "a"}),
        ("/rerank", {"texts": ["a"]}),
        ("/rerank", {"query": "a", "texts": ["a"], "raw_scores": True}),
        ("/rerank", {"query": "a", "texts": ["a"], "top_n": 0}),
        ("/tokenize", {"inputs": ["a"], "add_special_tokens": False}),
    ],
)
async def test_the_other_routes_refuse_in_their_own_shape(path: str, body: Any) -> None:
    async with process() as running:
        reply = await running.post(body, path)
    assert reply.status_code == 400
    assert told(path, reply)["message"]


async def test_of_a_name_that_comes_twice_the_last_counts() -> None:
    async with process() as running:
        await running.post(b'{"input": "first", "input": "last"}')
        assert running.service.calls[0][0] == ["last"]


@pytest.mark.parametrize("path", EMBED)
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidTextError("text 1 is odd", 1), 400, "invalid_text"),
        (TextTooLongError(1, 900, 512), 422, "text_too_long"),
        (TextRejectedError("text 1 cannot be", 1), 422, "text_rejected"),
        (InvalidDimensionsError("dimensions must be less"), 422, "invalid_dimensions"),
        (UnknownPromptError("no such prompt"), 400, "unknown_prompt"),
        (TooManyTokensError("too many"), 413, "too_many_tokens"),
        (QueueFullError("secret", retry_after=2.2), 429, "queue_full"),
        (MemoryPressureError("secret"), 429, "memory_pressure"),
        (CircuitOpenError("secret", retry_after=2.2), 503, "circuit_open"),
        (ServiceStoppedError("secret"), 503, "service_stopped"),
        (ReadTimeoutError("secret host 10.0.0.1"), 502, "read_timeout"),
        (DeadlineExceededError("secret"), 504, "deadline_exceeded"),
        (InferenceError("secret path"), 500, "inference_failed"),
        (RuntimeError("secret path"), 500, "internal_error"),
    ],
)
async def test_a_failure_has_its_status_and_shows_nothing_of_our_insides(
    path: str, error: Exception, status: int, code: str
) -> None:
    async with process() as running:
        running.service.error = error
        reply = await running.post(EMBED[path], path)
    assert reply.status_code == status
    assert told(path, reply)["code"] == code
    assert "secret" not in reply.text
    if status in {429, 503}:
        waits = (reply.headers["retry-after"], reply.headers["retry-after-ms"])
        wanted = getattr(error, "retry_after", None)
        assert waits == (("3", "2200") if wanted else ("1", "1000"))
    if getattr(error, "index", None) is not None and path == "/v1/embeddings":
        assert reply.json()["error"]["param"] == "input[1]"


async def test_reranking_without_a_reranker_is_a_404_of_its_own() -> None:
    async with process() as running:
        running.service.error = NotOfferedError("no reranker is loaded")
        reply = await running.post(POST["/rerank"], "/rerank")
    assert (reply.status_code, reply.json()["error_type"]) == (404, "not_offered")


@pytest.mark.parametrize(
    "items", [["a b c d e f"] * 2, [1, 2, 3] * 4, [[1, 2], [3] * 9]], ids=["texts", "ids", "rows"]
)
async def test_a_request_of_too_many_tokens_is_refused_before_any_is_embedded(items: Any) -> None:
    async with process(max_request_tokens=10) as running:
        reply = await running.post({"input": items})
        assert running.service.calls == []
        assert (await running.post({"input": "a b"})).status_code == 200
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_many_tokens")


async def test_a_large_body_is_read_as_a_small_one_is() -> None:
    texts = [f"{number} " * 1000 for number in range(300)]
    async with process() as running:
        for path, field in (
            ("/v1/embeddings", "input"),
            ("/embed", "inputs"),
            ("/v2/embed", "texts"),
        ):
            body = {field: texts, "input_type": "search_query"}
            assert (await running.post(body, path)).status_code == 200
            assert running.service.calls[-1][0] == texts
        similar = {"inputs": {"source_sentence": "a", "sentences": texts}}
        assert len((await running.post(similar, "/similarity")).json()) == 300
        for wrong in (
            b"[" + b" " * 600_000 + b"]",
            b'{"input": ' + b" " * 600_000,
            b'{"input": [' + b"a" * 600_000,
        ):
            assert (await running.post(wrong)).status_code == 400


async def test_a_large_body_of_too_many_values_is_refused_unread() -> None:
    async with process(max_request_tokens=500, max_items=10) as running:
        bomb = await running.post(b'{"input": [' + b"[]," * 300_000 + b"[]]}")
    assert (bomb.status_code, bomb.json()["error"]["code"]) == (413, "too_many_values")
