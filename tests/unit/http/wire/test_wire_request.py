import pytest

from shared.infrastructure.http import LocalProtocolViolationError
from shared.infrastructure.http.wire.origin import origin_of
from shared.infrastructure.http.wire.request import Head, encode_head


def encode(*headers: tuple[bytes, bytes], method: bytes = b"GET", target: bytes = b"/") -> Head:
    return encode_head(method, target, b"a.test", headers)


def test_fields_go_out_as_given_in_order_and_case_but_host_first() -> None:
    head = encode((b"x-One", b"1"), (b"X-TWO", b" 2 "), (b"hOST", b"b.test"), (b"x-One", b"\xe9"))
    assert head.data == (
        b"GET / HTTP/1.1\r\nhOST: b.test\r\nx-One: 1\r\nX-TWO:  2 \r\nx-One: \xe9\r\n\r\n"
    )


def test_a_request_without_host_gets_that_of_its_origin() -> None:
    assert encode((b"A", b"")).data == b"GET / HTTP/1.1\r\nHost: a.test\r\nA: \r\n\r\n"


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], 0),
        ([(b"Content-Length", b"0")], 0),
        ([(b"content-length", b"12")], 12),
        ([(b"Transfer-Encoding", b"Chunked")], None),
    ],
)
def test_the_head_says_how_the_body_is_delimited(
    headers: list[tuple[bytes, bytes]], length: int | None
) -> None:
    assert encode(*headers).length == length


@pytest.mark.parametrize(
    ("values", "closes"),
    [
        ([], False),
        ([b"keep-alive"], False),
        ([b"enclosed"], False),
        ([b"close"], True),
        ([b"foo , CLOSE"], True),
        ([b"keep-alive", b"close"], True),
    ],
)
def test_a_request_may_ask_for_the_end_of_the_connection(values: list[bytes], closes: bool) -> None:
    assert encode(*((b"Connection", value) for value in values)).closes is closes


CONTROL = [bytes([code]) for code in (*range(9), *range(10, 32), 127)]


@pytest.mark.parametrize("control", [*CONTROL, b"\r\n", b"\r\nX: y", b"\n\n"])
def test_no_control_character_gets_out(control: bytes) -> None:
    with pytest.raises(LocalProtocolViolationError, match="control character"):
        encode((b"X", b"a" + control + b"b"))
    with pytest.raises(LocalProtocolViolationError, match="name of a header"):
        encode((b"X" + control, b"a"))
    with pytest.raises(LocalProtocolViolationError, match="method"):
        encode(method=b"GET" + control)
    with pytest.raises(LocalProtocolViolationError, match="target"):
        encode(target=b"/" + control)
    with pytest.raises(LocalProtocolViolationError, match="control character"):
        encode_head(b"GET", b"/", b"a.test" + control, [])


def test_a_tab_in_a_value_is_no_control_character() -> None:
    assert b"X: a\tb\r\n" in encode((b"X", b"a\tb")).data


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\t", b"\xe9", b"(a)", b'"'])
def test_a_name_is_a_token(name: bytes) -> None:
    with pytest.raises(LocalProtocolViolationError, match="name of a header"):
        encode((name, b"a"))


@pytest.mark.parametrize("target", [b"", b"/a b", b"/\xe9", b"/ HTTP/1.1\r\nX: y"])
def test_a_target_is_visible_ascii(target: bytes) -> None:
    with pytest.raises(LocalProtocolViolationError, match="target"):
        encode(target=target)


@pytest.mark.parametrize("method", [b"", b"GE T", b"GET /x"])
def test_a_method_is_a_token(method: bytes) -> None:
    with pytest.raises(LocalProtocolViolationError, match="method"):
        encode(method=method)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Content-Length", b"1"), (b"content-length", b"1")],
        [(b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"gzip, chunked")],
        [(b"Transfer-Encoding", b"identity")],
        [(b"Content-Length", b"-1")],
        [(b"Content-Length", b"1, 1")],
        [(b"Content-Length", b"")],
        [(b"Content-Length", b"\xb2")],
        [(b"Host", b"a"), (b"Host", b"b")],
    ],
)
def test_framing_that_can_be_read_in_two_ways_is_refused(
    headers: list[tuple[bytes, bytes]],
) -> None:
    with pytest.raises(LocalProtocolViolationError):
        encode(*headers)


@pytest.mark.parametrize(
    ("scheme", "host", "port", "authority", "number"),
    [
        ("http", "a.test", None, "a.test", 80),
        ("http", "a.test", 80, "a.test", 80),
        ("https", "a.test", None, "a.test", 443),
        ("https", "a.test", 80, "a.test:80", 80),
        ("http", "::1", 8080, "[::1]:8080", 8080),
    ],
)
def test_an_origin_is_named_as_in_a_url(
    scheme: str, host: str, port: int | None, authority: str, number: int
) -> None:
    origin = origin_of(scheme, host, port)
    assert (origin.authority, origin.port, origin.is_tls) == (authority, number, scheme == "https")


def test_the_two_spellings_of_a_default_port_are_one_origin() -> None:
    assert origin_of("https", "a.test", 443) == origin_of("https", "a.test", None)
