"""Telling requests that one of ours signed from all others."""

import asyncio
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.infrastructure.http import signing
from shared.infrastructure.http.signing import (
    DigestMismatchError,
    HMACSigner,
    Message,
    SignatureCoverageError,
    SignatureError,
    SignatureExpiredError,
    SignatureMalformedError,
    SignatureMismatchError,
    SignatureMissingError,
    SignatureVerifier,
    UnknownKeyError,
)
from shared.infrastructure.resilience import ConfigurationError

SECRETS = {"client-1": b"the secret of the first client  ", "client-2": "the secret of the second"}
NOW = 1_618_884_473.0
PARTS = ("@method", "@authority", "@path", "@query")
REQUEST = httpx.Request(
    "POST",
    "https://api.example/v1/orders?dry=1",
    content=b'{"item": "tea"}',
    headers=[("X-Tenant", "a"), ("x-tenant", "b"), ("Accept", "*/*")],
)


def signed(
    request: httpx.Request = REQUEST,
    keyid: str = "client-1",
    secret: Any = None,
    now: float = NOW,
    **options: Any,
) -> Message:
    options.setdefault("components", (*PARTS, "x-tenant"))
    signer = HMACSigner(
        keyid, secret or SECRETS.get(keyid) or b"?" * 32, wall_clock=lambda: now, **options
    )
    return Message.of(request).with_fields(asyncio.run(signer.sign(request)))


def verifier(**options: Any) -> SignatureVerifier:
    options.setdefault("wall_clock", lambda: NOW)
    return SignatureVerifier(SECRETS, **options)


def changed(name: str, change: Callable[[str], str]) -> Callable[[Message], Message]:
    """Return what changes the value of a header field, or drops the field if nothing is left."""

    def tamper(message: Message) -> Message:
        values = [(key, change(v) if key.lower() == name else v) for key, v in message.headers]
        return dataclasses.replace(message, headers=[(key, v) for key, v in values if v])

    return tamper


def replaced(**fields: Any) -> Callable[[Message], Message]:
    return lambda message: dataclasses.replace(message, **fields)


def dropped(_value: str) -> str:
    return ""


def substituted(pattern: str, by: str) -> Callable[[str], str]:
    def change(value: str) -> str:
        result, count = re.subn(pattern, by, value)
        assert count
        return result

    return change


@pytest.mark.parametrize("keyid", list(SECRETS))
def test_a_request_of_ours_is_told_by_its_key(keyid: str) -> None:
    verified = verifier().verify(signed(keyid=keyid))
    assert (verified.keyid, verified.created) == (keyid, NOW)
    assert verified.components == (*PARTS, "x-tenant", "content-digest")


INPUT, VALUE, DIGEST = "signature-input", "signature", "content-digest"
OTHER_DIGEST = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"


@pytest.mark.parametrize(
    ("tamper", "error"),
    [
        (replaced(method="PUT"), SignatureMismatchError),
        (replaced(method="post"), SignatureMismatchError),
        (replaced(target="/v1/orders?dry=0"), SignatureMismatchError),
        (replaced(target="/v1/orders?dry=%31"), SignatureMismatchError),
        (replaced(target="/v1/orders"), SignatureMismatchError),
        (replaced(target="/v1//orders?dry=1"), SignatureMismatchError),
        (replaced(target="/v1/%6frders?dry=1"), SignatureMismatchError),
        (replaced(target="/v1/orders%3Fdry=1"), SignatureMismatchError),
        (changed("host", lambda _: "evil.example"), SignatureMismatchError),
        (changed("host", lambda _: "api.example:8443"), SignatureMismatchError),
        (lambda m: m.with_fields({"host": "api.example"}), SignatureMismatchError),
        (changed("x-tenant", lambda v: v.upper()), SignatureMismatchError),
        (changed("x-tenant", dropped), SignatureMismatchError),
        (lambda m: m.with_fields({"x-tenant": "c"}), SignatureMismatchError),
        (lambda m: dataclasses.replace(m, headers=m.headers[::-1]), SignatureMismatchError),
        (replaced(body=b'{"item": "gold"}'), DigestMismatchError),
        (replaced(body=b""), DigestMismatchError),
        (changed(DIGEST, lambda _: OTHER_DIGEST), SignatureMismatchError),
        (changed(DIGEST, dropped), SignatureMismatchError),
        (changed(VALUE, substituted(":.", ":_")), SignatureMalformedError),
        (changed(VALUE, substituted(":....", ":AAAA")), SignatureMismatchError),
        (changed(VALUE, substituted(":.*:", "::")), SignatureMismatchError),
        (changed(VALUE, substituted("sig1", "sig2")), SignatureMalformedError),
        (changed(VALUE, substituted(":.*:", "1")), SignatureMalformedError),
        (changed(VALUE, dropped), SignatureMalformedError),
        (changed(INPUT, dropped), SignatureMissingError),
        (changed(INPUT, substituted("created=16", "created=15")), SignatureExpiredError),
        (changed(INPUT, substituted("73;", "74;")), SignatureMismatchError),
        (changed(INPUT, substituted("created=[0-9]*", "created")), SignatureMalformedError),
        (changed(INPUT, substituted(";created=[0-9]*", "")), SignatureMalformedError),
        (changed(INPUT, substituted(";expires=[0-9]*", "")), SignatureMismatchError),
        (changed(INPUT, substituted("expires=([0-9]*)", r'expires="\1"')), SignatureMalformedError),
        (changed(INPUT, substituted('nonce="', 'nonce="x')), SignatureMismatchError),
        (changed(INPUT, substituted(';nonce=".*?"', "")), SignatureMalformedError),
        (changed(INPUT, substituted('nonce=".*?"', 'nonce=""')), SignatureMalformedError),
        (changed(INPUT, substituted('nonce=".*?"', "nonce=token")), SignatureMalformedError),
        (changed(INPUT, substituted('nonce="', f'nonce="{"x" * 250}')), SignatureMalformedError),
        (changed(INPUT, substituted(";alg=.*?;", ";")), SignatureMismatchError),
        (changed(INPUT, substituted("hmac-sha256", "hmac-sha1")), SignatureMalformedError),
        (changed(INPUT, substituted("client-1", "client-2")), SignatureMismatchError),
        (changed(INPUT, substituted("client-1", "client-3")), UnknownKeyError),
        (changed(INPUT, substituted(";keyid=.*", "")), UnknownKeyError),
        (changed(INPUT, substituted('"client-1"', "client-1")), SignatureMalformedError),
        (changed(INPUT, substituted(r"\(.*\)", '"@method"')), SignatureMalformedError),
        (changed(INPUT, substituted('"@method" ', "")), SignatureCoverageError),
        (changed(INPUT, substituted(' "content-digest"', "")), SignatureCoverageError),
        (changed(INPUT, substituted(' "x-tenant"', "")), SignatureMismatchError),
        (changed(INPUT, substituted('"@method"', '"@method" "@method"')), SignatureMalformedError),
        (changed(INPUT, substituted('"@path"', '"@path" "@secret"')), SignatureMismatchError),
        (changed(INPUT, substituted('"@path"', '"@path";bs')), SignatureMalformedError),
        (changed(INPUT, substituted('"@path"', '"@path" path')), SignatureMalformedError),
        (changed(INPUT, substituted("sig1=", "sig1=(")), SignatureMalformedError),
        (lambda m: m.with_fields({INPUT: 'sig1=("@path")'}), SignatureMalformedError),
        (
            lambda m: m.with_fields({INPUT: 'sig2=();keyid="client-2"', VALUE: "sig2=:YQ==:"}),
            SignatureMalformedError,
        ),
    ],
)
def test_a_request_that_was_changed_is_refused(
    tamper: Callable[[Message], Message], error: type[SignatureError]
) -> None:
    message = signed(expires_in=100)
    verifier().verify(message)
    with pytest.raises(SignatureError) as caught:
        verifier().verify(tamper(message))
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "change",
    [
        changed("host", lambda v: v.upper() + ":443"),
        changed("x-tenant", lambda v: f"  {v}\t"),
        lambda m: dataclasses.replace(m, headers=[(k.upper(), v) for k, v in m.headers]),
        changed(INPUT, lambda v: v.replace('" "', '"   "').replace(";", ";  ").replace("(", "( ")),
        lambda m: m.with_fields({"x-added-by-a-proxy": "1"}),
        lambda m: m.with_fields({INPUT: 'proxy=("@path");keyid="its own"', VALUE: "proxy=:YQ==:"}),
        changed(DIGEST, lambda v: v),
    ],
)
def test_what_changes_no_meaning_changes_no_signature(change: Callable[[Message], Message]) -> None:
    verifier().verify(change(signed()))


def test_two_lines_of_a_field_are_one_with_a_comma() -> None:
    message = signed()
    rest = [(key, value) for key, value in message.headers if key.lower() != "x-tenant"]
    verifier().verify(dataclasses.replace(message, headers=[*rest, ("X-Tenant", "a, b")]))


@given(st.data())
def test_no_single_change_of_what_is_signed_gets_through(data: st.DataObject) -> None:
    message = signed(new_nonce=lambda: "n")
    name = data.draw(st.sampled_from([INPUT, VALUE, DIGEST, "x-tenant", "host"]))
    (index,) = [i for i, (key, _) in enumerate(message.headers) if key.lower() == name][:1]
    key, value = message.headers[index]
    at = data.draw(st.integers(0, len(value) - 1))
    char = data.draw(st.characters(min_codepoint=33, max_codepoint=126))
    other = value[:at] + char + value[at + 1 :]
    headers = [*message.headers]
    headers[index] = (key, other)
    if other.lower() == value.lower() and name == "host":
        return
    try:
        verifier().verify(dataclasses.replace(message, headers=headers))
    except SignatureError:
        return
    # Base64 has bits to spare at its end, and a label is not signed.
    assert other == value or (name == VALUE and at == len(value) - 3)


@pytest.mark.parametrize(
    ("digest", "error"),
    [
        ("md5=:YQ==:", SignatureMalformedError),
        ("sha-256=1", DigestMismatchError),
        ("sha-256=:YQ==:", DigestMismatchError),
        ("nonsense nonsense", SignatureMalformedError),
    ],
)
def test_a_digest_that_says_nothing_is_refused(digest: str, error: type[SignatureError]) -> None:
    request = httpx.Request("PUT", "https://a", content=b"a", headers={"Content-Digest": digest})
    with pytest.raises(error):
        verifier().verify(signed(request, components=PARTS))


def test_every_digest_of_a_body_must_be_right() -> None:
    sha256 = "sha-256=:ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs=:"
    sha512 = "sha-512=:H0D8ktokFpR1CXnubPWC8tXX0o4YM13gWrxU0FYOD1MC"
    sha512 += "hgxlK/CNVgJSql50IQVG82n7u86MsvsV0jKJk8Qi5Q==:"  # of "a", but for the last bytes
    good = httpx.Request("PUT", "https://a", content=b"a", headers={"Content-Digest": sha256})
    verifier().verify(signed(good, components=PARTS))
    half = httpx.Request(
        "PUT", "https://a", content=b"a", headers={"Content-Digest": f"{sha256}, {sha512}"}
    )
    with pytest.raises(DigestMismatchError):
        verifier().verify(signed(half, components=PARTS))


def test_a_body_added_to_a_request_without_one_is_refused() -> None:
    message = signed(httpx.Request("DELETE", "https://a.example/1"), components=PARTS)
    verifier().verify(message)
    with pytest.raises(SignatureCoverageError, match="content-digest"):
        verifier().verify(dataclasses.replace(message, body=b"{}"))


def test_a_request_is_not_verified_without_its_body() -> None:
    with pytest.raises(ConfigurationError, match="read it first"):
        verifier().verify(dataclasses.replace(signed(), body=None))


def test_a_nonce_has_its_bounds() -> None:
    for length in (1, 256):
        verifier().verify(signed(new_nonce=lambda length=length: "n" * length))
    with pytest.raises(SignatureMalformedError):
        verifier().verify(signed(new_nonce=lambda: "n" * 257))


def test_a_verifier_may_be_as_strict_as_can_be() -> None:
    verifier(window=0.5, max_nonces=1).verify(signed())


def test_all_that_can_be_signed_can_be_asked_for() -> None:
    names = (*PARTS, "@scheme", "@target-uri", "x-tenant", "accept")
    server = verifier(components=names)
    assert server.verify(signed(components=names)).components == (*names, "content-digest")


def test_nobody_signed_it() -> None:
    with pytest.raises(SignatureMissingError):
        verifier().verify(Message.of(REQUEST))


def test_the_target_uri_stands_for_its_parts() -> None:
    whole = signed(components=("@method", "@target-uri"))
    verifier().verify(whole)
    verifier(components=("@scheme", "@target-uri")).verify(whole)
    with pytest.raises(SignatureCoverageError, match="not signed: @method"):
        verifier().verify(signed(components=("@target-uri",)))
    message = signed(components=("@method", "@target-uri"))
    with pytest.raises(SignatureMismatchError):
        verifier().verify(dataclasses.replace(message, scheme="http"))


@pytest.mark.parametrize(
    ("age", "ok"), [(0, True), (300, True), (-300, True), (301, False), (-301, False)]
)
def test_a_signature_is_good_for_its_window(age: float, ok: bool) -> None:
    try:
        verifier().verify(signed(now=NOW - age))
    except SignatureExpiredError:
        assert not ok
    else:
        assert ok


@pytest.mark.parametrize(("age", "ok"), [(10, True), (11, False)])
def test_a_signature_may_say_when_it_expires(age: float, ok: bool) -> None:
    try:
        verifier().verify(signed(now=NOW - age, expires_in=10))
    except SignatureExpiredError:
        assert not ok
    else:
        assert ok


def test_a_secret_may_be_added_and_withdrawn_while_it_is_in_use() -> None:
    secrets = dict(SECRETS)
    server = SignatureVerifier(secrets, wall_clock=lambda: NOW)
    secrets["client-3"] = b"the secret of the third client"
    server.verify(signed(keyid="client-3", secret=secrets["client-3"]))
    del secrets["client-3"]
    with pytest.raises(UnknownKeyError):
        server.verify(signed(keyid="client-3"))
    secrets["client-3"] = b"short"
    with pytest.raises(ConfigurationError):
        server.verify(signed(keyid="client-3"))


@pytest.mark.parametrize("url", ["https://api.example/a%2Fb?x=%20", "https://api.example:443/ü"])
async def test_an_asgi_server_sees_what_the_client_signed(url: str) -> None:
    server, seen = verifier(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        seen.append(server.verify(Message.from_asgi(scope, body)))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    request = httpx.Request("POST", url, json={"a": 1})
    signer = HMACSigner("client-1", SECRETS["client-1"], wall_clock=lambda: NOW)
    request.headers.update(await signer.sign(request))
    await httpx.ASGITransport(app).handle_async_request(request)
    assert [signature.keyid for signature in seen] == ["client-1"]


@pytest.mark.parametrize(
    ("scheme", "uri"), [({}, "http://a:443/"), ({"scheme": "https"}, "https://a/")]
)
def test_a_server_may_leave_out_the_scheme_that_asgi_presumes(
    scheme: dict[str, str], uri: str
) -> None:
    scope = {
        "method": "GET",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(b"Host", b"a:443")],
    }
    assert Message.from_asgi({**scope, **scheme}, b"").component("@target-uri") == uri


def test_a_server_that_keeps_the_path_to_itself_is_told_so() -> None:
    with pytest.raises(ConfigurationError, match="raw_path"):
        Message.from_asgi({"path": "/"}, b"")


def test_every_error_has_a_code_of_its_own_and_repeats_nothing_of_the_request() -> None:
    kinds = [
        kind
        for name in signing.__all__
        if isinstance(kind := getattr(signing, name), type) and issubclass(kind, SignatureError)
    ]
    assert len({kind.code for kind in kinds}) == len(kinds) == 9
    evil = changed(INPUT, substituted('"@path"', '"@path" "evil"'))(signed())
    with pytest.raises(SignatureError) as caught:
        verifier().verify(evil)
    assert caught.value.to_dict()["code"] == "signature_mismatch"
    assert "evil" not in str(caught.value)
