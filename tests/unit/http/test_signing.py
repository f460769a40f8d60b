"""Signing requests on the way out: RFC 9421 and RFC 9530."""

import asyncio
import hashlib
import pickle
import traceback
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest
from pydantic import SecretBytes, SecretStr

from shared.infrastructure.http import HTTP
from shared.infrastructure.http.credentials import ApiKeyLayer
from shared.infrastructure.http.extensions import REPLAYABLE
from shared.infrastructure.http.signing import (
    HMACSigner,
    Message,
    SignatureVerifier,
    SigningError,
    SigningLayer,
)
from shared.infrastructure.http.signing.message import (
    content_digest,
)
from shared.infrastructure.resilience import (
    ConfigurationError,
    HedgeConfig,
    HedgeLayer,
    RetryConfig,
    RetryLayer,
    Verdict,
    describe,
    stack,
)
from shared.infrastructure.testing import FakeClock
from tests.unit.http.scripted_wire import Wire, once

SECRET = b"a secret of 32 bytes, no less   "
NOW = 1_618_884_473.0


def signer(**options: Any) -> HMACSigner:
    options.setdefault("wall_clock", lambda: NOW)
    return HMACSigner("client-1", SECRET, **options)


def verifier(**options: Any) -> SignatureVerifier:
    options.setdefault("wall_clock", lambda: NOW)
    return SignatureVerifier({"client-1": SECRET}, **options)


class Twice:
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"re"
        yield b"play"


async def test_a_signature_is_of_time_nonce_algorithm_and_key() -> None:
    fields = await signer(new_nonce=lambda: 'n"1', expires_in=60, label="me").sign(
        httpx.Request("POST", "https://a.example/b?c", content=b"hi")
    )
    assert fields["Signature-Input"] == (
        'me=("@method" "@authority" "@path" "@query" "content-digest");created=1618884473'
        ';expires=1618884533;nonce="n\\"1";alg="hmac-sha256";keyid="client-1"'
    )
    assert fields["Content-Digest"] == content_digest(hashlib.sha256(b"hi").digest())
    assert fields["Signature"].startswith("me=:")


@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"json": {"a": 1}},
        {"content": b""},
        {"content": Twice(), "extensions": {REPLAYABLE: True}},
        {"files": {"f": b"data"}, "extensions": {REPLAYABLE: True}},
        {"params": {"q": "ä b/c"}},
    ],
)
async def test_a_signed_request_is_verified(library: ModuleType, options: dict[str, Any]) -> None:
    wire = Wire(library=library)
    call = stack(wire, SigningLayer(signer()), semantics=HTTP)
    request = library.Request("PUT", "https://Api.example/ü?x", **options)
    await call(request)
    (sent,) = wire.requests
    await sent.aread()
    verified = verifier().verify(Message.of(sent))
    assert verified.keyid == "client-1"
    assert ("content-digest" in verified.components) is bool(sent.content)
    assert "signature" not in request.headers


async def test_a_digest_of_the_callers_own_is_signed_as_it_is() -> None:
    own = content_digest(hashlib.sha256(b"one-shot").digest())
    wire = Wire()
    call = stack(wire, SigningLayer(signer()), semantics=HTTP)
    headers = {"Content-Digest": own}
    await call(
        httpx.Request("PUT", "https://a.example", content=once(b"one-shot"), headers=headers)
    )
    (sent,) = wire.requests
    await sent.aread()
    assert "content-digest" in verifier().verify(Message.of(sent)).components
    assert sent.headers.get_list("content-digest") == [own]


async def test_the_digest_of_no_body_is_signed_if_asked_for() -> None:
    names = ("@method", "content-digest")
    fields = await signer(components=names).sign(httpx.Request("GET", "https://a.example"))
    assert fields["Content-Digest"] == content_digest(hashlib.sha256(b"").digest())
    assert fields["Signature-Input"].startswith('sig1=("@method" "content-digest");')


@pytest.mark.parametrize(
    ("options", "components", "advice"),
    [
        ({"content": lambda: once(b"data")}, ("@method",), "read only once.*aread.*Content-Digest"),
        ({}, ("x-tenant",), 'no header field "x-tenant"'),
        ({"headers": {"x-tenant": b"\xe9"}}, ("x-tenant",), "printable ASCII"),
    ],
)
async def test_what_cannot_be_signed_is_not_sent_and_says_what_to_do(
    options: dict[str, Any], components: tuple[str, ...], advice: str
) -> None:
    wire = Wire()
    call = stack(wire, SigningLayer(signer(components=components)), semantics=HTTP)
    made = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(SigningError, match=advice) as caught:
        await call(httpx.Request("POST", "https://a.example", **made))
    assert HTTP.judge(caught.value) is Verdict.VOID
    assert wire.requests == []


@pytest.mark.parametrize("nonce", ["a\r\nX-Evil: 1", "é"])
async def test_a_nonce_that_no_field_can_carry_is_not_sent(nonce: str) -> None:
    with pytest.raises(SigningError, match="printable ASCII"):
        await signer(new_nonce=lambda: nonce).sign(httpx.Request("GET", "https://a.example"))


async def test_every_attempt_has_a_time_and_a_nonce_of_its_own() -> None:
    wire, ticks = Wire(503, 503, 200), iter([NOW, NOW + 1.0, NOW + 2.0])
    layer = SigningLayer(signer(wall_clock=lambda: next(ticks)))
    retry = RetryLayer(RetryConfig(base_delay=0.0))
    await stack(wire, retry, layer, semantics=HTTP)(httpx.Request("GET", "https://a.example"))
    server = verifier()
    created = [server.verify(Message.of(sent)).created for sent in wire.requests]
    assert created == [NOW, NOW + 1.0, NOW + 2.0]


async def test_attempts_at_the_same_time_do_not_share_a_signature() -> None:
    clock, sent, both = FakeClock(), [], asyncio.Event()

    async def wire(request: Any) -> httpx.Response:
        sent.append(request)
        if len(sent) == 2:
            both.set()
        await both.wait()
        return httpx.Response(200)

    hedge = HedgeLayer(HedgeConfig(delay=1.0), clock=clock)
    call = stack(wire, hedge, SigningLayer(signer()), semantics=HTTP)
    answer = asyncio.ensure_future(call(httpx.Request("GET", "https://a.example")))
    await clock.advance(1.0)
    await answer
    server = verifier()
    assert len({server.verify(Message.of(request)) for request in sent}) == 1
    assert len(sent) == 2


async def test_the_key_of_an_api_can_be_signed_too() -> None:
    wire = Wire()
    key = ApiKeyLayer("sk-1", origin=None)
    layer = SigningLayer(signer(components=("@method", "authorization")))
    call = stack(wire, key, layer, semantics=HTTP)
    await call(httpx.Request("GET", "https://a.example"))
    server = verifier(components=("authorization",))
    assert server.verify(Message.of(wire.requests[0])).components == ("@method", "authorization")


async def test_a_signer_that_fails_is_no_fault_of_the_service_and_tells_no_secret() -> None:
    class Vault:
        async def sign(self, _request: object) -> dict[str, str]:
            raise ConnectionError(f"vault said {SECRET!r}")

    wire = Wire()
    with pytest.raises(SigningError, match="Vault failed with ConnectionError") as caught:
        await stack(wire, SigningLayer(Vault()), semantics=HTTP)(httpx.Request("GET", "http://a"))
    assert SECRET.decode() not in "".join(traceback.format_exception(caught.value))
    assert HTTP.judge(caught.value) is Verdict.VOID
    assert wire.requests == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: HMACSigner("a", b"fifteen bytes.."),
        lambda: HMACSigner("a", SecretStr("short")),
        lambda: HMACSigner("", SECRET),
        lambda: HMACSigner("schlüssel", SECRET),
        lambda: HMACSigner("a\n", SECRET),
        lambda: signer(label="Sig"),
        lambda: signer(label="a, b"),
        lambda: signer(label=""),
        lambda: signer(components=("@status",)),
        lambda: signer(components=("@path", "@path")),
        lambda: signer(components=("x", "X")),
        lambda: signer(components=("x y",)),
        lambda: signer(expires_in=0),
        lambda: verifier(window=0.0),
        lambda: verifier(max_nonces=0),
        lambda: verifier(components=("@nonsense",)),
        lambda: SignatureVerifier({"a": "short"}),
    ],
)
def test_what_cannot_work_is_not_made(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError):
        make()


def test_the_smallest_that_works_is_taken() -> None:
    signer(expires_in=1)
    HMACSigner("a", b"sixteen bytes ok")
    HMACSigner("a", "eight ü's: üü")  # bytes count, not characters


@pytest.mark.parametrize(
    "secret", [SECRET, SECRET.decode(), SecretBytes(SECRET), SecretStr(SECRET.decode())]
)
async def test_a_secret_may_be_bytes_or_text_and_is_never_shown(secret: Any) -> None:
    signs = HMACSigner("client-1", secret, wall_clock=lambda: NOW)
    checks = SignatureVerifier({"client-1": secret}, wall_clock=lambda: NOW)
    wire = Wire()
    call = stack(wire, SigningLayer(signs), semantics=HTTP)
    await call(httpx.Request("GET", "https://a.example"))
    message = Message.of(wire.requests[0])
    checks.verify(message)
    shown = f"{signs} {checks} {vars(signs)} {describe(call)} {message}"
    assert SECRET.decode() not in shown
    for holder in (signs, checks):
        with pytest.raises(TypeError, match="holds a secret"):
            pickle.dumps(holder)
