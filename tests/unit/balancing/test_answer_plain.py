"""What is a plain answer and what is none, and how errors are read, at the guard."""

import gzip
import json
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.call import CALL, FAULT, PARSED
from shared.infrastructure.balancing.errors import InvalidResponseError
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.balancing.semantics import WireSemantics
from shared.infrastructure.http import ReadFailedError, UndecodableBodyError, UpstreamError
from shared.infrastructure.http.transport import Wire
from shared.infrastructure.resilience import DeadlineExceededError
from tests.scripted_host import completion
from tests.unit.balancing.answering import JSON, PLAIN, SSE, Answering, Piece

BODY = json.dumps(completion("Grüße 🎉")).encode()
HTML = {"Content-Type": "text/html"}


@pytest.mark.parametrize("buffered", [True, False])
async def test_an_answer_is_read_once_and_can_be_had_in_every_way(buffered: bool) -> None:
    host = Answering(BODY[:30], BODY[30:], headers=JSON)
    response = await host.send(PLAIN, buffered=buffered)
    assert response.extensions[PARSED] == response.json() == completion("Grüße 🎉")
    assert await response.aread() == BODY
    if not buffered:
        assert b"".join([piece async for piece in response.aiter_raw()]) == BODY
    assert host.attempt.usage == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert host.attempt.first_token_at == host.clock.now()
    assert host.body.is_closed
    assert host.clock.pending == 0


async def test_where_the_host_does_not_say_what_it_cost_the_characters_are_counted() -> None:
    body = json.dumps({**completion("Grüße 🎉"), "usage": None}).encode()
    host = Answering(body, headers=JSON)
    await host.send(PLAIN)
    assert (host.attempt.usage, host.attempt.characters) == (None, 7)


async def test_a_compressed_answer_is_unpacked() -> None:
    headers = {**JSON, "Content-Encoding": "gzip"}
    response = await Answering(gzip.compress(BODY), headers=headers).send(PLAIN)
    assert response.json() == completion("Grüße 🎉")


NO_ANSWERS: dict[str, tuple[list[Piece], dict[str, str], type[Exception]]] = {
    "nothing": ([], JSON, InvalidResponseError),
    "HTML": ([b"<html>502</html>"], HTML, InvalidResponseError),
    "HTML that is said to be JSON": ([b"<html>502</html>"], JSON, InvalidResponseError),
    "a part of it": ([BODY[:-9]], JSON, InvalidResponseError),
    "a lost connection": ([BODY[:-9], httpx.ReadError("reset")], JSON, ReadFailedError),
    "gzip garbage": ([BODY], {**JSON, "Content-Encoding": "gzip"}, UndecodableBodyError),
    "a list": ([b"[1]"], JSON, InvalidResponseError),
    "too deep a nest": ([b"[" * 100_000], HTML, InvalidResponseError),
    "not UTF-8": ([b'{"choices": "\xff"}'], HTML, InvalidResponseError),
    "no choices": ([b'{"choices": []}'], JSON, InvalidResponseError),
    "garbage choices": ([b'{"choices": "x"}'], JSON, InvalidResponseError),
    "a choice that says nothing": ([b'{"choices": [{}]}'], JSON, InvalidResponseError),
    "an event stream": ([b"data: {}\n\n"], SSE, InvalidResponseError),
}


@pytest.mark.parametrize(("pieces", "headers", "error"), NO_ANSWERS.values(), ids=NO_ANSWERS)
@pytest.mark.parametrize("buffered", [True, False])
async def test_what_is_no_answer_is_an_error_against_the_host(
    pieces: list[Piece], headers: dict[str, str], error: type[UpstreamError], buffered: bool
) -> None:
    host = Answering(*pieces, headers=headers)
    with pytest.raises(error) as caught:
        await host.send(PLAIN, buffered=buffered)
    assert caught.value.host == "a"
    assert host.body.is_closed
    assert host.clock.pending == 0


REPORTS: dict[str, tuple[Any, int, Fault]] = {
    "as OpenAI does": ({"error": {"code": 429}}, 429, Fault.THROTTLED),
    "as vLLM does": ({"object": "error", "message": "no", "code": 400}, 400, Fault.REJECTED),
    "by a name": (
        {"error": {"code": "context_length_exceeded"}},
        400,
        Fault.CONTEXT_WINDOW,
    ),
    "with a finish reason": (
        {"choices": [{"finish_reason": "error", "message": {"content": "x"}}]},
        500,
        Fault.BROKEN,
    ),
}


@pytest.mark.parametrize(("report", "status", "fault"), REPORTS.values(), ids=REPORTS)
async def test_an_error_with_status_200_gets_the_status_it_should_have_had(
    report: Any, status: int, fault: Fault
) -> None:
    headers = {**JSON, "Retry-After": "7", "Content-Length": "9999"}
    host = Answering(json.dumps(report).encode(), headers=headers)
    response = await host.send(PLAIN)
    assert (response.status_code, response.extensions[FAULT]) == (status, fault)
    assert response.headers["retry-after"] == "7"
    assert int(response.headers["content-length"]) == len(response.content)
    assert "error" in response.json()


ERRORS: dict[str, tuple[int, list[Piece], Fault]] = {
    "by its status": (429, [b"{}"], Fault.THROTTLED),
    "by its name": (
        400,
        [b'{"error": {"code": "content_policy_violation"}}'],
        Fault.CONTENT_FILTER,
    ),
    "bare": (400, [b'{"type": "overloaded_error"}'], Fault.OVERLOADED),
    "HTML": (503, [b"<html>"], Fault.OVERLOADED),
    "cut short": (503, [b"<ht", httpx.ReadError("reset")], Fault.OVERLOADED),
    "nested too deep": (500, [b"[" * 100_000], Fault.BROKEN),
    "without a body": (404, [], Fault.NO_MODEL),
}


@pytest.mark.parametrize(("status", "pieces", "fault"), ERRORS.values(), ids=ERRORS)
async def test_an_error_status_is_read_and_classified_and_stays_as_it_was(
    status: int, pieces: list[Piece], fault: Fault
) -> None:
    host = Answering(*pieces, status=status, headers=HTML)
    response = await host.send({"stream": True})
    assert (response.status_code, response.extensions[FAULT]) == (status, fault)
    content = b"".join(piece for piece in pieces if isinstance(piece, bytes))
    assert response.content == await response.aread() == content
    assert b"".join([piece async for piece in response.aiter_raw()]) == content
    assert host.body.is_closed


@pytest.mark.parametrize("payload", [PLAIN, {"stream": True}])
@pytest.mark.parametrize("pieces", [[60.0], [*[0.3, b"x"] * 100]])
async def test_an_error_whose_body_does_not_come_is_judged_by_its_head(
    payload: Any, pieces: list[Piece]
) -> None:
    host = Answering(*pieces, status=429, headers={**HTML, "Retry-After": "7"})
    response = await host.outcome(host.send(payload), 1.0)
    assert (response.status_code, response.extensions[FAULT]) == (429, Fault.THROTTLED)
    assert response.headers["retry-after"] == "7"
    assert host.attempt.first_token_at is None
    assert host.body.is_closed


async def test_a_deadline_within_the_body_of_an_error_is_a_deadline() -> None:
    host = Answering(60.0, status=429, headers=HTML)
    error = await host.outcome(host.send(PLAIN, deadline=host.clock.now() + 0.5), 0.5)
    assert isinstance(error, DeadlineExceededError)


async def test_vectors_are_counted_where_another_host_can_still_be_asked() -> None:
    body = b'{"data": [{"embedding": [1.0]}]}'
    host = Answering(body, headers=JSON)
    assert (await host.send({"input": "a"}, path="/v1/embeddings")).status_code == 200
    with pytest.raises(InvalidResponseError, match="asked for 2 vectors, got 1"):
        await host.send({"input": ["a", "b"]}, path="/v1/embeddings")


async def test_no_more_than_1_mib_of_an_error_is_read() -> None:
    host = Answering(*[b"x" * 65536] * 64, status=500, headers=HTML)
    assert len((await host.send({"stream": True})).content) == 2**20
    assert host.body.taken == 17


async def test_what_is_no_call_of_a_known_dialect_passes_as_it_is() -> None:
    host = Answering(b"<html>", headers=HTML)
    assert await (await host.send(PLAIN, path="/v1/rerank")).aread() == b"<html>"
    request = httpx.Request("POST", "http://a/v1/chat/completions", json=PLAIN)
    assert CALL not in request.extensions
    assert await (await host.guard.handle_async_request(request)).aread() == b"<html>"


async def test_a_status_between_answer_and_error_passes_as_it_is() -> None:
    host = Answering(b"later", status=202, headers=HTML)
    response = await host.send(PLAIN, buffered=True)
    assert (response.status_code, response.content) == (202, b"later")
    assert host.clock.pending == 0


async def test_a_request_whose_body_nobody_knows_gets_whatever_comes() -> None:
    payload: Any = None
    assert (await Answering(BODY, headers=JSON).send(payload)).extensions[PARSED]
    whole = b'data: {"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}\n\n'
    assert await Answering(whole).raw(payload=payload) == whole


async def test_a_wire_above_hands_a_checked_stream_on_as_it_is() -> None:
    host = Answering(b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\n')
    above = Wire(host.guard, WireSemantics())
    response = await host.send()
    request = httpx.Request(
        "POST", "http://a/v1/chat/completions", extensions=host.request.extensions
    )
    checked = await above(request)
    assert type(checked.stream) is type(response.stream)
    await checked.aclose()
    await response.aclose()
