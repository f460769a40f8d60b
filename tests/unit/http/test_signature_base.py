"""What exactly is signed: RFC 9421, section 2; how it is written: RFC 9651; digests: RFC 9530."""

import base64
import hashlib
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretBytes

from shared.infrastructure.http.signing import Message
from shared.infrastructure.http.signing.message import (
    ComponentError,
    content_digest,
    signature_base,
)
from shared.infrastructure.http.signing.signer import hmac_sha256
from shared.infrastructure.http.signing.structured import (
    FieldSyntaxError,
    Token,
    parse_dictionary,
    serialize_list,
)

# RFC 9421, appendices B.1.5 and B.2.
SHARED_SECRET = base64.b64decode(
    "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
)
SHA512 = "WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew=="
TEST_REQUEST = Message(
    "POST",
    "https",
    "/foo?param=Value&Pet=dog",
    [
        ("Host", "example.com"),
        ("Date", "Tue, 20 Apr 2021 02:07:55 GMT"),
        ("Content-Type", "application/json"),
        ("Content-Digest", f"sha-512=:{SHA512}:"),
        ("Content-Length", "18"),
    ],
    b'{"hello": "world"}',
)


def base_of(message: Message, *components: str) -> list[str]:
    return signature_base(message, components, {}).decode().split("\n")[:-1]


def test_the_example_of_the_rfc_gives_the_signature_of_the_rfc() -> None:
    components = ("date", "@authority", "content-type")
    parameters = {"created": 1618884473, "keyid": "test-shared-secret"}
    base = signature_base(TEST_REQUEST, components, parameters)
    assert base.decode() == (
        '"date": Tue, 20 Apr 2021 02:07:55 GMT\n'
        '"@authority": example.com\n'
        '"content-type": application/json\n'
        '"@signature-params": ("date" "@authority" "content-type")'
        ';created=1618884473;keyid="test-shared-secret"'
    )
    signature = base64.b64encode(hmac_sha256(SecretBytes(SHARED_SECRET), base))
    assert signature == b"pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8="


def test_fields_are_written_as_in_the_rfc() -> None:
    fields = [
        ("Host", "www.example.com"),
        ("Date", "Tue, 20 Apr 2021 02:07:56 GMT"),
        ("X-OWS-Header", "  Leading and trailing whitespace. \t"),
        ("X-Obs-Fold-Header", "Obsolete\r\n    line folding."),
        ("Cache-Control", "max-age=60"),
        ("cache-control", "   must-revalidate"),
        ("Example-Dict", " a=1,    b=2;x=1;y=2,   c=(a   b   c)"),
        ("X-Empty-Header", " "),
    ]
    names = list(dict.fromkeys(name.lower() for name, _ in fields))
    assert base_of(Message("GET", "https", "/", fields), *names) == [
        '"host": www.example.com',
        '"date": Tue, 20 Apr 2021 02:07:56 GMT',
        '"x-ows-header": Leading and trailing whitespace.',
        '"x-obs-fold-header": Obsolete line folding.',
        '"cache-control": max-age=60, must-revalidate',
        '"example-dict": a=1,    b=2;x=1;y=2,   c=(a   b   c)',
        '"x-empty-header": ',
    ]


@pytest.mark.parametrize(
    ("url", "component", "value"),
    [
        ("https://www.example.com/path?param=value", "@authority", "www.example.com"),
        ("https://WWW.Example.com:443/", "@authority", "www.example.com"),
        ("http://example.com:80/", "@authority", "example.com"),
        ("http://example.com:443/", "@authority", "example.com:443"),
        ("https://example.com:8443/", "@authority", "example.com:8443"),
        ("https://[::1]:443/", "@authority", "[::1]"),
        ("https://[::1]/", "@authority", "[::1]"),
        ("HTTPS://example.com/", "@scheme", "https"),
        ("https://example.com", "@path", "/"),
        ("https://example.com/a%2Fb%20c/%C3%A4", "@path", "/a%2Fb%20c/%C3%A4"),
        ("https://example.com/a?x=%2f&y=a+b&x", "@query", "?x=%2f&y=a+b&x"),
        ("https://example.com/a?", "@query", "?"),
        ("https://example.com/a", "@query", "?"),
        ("https://example.com/a?b?c", "@query", "?b?c"),
        ("https://Example.com/a?b", "@target-uri", "https://example.com/a?b"),
        ("https://example.com:443", "@target-uri", "https://example.com/"),
        ("https://example.com/a?b#c", "@target-uri", "https://example.com/a?b"),
    ],
)
@pytest.mark.parametrize("library", [httpx, httpx2])
def test_what_is_derived_from_a_url_is_what_the_service_derives(
    library: ModuleType, url: str, component: str, value: str
) -> None:
    message = Message.of(library.Request("GET", url))
    assert base_of(message, component) == [f'"{component}": {value}']


@pytest.mark.parametrize(("target", "rest"), [("", "/"), ("/", "/"), ("?q", "/?q"), ("/a?", "/a?")])
def test_a_target_without_a_path_is_the_root(target: str, rest: str) -> None:
    message = Message("GET", "https", target, [("host", "a")])
    assert message.component("@path") == rest.partition("?")[0]
    assert message.component("@target-uri") == f"https://a{rest}"


def test_a_tab_inside_a_value_is_signed() -> None:
    assert base_of(Message("GET", "https", "/", [("x", "a\tb")]), "x") == ['"x": a\tb']


def test_a_message_shows_neither_its_fields_nor_its_body() -> None:
    message = Message("GET", "https", "/", [("authorization", "sk-secret")], b"body-secret")
    assert "secret" not in repr(message)


@pytest.mark.parametrize(
    ("scheme", "host", "authority"),
    [
        ("https", "Example.COM:443", "example.com"),
        ("https", "example.com:", "example.com"),
        ("http", "example.com:443", "example.com:443"),
        ("https", " example.com ", "example.com"),
    ],
)
def test_the_host_field_is_the_authority(scheme: str, host: str, authority: str) -> None:
    message = Message("GET", scheme, "/", [("HOST", host)], authority="other.example")
    assert message.component("@authority") == authority


@pytest.mark.parametrize(
    ("component", "fields"),
    [
        ("x", []),
        ("x", [("x", "é")]),
        ("x", [("x", "a\nb: c")]),
        ("x", [("x", "a\x00")]),
        ("@authority", []),
        ("@authority", [("host", "a"), ("Host", "b")]),
        ("@status", [("host", "a")]),
        ("@signature-params", [("host", "a")]),
    ],
)
def test_what_two_sides_could_read_in_two_ways_is_not_signed(
    component: str, fields: list[tuple[str, str]]
) -> None:
    with pytest.raises(ComponentError):
        Message("GET", "https", "/", fields).component(component)


@pytest.mark.parametrize(
    ("body", "digest"),
    [
        (b'{"hello": "world"}', "X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE="),
        (b'{"hello": "world"}\n', "RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg="),
        (b"", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
    ],
)
def test_a_digest_is_that_of_the_rfc(body: bytes, digest: str) -> None:
    assert content_digest(hashlib.sha256(body).digest()) == f"sha-256=:{digest}:"


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126))
ITEMS = (
    st.integers(-(10**15) + 1, 10**15 - 1)
    | st.booleans()
    | st.binary()
    | TEXT
    | st.from_regex(r"[A-Za-z*][A-Za-z0-9:/!]*", fullmatch=True).map(Token)
)
NAMES = st.from_regex(r"[a-z*][a-z0-9_.*\-]*", fullmatch=True)


@given(st.lists(ITEMS), st.dictionaries(NAMES, ITEMS))
def test_what_is_written_is_read_as_it_was(items: list[Any], parameters: dict[str, Any]) -> None:
    (member,) = parse_dictionary(f" a={serialize_list(items, parameters)} ").values()
    assert member == (tuple(items), parameters)
    assert [type(item) for item in member.value] == [type(item) for item in items]  # type: ignore[union-attr]


def test_a_name_alone_is_true() -> None:
    assert parse_dictionary("a, b;c") == {"a": (True, {}), "b": (True, {"c": True})}


@given(st.text(st.sampled_from('ab=(),;"\\:?01-. \t\x00é')))
def test_what_is_not_a_dictionary_is_never_taken_for_one(text: str) -> None:
    try:
        members = parse_dictionary(text)
    except FieldSyntaxError:
        return
    for value, parameters in members.values():
        serialize_list(value if isinstance(value, tuple) else (value,), parameters)


@pytest.mark.parametrize(
    "text",
    [
        *("a,", ",a", "a b", "a=", "A=1", "a=1 b=2", "a=1,,b", "a, a", "a=1;x;x", 'a="', 'a="é"'),
        *("a=1.5", "a=1234567890123456", "a=:?:", "a=:YQ:", "a=?2", "a=(", "a=(1", "a=(1)2"),
        *('a=("x""y")', 'a=("x";sf)', "a=((1))", 'a="\\n"', "a=1;", "a=1;X", "a;=1", "a=--1"),
    ],
)
def test_a_field_with_two_readings_or_none_is_an_error(text: str) -> None:
    with pytest.raises(FieldSyntaxError):
        parse_dictionary(text)
