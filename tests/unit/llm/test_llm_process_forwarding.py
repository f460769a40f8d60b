import asyncio
import json

import httpx
import pytest
from llm_site import ASK, CHAT, Site, llm_site

from tests.scripted_host import (
    Exchange,
    Step,
    answer,
    chat,
    chat_events,
    chat_stream,
    completion,
    event,
    reset,
    silence,
    stream,
)


def ended(status: int) -> str:
    return f'llm_requests_total{{route="{CHAT}",status="{status}"}}'


async def broken_off(site: Site) -> bytes:
    """Return what comes of a stream before its connection breaks."""
    text = b""
    async with site.client.stream("POST", CHAT, json={**ASK, "stream": True}) as response:
        try:
            async for piece in response.aiter_raw():
                text += piece
        except httpx.RemoteProtocolError:
            return text
    raise AssertionError("the stream looks whole")


REFUSED = {"error": {"message": "no", "type": "invalid_request_error", "code": "odd"}}


async def test_a_request_goes_up_and_its_answer_comes_down_byte_for_byte() -> None:
    body = b'{"messages" : [{"role":"user","content":"\xc3\xa9"}],  "model":"m", "unknown": 1e2}'
    said = json.dumps({**completion("é"), "more": [1]}, indent=3).encode()
    up = {"content-type": "application/json", "openai-beta": "x=1", "x-request-id": "mine"}
    async with llm_site([answer(said, headers={"Content-Type": "application/json"})]) as site:
        response = await site.client.post(CHAT, content=body, headers=up, params={"a": "b c"})
    (request,) = site.hosts[0].requests
    assert (request.body, request.path) == (body, f"{CHAT}?a=b+c")
    assert {name: request.headers[name] for name in up} == up
    assert response.content == said
    assert response.headers["x-llm-host"] == "a"
    assert response.headers["x-llm-attempts"] == "1"
    assert response.headers["x-request-id"] == "mine"


async def test_a_stream_comes_down_byte_for_byte_and_in_whole_events() -> None:
    text = "é" * 40
    async with llm_site([chat_stream(text, piece=7)]) as site:
        pieces: list[bytes] = []
        async with site.client.stream("POST", CHAT, json={**ASK, "stream": True}) as response:
            assert response.headers["content-type"] == "text/event-stream"
            assert response.headers["x-llm-attempts"] == "1"
            pieces = [piece async for piece in response.aiter_raw()]
        assert await site.metric("llm_in_flight") == 0
        assert await site.metric(ended(200)) == 1
        assert await site.metric('llm_tokens_total{client="default",kind="output"}') == 5
        assert await site.metric(f'llm_first_token_seconds_count{{route="{CHAT}"}}') == 1
    assert b"".join(pieces) == b"".join(chat_events(text))
    assert all(piece.endswith(b"\n\n") for piece in pieces)


async def test_a_host_that_fails_goes_unnoticed() -> None:
    async with llm_site([reset()], [chat("hello")]) as site:
        replies = [await site.chat() for _ in range(2)]
        metrics = [
            await site.metric(line)
            for line in ("llm_failovers_total", 'llm_host_attempt_errors_total{host="a"}')
        ]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert {reply.headers["x-llm-host"] for reply in replies} == {"b"}
    assert replies[0].headers["x-llm-attempts"] == "2"
    assert metrics[0] >= 1
    assert metrics[1] >= 1


RETRY_LATER: Step = answer({"error": {"message": "slow"}}, 429, {"Retry-After": "77"})


@pytest.mark.parametrize(
    ("step", "status", "code"),
    [
        (answer(REFUSED, 400), 400, "odd"),
        (answer({"error": {"message": "no", "code": "model_not_found"}}, 404), 404, None),
        (RETRY_LATER, 429, None),
        (answer({"error": {"message": "bad key"}}, 401), 401, None),
        (answer({"error": {"message": "broken"}}, 500), 500, None),
        (answer(b"<html>", 200), 502, "invalid_response"),
        (reset(), 502, None),
        (silence(), 504, "first_token_timeout"),
    ],
)
async def test_an_error_has_the_right_status_and_openais_shape(
    step: Step, status: int, code: str | None
) -> None:
    async with llm_site([step], max_retries=0, read_timeout=0.3) as site:
        response = await site.chat()
        assert await site.metric("llm_in_flight") == 0
    assert response.status_code == status
    error = response.json()["error"]
    assert error["message"]
    assert code is None or error["code"] == code
    assert response.headers["x-llm-attempts"] == "1"
    if status == 429:
        assert response.headers["retry-after"] == "77"


@pytest.mark.parametrize("settings", [{"api_key": "host's"}, {"api_keys": "mine"}])
async def test_a_host_that_refuses_our_key_is_no_fault_of_the_client(
    settings: dict[str, str],
) -> None:
    refusal = answer({"error": {"message": "bad key"}}, 401)
    async with llm_site([refusal], **settings) as site:
        response = await site.chat({"authorization": "Bearer mine"})
    assert (response.status_code, response.json()["error"]["code"]) == (502, "host_key")
    sent = site.hosts[0].requests[0].headers.get("authorization")
    assert sent == ("Bearer host's" if "api_key" in settings else None)


async def test_no_host_at_all_is_503_and_says_when_to_come_back() -> None:
    async with llm_site([chat("hello")]) as site:
        site.service.client.disable_host("a")
        ready = await site.client.get("/health/ready")
        response = await site.chat()
        message = await site.client.post("/v1/messages", json=ASK)
    assert (ready.status_code, response.status_code, message.status_code) == (503, 503, 503)
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "no_host_available"
    assert message.json()["type"] == "error"
    assert message.json()["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize(
    ("ending", "fault"), [("reset", "broken"), ("fin", "broken"), ("stall", "silent")]
)
async def test_a_stream_that_breaks_off_ends_with_an_error_and_never_looks_whole(
    ending: str, fault: str
) -> None:
    script = chat_stream("abcdefgh", ending, after=2)  # type: ignore[arg-type]
    async with llm_site([script], read_timeout=0.5) as site:
        text = await broken_off(site)
        assert await site.metric(f'llm_errors_total{{fault="{fault}"}}') == 1
        assert await site.metric(ended(599)) == 1
    *events, last, rest = text.split(b"\n\n")
    assert (len(events), rest) == (3, b"")
    assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "server_error"


async def test_an_error_that_a_host_told_in_its_stream_is_not_told_twice() -> None:
    broken = {"error": {"message": "out of memory", "code": 500}}
    script = stream([*list(chat_events("abcd"))[:2], event(broken)])
    async with llm_site([script]) as site:
        text = await broken_off(site)
    assert text.count(b'"error"') == 1


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_the_host_is_left_at_once_when_the_client_hangs_up(is_streamed: bool) -> None:
    hanging = chat_stream("abcdefgh", "stall", after=2) if is_streamed else silence()
    async with llm_site([hanging]) as site:
        asking = asyncio.create_task(site.chat(stream=is_streamed))
        await site.hosts[0].until(lambda: bool(site.hosts[0].requests))
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.wait([asking])
        async with asyncio.timeout(1):
            await site.hosts[0].until_idle()
        assert await site.metric(ended(499)) == 1
        assert await site.metric("llm_in_flight") == 0
        assert await site.metric('llm_host_in_flight{host="a"}') == 0


async def test_the_models_of_all_hosts_are_listed_once() -> None:
    def models(*names: str) -> Step:
        return answer({"object": "list", "data": [{"id": name, "x": 1} for name in names]})

    async with llm_site([models("m", "n")], [models("n", "o")], [reset()]) as site:
        response = await site.client.get("/v1/models")
    assert [model["id"] for model in response.json()["data"]] == ["m", "n", "o"]
    assert response.json()["data"][0]["x"] == 1


async def test_anthropics_messages_pass_with_their_own_headers_and_errors() -> None:
    seen: list[dict[str, str]] = []

    async def step(exchange: Exchange) -> None:
        seen.append(exchange.headers)
        await answer({"type": "error", "error": {"type": "x", "message": "no"}}, 400)(exchange)

    async with llm_site([step]) as site:
        headers = {"anthropic-version": "2023-06-01", "x-api-key": "theirs"}
        response = await site.client.post("/v1/messages", json=ASK, headers=headers)
    assert seen[0]["anthropic-version"] == "2023-06-01"
    assert seen[0]["x-api-key"] == "theirs"
    assert (response.status_code, response.json()["error"]["message"]) == (400, "no")
