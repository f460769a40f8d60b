"""The head of a request as HTTP/2 has it."""

import pytest

from shared.infrastructure.http import LocalProtocolViolationError
from shared.infrastructure.http.wire.http2_head import encode_http2_head

Headers = list[tuple[bytes, bytes]]


def fields_of(*headers: tuple[bytes, bytes]) -> Headers:
    head = encode_http2_head(b"GET", b"/x?y", b"a.test:8", headers)
    assert [tuple(field) for field in head.fields[:2]] == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
    ]
    assert tuple(head.fields[3]) == (b":path", b"/x?y")
    return [(field[0], field[1]) for field in head.fields]


@pytest.mark.parametrize(
    "dropped",
    [
        (b"Connection", b"close"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Proxy-Connection", b"keep-alive"),
        (b"Upgrade", b"h2c"),
        (b"Transfer-Encoding", b"chunked"),
        (b"TE", b"gzip"),
    ],
)
def test_what_is_about_one_connection_of_http1_is_left_out(dropped: tuple[bytes, bytes]) -> None:
    assert fields_of(dropped, (b"A", b"b"))[4:] == [(b"a", b"b")]


def test_trailers_may_be_asked_for() -> None:
    assert fields_of((b"TE", b"trailers"))[4:] == [(b"te", b"trailers")]


def test_host_becomes_the_authority() -> None:
    assert fields_of()[2] == (b":authority", b"a.test:8")
    assert fields_of((b"A", b"b"), (b"Host", b"c.test"))[2:] == [
        (b":authority", b"c.test"),
        (b":path", b"/x?y"),
        (b"a", b"b"),
    ]


def test_names_are_in_lower_case_and_values_without_space_around() -> None:
    assert fields_of((b"X-Y", b" \ta b\t"))[4:] == [(b"x-y", b"a b")]


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], 0),
        ([(b"Content-Length", b"7")], 7),
        ([(b"Transfer-Encoding", b"chunked")], None),
    ],
)
def test_the_body_is_as_long_as_the_headers_say(headers: Headers, length: int | None) -> None:
    assert encode_http2_head(b"POST", b"/", b"a", headers).length == length


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        (b"", b"/", []),
        (b"GE T", b"/", []),
        (b"GET", b"", []),
        (b"GET", b"/a b", []),
        (b"GET", b"/", [(b"", b"x")]),
        (b"GET", b"/", [(b":path", b"/evil")]),
        (b"GET", b"/", [(b"a b", b"x")]),
        (b"GET", b"/", [(b"a", b"x\r\ny")]),
        (b"GET", b"/", [(b"a", b"x\0")]),
        (b"GET", b"/", [(b"Connection", b"a\nb")]),
        (b"GET", b"/", [(b"Host", b"a"), (b"host", b"b")]),
        (b"GET", b"/", [(b"Content-Length", b"1"), (b"content-length", b"1")]),
        (b"GET", b"/", [(b"Content-Length", b"-1")]),
        (b"GET", b"/", [(b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")]),
        (b"GET", b"/", [(b"Transfer-Encoding", b"gzip, chunked")]),
    ],
)
def test_what_would_be_read_as_something_else_is_not_sent(
    method: bytes, target: bytes, headers: Headers
) -> None:
    with pytest.raises(LocalProtocolViolationError):
        encode_http2_head(method, target, b"a.test", headers)
