"""The key of an API: where it goes, when it is read, and where it never turns up."""

import asyncio
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from shared.infrastructure.http import HTTP, ResilientTransport
from shared.infrastructure.http.credentials import (
    ApiKeyLayer,
    ApiKeyRenewed,
    CredentialError,
)
from shared.infrastructure.http.extensions import REPLAYABLE
from shared.infrastructure.resilience import (
    ConfigurationError,
    Listeners,
    RetryConfig,
    RetryLayer,
    Verdict,
    stack,
)
from tests.unit.http.scripted_wire import Wire, once

KEY = "sk-top-secret"
ORIGIN = "https://api.example"


class Vault:
    """A provider that gives its keys in turn, the last for ever."""

    def __init__(self, *keys: Any) -> None:
        self.keys = keys
        self.asked = 0

    def __call__(self) -> Any:
        key = self.keys[min(self.asked, len(self.keys) - 1)]
        self.asked += 1
        if isinstance(key, Exception):
            raise key
        return key

    async def later(self) -> Any:
        await asyncio.sleep(0)
        return self()


def guarded(wire: Wire, key: Any, *above: Any, **options: Any) -> Callable[..., Any]:
    options.setdefault("origin", ORIGIN)
    return stack(wire, *above, ApiKeyLayer(key, **options), semantics=HTTP)


def post(library: ModuleType = httpx, **options: Any) -> Any:
    return library.Request("POST", f"{ORIGIN}/v1", **(options or {"json": {"a": 1}}))


@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_the_key_is_on_what_goes_to_the_wire_and_on_nothing_else(library: ModuleType) -> None:
    wire = Wire(200, library=library)
    request = post(library, json={"a": 1}, extensions={"timeout": {}})
    await guarded(wire, KEY)(request)
    (sent,) = wire.requests
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert "authorization" not in request.headers
    assert sent.content == request.content
    assert sent.stream is request.stream
    assert (sent.method, sent.url, sent.extensions) == ("POST", request.url, {"timeout": {}})


@pytest.mark.parametrize(
    ("options", "header", "value"),
    [
        ({}, "Authorization", f"Bearer {KEY}"),
        ({"scheme": "Token"}, "Authorization", f"Token {KEY}"),
        ({"scheme": ""}, "Authorization", KEY),
        ({"header": "x-api-key", "scheme": ""}, "X-Api-Key", KEY),
    ],
)
async def test_header_and_scheme_are_what_the_service_wants(
    options: dict[str, str], header: str, value: str
) -> None:
    wire = Wire(200)
    await guarded(wire, SecretStr(KEY), **options)(
        post(headers=[(header.upper(), "mine"), (header, "too")])
    )
    assert wire.requests[0].headers.get_list(header) == [value]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_provider_is_asked_before_every_attempt(asynchronous: bool) -> None:
    wire, vault = Wire(503, 503, 200), Vault("one", SecretStr("two"), "three")
    provider = (lambda: vault.later()) if asynchronous else vault  # noqa: PLW0108
    await guarded(wire, provider, RetryLayer(RetryConfig(base_delay=0.0)))(
        httpx.Request("GET", ORIGIN)
    )
    assert wire.sent() == ["Bearer one", "Bearer two", "Bearer three"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_refused_key_that_has_been_replaced_is_replaced_at_once(asynchronous: bool) -> None:
    wire, vault, heard = Wire(401, 200), Vault("old", "new"), []
    listeners = Listeners([heard.append])
    call = guarded(wire, vault.later if asynchronous else vault, listeners=listeners, name="a")
    assert (await call(post())).status_code == 200
    assert wire.sent() == ["Bearer old", "Bearer new"]
    assert wire.answers[0].is_closed
    assert heard == [ApiKeyRenewed("a")]
    assert "replaced" in str(heard[0])


@pytest.mark.parametrize(
    ("statuses", "key", "attempts"),
    [
        ((401,), KEY, 1),
        ((401,), Vault(KEY), 1),
        ((401,), Vault("one", "two", "three"), 2),
        ((403, 200), Vault("one", "two"), 1),
        ((401, 200), Vault("one", ValueError("sealed")), 1),
        ((401, 200), Vault("one", ConfigurationError("sealed")), 1),
        ((401, 200), Vault("one", ""), 1),
    ],
)
async def test_a_refusal_that_no_new_key_can_help_is_returned_as_it_is(
    statuses: tuple[int, ...], key: Any, attempts: int
) -> None:
    wire = Wire(*statuses)
    answer = await guarded(wire, key)(post())
    assert answer.status_code in {401, 403}
    assert answer is wire.answers[-1]
    assert not answer.is_closed
    assert len(wire.requests) == attempts


@pytest.mark.parametrize(("replayable", "status"), [(False, 401), (True, 200)])
async def test_a_body_that_can_be_read_only_once_is_not_sent_twice(
    replayable: bool, status: int
) -> None:
    wire = Wire(401, 200)
    request = post(content=once(b"data"), extensions={REPLAYABLE: replayable})
    assert (await guarded(wire, Vault("old", "new"))(request)).status_code == status


async def test_an_answer_is_closed_if_its_caller_leaves_while_the_key_is_read_again() -> None:
    wire, reading = Wire(401), asyncio.Event()

    async def provider() -> str:
        if wire.requests:
            reading.set()
            await asyncio.Event().wait()
        return KEY

    call = asyncio.ensure_future(guarded(wire, provider)(post()))
    await reading.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert wire.answers[0].is_closed


async def test_attempts_that_ask_at_the_same_time_share_one_answer() -> None:
    wire, vault = Wire(*[401] * 5, 200), Vault("old", "new")
    call = guarded(wire, vault.later)
    answers = await asyncio.gather(*[call(post()) for _ in range(5)])
    assert [answer.status_code for answer in answers] == [200] * 5
    assert vault.asked == 2
    await call(post())
    assert vault.asked == 3


async def test_a_refused_key_is_read_anew_though_a_reading_is_under_way() -> None:
    wire = Wire(401, 200)
    readings: list[asyncio.Future[str]] = []

    async def provider() -> str:
        readings.append(asyncio.get_running_loop().create_future())
        return await readings[-1]

    async def settle() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    call = guarded(wire, provider)
    first = asyncio.ensure_future(call(post()))
    await settle()
    readings[0].set_result("old")
    await asyncio.sleep(0)
    second = asyncio.ensure_future(call(post()))  # asks before the first is refused
    await settle()
    assert len(readings) == 3
    readings[2].set_result("new")
    assert (await first).status_code == 200
    readings[1].set_result("old")
    await second
    assert wire.sent() == ["Bearer old", "Bearer new", "Bearer old"]


@pytest.mark.parametrize(
    "bad",
    ["", f" {KEY}", f"{KEY}\n", f"{KEY}\r\nX-Evil: 1", f"{KEY}\x00", f"{KEY}\x7f", f"{KEY}é", "鍵"],
)
@pytest.mark.parametrize("wrap", [str, SecretStr])
async def test_what_no_header_can_carry_is_no_key(
    bad: str, wrap: Callable[[str], str | SecretStr]
) -> None:
    with pytest.raises(CredentialError):
        ApiKeyLayer(wrap(bad), origin=None)
    wire = Wire(200)
    with pytest.raises(CredentialError) as caught:
        await guarded(wire, lambda: wrap(bad))(post())
    assert KEY not in str(caught.value)
    assert wire.requests == []


@pytest.mark.parametrize("given_", [None, 7, b"bytes", ["k"], SecretStr(7)])  # type: ignore[arg-type]
async def test_a_provider_that_gives_no_text_is_told_so(given_: Any) -> None:
    with pytest.raises(CredentialError, match="no text but a"):
        await guarded(Wire(200), lambda: given_)(post())


@given(st.text())
def test_any_text_is_sent_as_it_is_or_refused_without_being_shown(tail: str) -> None:
    key = KEY + tail
    wire = Wire(200)
    shown = ""
    try:
        asyncio.run(guarded(wire, lambda: key)(post()))
    except CredentialError as error:
        shown = "".join(traceback.format_exception(error))
    assert KEY not in shown
    assert shown or wire.requests[0].headers.raw[-1][1] == f"Bearer {key}".encode("ascii")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_provider_that_fails_is_no_fault_of_the_service(asynchronous: bool) -> None:
    wire, vault = Wire(200), Vault(ConnectionError(f"vault said {KEY}"))
    provider = vault.later if asynchronous else vault
    call = guarded(wire, provider, RetryLayer(RetryConfig(base_delay=0.0)))
    with pytest.raises(CredentialError, match="ConnectionError") as caught:
        await call(post())
    assert HTTP.judge(caught.value) is Verdict.VOID
    assert (wire.requests, vault.asked) == ([], 1)


async def test_a_provider_may_say_itself_what_is_to_be_changed() -> None:
    with pytest.raises(ConfigurationError, match="set VAULT_TOKEN"):
        await guarded(Wire(200), Vault(ConfigurationError("set VAULT_TOKEN")))(post())


@pytest.mark.parametrize(
    ("url", "has_key"),
    [
        ("https://api.example/v1", True),
        ("https://api.example:443/v1", True),
        ("https://API.example/v1", True),
        ("http://api.example/v1", False),
        ("https://api.example:8443/v1", False),
        ("https://api.example.evil.test/v1", False),
        ("https://user@evil.test/v1", False),
    ],
)
@pytest.mark.parametrize("origin", ["https://api.example", "HTTPS://API.Example:443/v1?x#y"])
async def test_the_key_goes_to_its_own_origin_alone(origin: str, url: str, has_key: bool) -> None:
    wire = Wire(200)
    await guarded(wire, KEY, origin=origin)(httpx.Request("GET", url))
    assert (wire.sent() != [None]) is has_key


async def test_the_origin_may_be_one_without_tls() -> None:
    wire = Wire(200)
    call = guarded(wire, KEY, origin="http://[::1]:8000")
    for url in ("http://[::1]:8000/v1", "http://[::1]/v1"):
        await call(httpx.Request("GET", url))
    assert wire.sent() == [f"Bearer {KEY}", None]


async def test_without_an_origin_the_key_goes_wherever_the_requests_go() -> None:
    wire = Wire(200)
    await guarded(wire, KEY, origin=None)(httpx.Request("GET", "http://[::1]:8000/"))
    assert wire.sent() == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    "options",
    [
        {"origin": "api.example"},
        {"origin": "ftp://api.example"},
        {"origin": "https://"},
        {"origin": "https://a:b"},
        {"origin": "https://[::1"},
        {"origin": "https://bücher.example"},
        {"header": ""},
        {"header": "x api"},
        {"header": "x:y"},
        {"scheme": "Bearer "},
        {"scheme": "Bär"},
    ],
)
def test_a_layer_that_cannot_work_is_not_made(options: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        ApiKeyLayer(KEY, **{"origin": ORIGIN, **options})


async def test_a_redirect_to_another_origin_takes_no_key_along() -> None:
    seen: list[tuple[str, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, request.headers.get("x-api-key")))
        location = {"Location": "https://evil.test/"}
        return httpx.Response(302, headers=location) if len(seen) == 1 else httpx.Response(200)

    layer = ApiKeyLayer(KEY, origin=ORIGIN, header="x-api-key", scheme="")
    transport = ResilientTransport(httpx.MockTransport(answer), layer)
    async with httpx.AsyncClient(transport=transport, follow_redirects=True) as client:
        response = await client.get(ORIGIN)
    assert seen == [("api.example", KEY), ("evil.test", None)]
    requests = [response.request, *[earlier.request for earlier in response.history]]
    assert not any("x-api-key" in request.headers for request in requests)
