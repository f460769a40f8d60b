"""The pool as a transport of both libraries: errors, time limits, uploads and live answers."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx2
import pytest

from shared.infrastructure.balancing import (
    AnswerTimeoutConfig,
    FallbackConfig,
    FirstTokenTimeoutError,
    InBandError,
    InvalidResponseError,
    LLMHost,
    NoHostAvailableError,
    StreamIdleTimeoutError,
    StreamTruncatedError,
    httpx2_transport,
    httpx_transport,
)
from shared.infrastructure.http import ReadTimeoutError, TimeoutConfig
from shared.infrastructure.http.httpx2 import HTTPX2
from shared.infrastructure.http.library import HTTPX
from shared.infrastructure.resilience import (
    AttemptTimeoutError,
    CallRefusedError,
    DeadlineExceededError,
    ServiceError,
)
from tests.scripted_host import (
    Exchange,
    ScriptedHost,
    Step,
    answer,
    chat,
    chat_stream,
    choice,
    event,
    silence,
    stream,
)

FLAVOURS: list[tuple[Any, Any]] = [(httpx, httpx_transport), (httpx2, httpx2_transport)]
CHAT = "http://pool/v1/chat/completions"
ASK: dict[str, Any] = {"model": "m", "messages": []}
STREAM: dict[str, Any] = {**ASK, "stream": True}

pytestmark = pytest.mark.parametrize(("library", "flavour"), FLAVOURS, ids=["httpx", "httpx2"])


def client(
    flavour: tuple[Any, Any], *hosts: ScriptedHost, timeout: Any = 30.0, **options: Any
) -> Any:
    library, module = flavour
    configs = options.pop("configs", None) or [
        LLMHost(name, host.url) for name, host in zip("ab", hosts, strict=False)
    ]
    transport = module.balanced_transport(configs, **options)
    return library.AsyncClient(transport=transport, timeout=timeout)


async def gone() -> ScriptedHost:
    async with ScriptedHost() as host:
        pass
    return host


ONCE: dict[str, Any] = {"retry_config": None}
FAILURES: dict[str, tuple[Step | None, dict[str, Any], type[ServiceError], str]] = {
    "first token": (
        silence(),
        {"answer_timeouts": AnswerTimeoutConfig(first_token=0.1)},
        FirstTokenTimeoutError,
        "ReadTimeout",
    ),
    "deadline": (
        silence(),
        {"timeout_config": TimeoutConfig(total=0.1)},
        DeadlineExceededError,
        "ReadTimeout",
    ),
    "no answer": (answer(b"<html>"), {}, InvalidResponseError, "RemoteProtocolError"),
    "refused": (
        chat("hi"),
        {"configs": [LLMHost("a", "http://a", models=frozenset({"other"}))]},
        NoHostAvailableError,
        "ConnectError",
    ),
}


@pytest.mark.parametrize("case", FAILURES.values(), ids=FAILURES)
async def test_every_error_is_of_its_own_class_and_of_the_librarys(
    library: Any, flavour: Any, case: Any
) -> None:
    step, options, own, theirs = case
    async with (
        ScriptedHost(step) as host,
        client((library, flavour), host, **ONCE, **options) as http,
    ):
        with pytest.raises(own) as caught:
            await http.post(CHAT, json=ASK)
    error = caught.value
    assert isinstance(error, getattr(library, theirs))
    assert type(error).__name__ == own.__name__
    assert error.request.url == CHAT
    assert error.trace is not None
    assert error.attempts == (0 if own is NoHostAvailableError else 1)


BROKEN = event({"error": {"message": "out of memory", "code": 500}})
CUT_OFF: dict[str, tuple[Step, type[ServiceError], str]] = {
    "idle": (chat_stream("hello", "stall", after=2), StreamIdleTimeoutError, "ReadTimeout"),
    "truncated": (
        chat_stream("hello", "fin", after=2),
        StreamTruncatedError,
        "RemoteProtocolError",
    ),
    "error inside": (
        stream([event(choice({"content": "h"})), BROKEN], pause=0.05),
        InBandError,
        "RemoteProtocolError",
    ),
}


@pytest.mark.parametrize("case", CUT_OFF.values(), ids=CUT_OFF)
async def test_a_stream_that_breaks_off_raises_an_error_of_the_library(
    library: Any, flavour: Any, case: Any
) -> None:
    step, own, theirs = case
    timeouts = AnswerTimeoutConfig(idle=0.1)
    async with (
        ScriptedHost(step) as host,
        client((library, flavour), host, answer_timeouts=timeouts) as http,
    ):
        with pytest.raises(own) as caught:
            async with http.stream("POST", CHAT, json=STREAM) as response:
                await response.aread()
    assert isinstance(caught.value, getattr(library, theirs))
    assert caught.value.host == "a"


def test_an_adopted_error_keeps_what_is_known_and_its_cause(library: Any, flavour: Any) -> None:
    theirs = HTTPX2 if library is httpx2 else HTTPX
    request = library.Request("GET", "http://pool/")
    refused = NoHostAvailableError({"a": "open"}, retry_after=3.0)
    refused.attempts, refused.earlier = 2, (ValueError("first"),)
    refused.add_note("a note")
    refused.__cause__ = KeyError("why")
    error: Any = theirs.adopted(refused, request)
    assert type(error).__bases__ == (NoHostAvailableError, library.ConnectError)
    assert (error.reasons, error.retry_after) == ({"a": "open"}, 3.0)
    assert (error.attempts, error.earlier) == (2, refused.earlier)
    assert (str(error), error.__notes__, error.request) == (str(refused), ["a note"], request)
    assert error.__cause__ is refused
    assert refused.__cause__ is not None
    assert theirs.adopted(error, request) is error


def test_an_error_of_the_other_library_keeps_its_own_class(library: Any, flavour: Any) -> None:
    this, other = (HTTPX2, HTTPX) if library is httpx2 else (HTTPX, HTTPX2)
    kinds: list[tuple[type[ServiceError], str]] = [
        (ReadTimeoutError, "ReadTimeout"),
        (InvalidResponseError, "RemoteProtocolError"),
        (AttemptTimeoutError, "ReadTimeout"),
        (CallRefusedError, "ConnectError"),
    ]
    for kind, name in kinds:
        error = this.adopted(other.error_class(kind)("why"), library.Request("GET", "http://a/"))
        assert type(error).__bases__ == (kind, getattr(library, name))
        assert str(error) == "why"


async def test_a_shorter_time_limit_of_the_client_holds(library: Any, flavour: Any) -> None:
    async with (
        ScriptedHost(silence()) as host,
        client((library, flavour), host, timeout=0.1, **ONCE) as http,
    ):
        for body in (ASK, STREAM):
            with pytest.raises(FirstTokenTimeoutError):
                await asyncio.wait_for(http.post(CHAT, json=body), 5.0)


async def test_a_longer_time_limit_of_the_client_changes_nothing(
    library: Any, flavour: Any
) -> None:
    timeouts = TimeoutConfig(read=0.1)
    async with (
        ScriptedHost(silence()) as host,
        client((library, flavour), host, timeout=None, timeout_config=timeouts, **ONCE) as http,
    ):
        with pytest.raises(FirstTokenTimeoutError):
            await asyncio.wait_for(http.post(CHAT, json=ASK), 5.0)


@pytest.mark.parametrize(("said", "expected"), [(None, "false"), ("true", "true")])
async def test_an_error_answer_tells_the_sdk_above_not_to_retry(
    library: Any, flavour: Any, said: str | None, expected: str
) -> None:
    headers = {} if said is None else {"x-should-retry": said}
    async with (
        ScriptedHost(answer({}, status=503, headers=headers)) as host,
        client((library, flavour), host, **ONCE) as http,
    ):
        assert (await http.post(CHAT, json=ASK)).headers["x-should-retry"] == expected


async def test_an_upload_fails_over_with_the_hosts_own_model(library: Any, flavour: Any) -> None:
    file = io.BytesIO(b'\r\nContent-Disposition: form-data; name="model"\r\n\r\nfile')
    async with ScriptedHost(answer({}, status=500)) as bad, ScriptedHost(answer({})) as good:
        configs = [
            LLMHost("a", bad.url, models={"large": "a-1"}),
            LLMHost("b", good.url, models={"large": "b-1"}),
            LLMHost("c", "http://c", models=frozenset({"other"})),
        ]
        aliases = FallbackConfig(aliases={"w": "large"})
        async with client((library, flavour), configs=configs, fallback_config=aliases) as http:
            response = await http.post(
                "http://pool/v1/audio/transcriptions",
                data={"model": "w", "language": "de"},
                files={"file": ("a.wav", file)},
            )
    assert response.status_code == 200
    for host, model in ((bad, b"a-1"), (good, b"b-1")):
        (sent,) = host.requests
        assert b'name="model"\r\n\r\n%b\r\n--' % model in sent.body
        assert sent.body.count(b'name="model"') == 2
        assert b'name="language"\r\n\r\nde\r\n' in sent.body


async def test_a_stream_asked_for_in_pieces_is_whole(library: Any, flavour: Any) -> None:
    body = json.dumps(STREAM).encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield body[:5]
        yield body[5:]

    async with (
        ScriptedHost(chat_stream("hello")) as host,
        client((library, flavour), host, **ONCE) as http,
    ):
        headers = {"content-length": str(len(body))}
        response = await http.post(CHAT, content=pieces(), headers=headers)
    assert response.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["audio/speech", "audio/transcriptions"])
async def test_a_live_answer_of_no_known_dialect_comes_as_it_is_said(
    library: Any, flavour: Any, path: str
) -> None:
    heard = asyncio.Event()

    async def speech(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await heard.wait()
        await exchange.send(b"3\r\ntwo\r\n0\r\n\r\n")

    async with ScriptedHost(speech) as host, client((library, flavour), host) as http:
        asked = http.stream("POST", f"http://pool/v1/{path}", json={"model": "m", "input": "x"})
        async with asyncio.timeout(5.0), asked as response:
            pieces = response.aiter_raw()
            assert await anext(pieces) == b"one"
            heard.set()
            assert [piece async for piece in pieces] == [b"two"]


async def test_a_plain_answer_is_still_read_inside_the_attempt(library: Any, flavour: Any) -> None:
    cut = stream([event(choice({"content": "h"}))], "cut")
    async with (
        ScriptedHost(cut) as bad,
        ScriptedHost(chat("whole")) as good,
        client((library, flavour), bad, good) as http,
    ):
        response = await http.post(CHAT, json=ASK)
    assert response.json()["choices"][0]["message"]["content"] == "whole"
