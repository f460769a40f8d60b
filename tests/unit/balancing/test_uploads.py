"""Bodies that are no JSON: read if they are short, and sent to a host under its own model."""

import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx2
import pytest

from shared.infrastructure.balancing import FallbackConfig
from shared.infrastructure.balancing.facts import facts_of
from shared.infrastructure.balancing.fallback import body_with_model
from shared.infrastructure.balancing.semantics import POOL, is_hedgeable
from shared.infrastructure.balancing.uploads import content_of, model_in
from shared.infrastructure.http.extensions import REPLAYABLE
from shared.infrastructure.resilience import RetryConfig
from tests.scripted_host import answer, chat_stream
from tests.unit.balancing.pools import CHAT, pool_of
from tests.unit.balancing.scripted_hosts import call_for, request_of

TRANSCRIBE = "/v1/audio/transcriptions"


def form(**fields: str) -> httpx.Request:
    files = {"file": ("a.wav", io.BytesIO(b"x" * 1000))}
    return httpx.Request("POST", "http://pool/", data=fields, files=files)


async def pieces() -> AsyncIterator[bytes]:
    yield b'{"model":"m","messages":[],'
    yield b'"stream":true}'


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_a_short_form_is_had_as_bytes_and_a_long_one_is_not(library: Any) -> None:
    for size, is_short in ((0, True), (10_000, True), (9 * 2**20, False)):
        files = {"file": ("a.wav", io.BytesIO(b"x" * size))}
        request = library.Request("POST", "http://pool/", files=files)
        content = content_of(request.stream, request.headers)
        assert (content is not None) == is_short
        assert content is None or len(content) == int(request.headers["content-length"])


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_a_body_that_comes_by_and_by_is_left_alone(library: Any) -> None:
    headers = {"content-length": "41"}
    for given in ({}, headers):
        request = library.Request("POST", "http://pool/", content=pieces(), headers=given)
        assert content_of(request.stream, request.headers) is None


@pytest.mark.parametrize("model", ["w", "", "größer", 'a"b'])
def test_the_model_of_a_form_is_read_and_changed(model: str) -> None:
    content = form(language="de", model=model, prompt='{"model": "x"}').read()
    assert model_in(content) == (model or None)
    assert facts_of(TRANSCRIBE, content).model == (model or None)
    if model:
        changed = body_with_model(content, "another")
        assert model_in(changed) == "another"
        assert changed.replace(b"another", model.encode()) == content


def test_a_form_that_names_no_model_stays_as_it_is() -> None:
    for content in (form(language="de").read(), b"--", b"--x\r\n"):
        assert model_in(content) is None
        assert body_with_model(content, "another") == content


def test_a_body_that_can_be_sent_again_is_repeatable_but_never_sent_twice_at_once() -> None:
    call = call_for()
    call.facts = facts_of(CHAT, {"model": "m"})
    request = request_of(call)
    assert POOL.repeatable(request, OSError())
    assert is_hedgeable(request)
    request.stream = httpx.Request("POST", "http://pool/", content=pieces()).stream
    assert not POOL.repeatable(request, OSError())
    request.extensions[REPLAYABLE] = True
    assert POOL.repeatable(request, OSError())
    assert not is_hedgeable(request)


async def test_the_client_uploads_a_form_to_the_next_host_and_to_a_fallback_model() -> None:
    config = FallbackConfig(models={"w": ["v"]})
    scripts = answer({}, status=500), [answer({}, status=500), answer({"text": "heard"})]
    retry = RetryConfig(max_retries=1, base_delay=0.0)
    async with pool_of(*scripts, fallback_config=config, retry_config=retry) as (pool, a, b):
        file = io.BytesIO(b"x")
        response = await pool.post(TRANSCRIBE, files={"file": file}, data={"model": "w"})
    assert response.status_code == 200
    assert model_in(a.requests[0].body) == "w"
    assert [model_in(exchange.body) for exchange in b.requests] == ["w", "v"]


async def test_the_client_takes_a_body_in_pieces_and_its_stream_is_whole() -> None:
    async with pool_of(chat_stream("hello")) as (pool, _):
        given: dict[str, Any] = {"headers": {"content-length": "41"}}
        response = await pool.post(CHAT, content=pieces(), **given)
        assert response.text.endswith("data: [DONE]\n\n")
        async with pool.open(CHAT, content=pieces(), **given) as response:
            assert (await response.aread()).endswith(b"data: [DONE]\n\n")
