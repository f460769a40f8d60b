import pytest

from shared.infrastructure.http import RemoteProtocolViolationError
from shared.infrastructure.http.wire.answer import Answer

OK = b"HTTP/1.1 200 OK\r\n"


def answer(*, head: bool = False, max_head: int = 4096) -> Answer:
    return Answer(bodiless=head, max_head=max_head)


def read(data: bytes, *, size: int = 1 << 30, head: bool = False) -> tuple[Answer, bytes]:
    result = answer(head=head)
    for start in range(0, len(data), size):
        result.feed(data[start : start + size])
    return result, result.take()


WHOLE = {
    "content length": (OK + b"Content-Length: 5\r\n\r\nhello", b"hello", True),
    "empty": (OK + b"Content-Length: 0\r\n\r\n", b"", True),
    "chunked": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nA: b\r\n\r\n",
        b"hello",
        True,
    ),
    "informational first": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        + OK
        + b"Content-Length: 5\r\n\r\nhello",
        b"hello",
        True,
    ),
    "chunked informational first": (
        b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n"
        + OK
        + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"hello",
        True,
    ),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", b"", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", b"hello", True),
    "closing": (OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
    "1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
    "1.0 kept": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
        b"hello",
        False,
    ),
}


@pytest.mark.parametrize("size", [1, 2, 7, 1 << 30])
@pytest.mark.parametrize(("data", "body", "reusable"), WHOLE.values(), ids=WHOLE.keys())
def test_an_answer_is_the_same_however_it_is_cut_into_pieces(
    data: bytes, body: bytes, reusable: bool, size: int
) -> None:
    got, content = read(data, size=size)
    assert (got.is_over, got.is_reusable, content) == (True, reusable, body)
    assert got.status in {200, 204, 304}


def test_fields_keep_order_case_and_duplicates_and_lose_the_space_around_values() -> None:
    got, _ = read(
        b"HTTP/1.1 418 I'm a teapot\r\nset-Cookie: a\r\nSet-cookie:  b \t\r\nX:\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    assert (got.status, got.reason, got.http_version) == (418, b"I'm a teapot", b"HTTP/1.1")
    assert got.headers == [
        (b"set-Cookie", b"a"),
        (b"Set-cookie", b"b"),
        (b"X", b""),
        (b"Content-Length", b"0"),
    ]


def test_nothing_of_an_informational_answer_reaches_the_final_one() -> None:
    got, _ = read(WHOLE["informational first"][0])
    assert (got.status, got.reason, got.headers) == (200, b"OK", [(b"Content-Length", b"5")])


def test_a_trailer_is_no_header() -> None:
    got, _ = read(WHOLE["chunked"][0])
    assert got.headers == [(b"Transfer-Encoding", b"chunked")]


def test_what_the_head_of_a_head_answer_says_of_its_body_is_about_none() -> None:
    for framing in (b"Content-Length: 5", b"Transfer-Encoding: chunked"):
        got, content = read(OK + framing + b"\r\n\r\n", head=True)
        assert (got.is_over, got.is_reusable, content) == (True, True, b"")


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("garbage", [b"x", b"hello", OK, b"\x00"])
def test_bytes_behind_an_answer_leave_it_whole_but_make_the_connection_unfit(
    garbage: bytes, head: bool
) -> None:
    body = b"" if head else b"hello"
    got, content = read(OK + b"Content-Length: 5\r\n\r\n" + body + garbage, head=head)
    assert (got.is_over, got.is_reusable, content) == (True, False, body)


def test_a_body_without_length_ends_with_the_connection() -> None:
    got = answer()
    got.feed(OK + b"\r\nhel")
    got.feed(b"lo")
    assert not got.is_over
    got.feed_eof()
    assert (got.is_over, got.is_reusable, got.take()) == (True, False, b"hello")


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200",
        OK + b"Content-Length: 5\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        OK + b"Content-Length: 5\r\n\r\nhell",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ],
)
def test_an_answer_that_is_cut_short_is_no_answer(data: bytes) -> None:
    got = answer()
    got.feed(data)
    with pytest.raises(RemoteProtocolViolationError, match="connection ended within"):
        got.feed_eof()
    assert not got.is_over


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BROKEN = {
    "garbage": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP/2 preface of a server": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "HTTP/2 status line": b"HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/0.9 status line": b"HTTP/0.9 200 OK\r\n\r\n",
    "RTSP": b"RTSP/1.0 200 OK\r\n\r\n",
    "ICY": b"ICE/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "empty line first": b"\r\n" + OK + b"Content-Length: 0\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status 0": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "status 099": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxx",
    "101 without upgrade": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "NUL in the reason": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
    "NUL in a value": OK + b"X: a\x00b\r\n\r\n",
    "NUL in a name": OK + b"X\x00: a\r\n\r\n",
    "CR in a value": OK + b"X: a\rb\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "space before the colon": OK + b"Content-Length : 5\r\n\r\nhello",
    "no colon": OK + b"Content-Length\r\n\r\n",
    "folded field": OK + b"X: a\r\n b\r\n\r\n",
    "two equal lengths": OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "list of lengths": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "signed length": OK + b"Content-Length: +5\r\n\r\nhello",
    "endless length": OK + b"Content-Length: 99999999999999999999\r\n\r\n",
    "length and chunks": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks and length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "another coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "chunked not last": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n",
    "bad chunk size": CHUNKED + b"zz\r\nhello\r\n0\r\n\r\n",
    "negative chunk size": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "endless chunk size": CHUNKED + b"fffffffffffffffff\r\n",
    "chunk longer than its size": CHUNKED + b"3\r\nhello\r\n0\r\n\r\n",
    "LF in a chunk extension": CHUNKED + b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "length as a trailer": CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n",
}


@pytest.mark.parametrize("size", [1, 1 << 30])
@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_not_strictly_http_1_is_a_violation(data: bytes, size: int) -> None:
    with pytest.raises(RemoteProtocolViolationError):
        read(data, size=size)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("garbage", "the answer is not HTTP/1$"),
        ("HTTP/2 status line", r"the answer is HTTP/2\.0"),
        ("101", "unexpected status 101"),
        ("bad chunk size", "not valid HTTP/1: Invalid character in chunk size"),
    ],
)
def test_a_violation_says_what_is_wrong(name: str, reason: str) -> None:
    with pytest.raises(RemoteProtocolViolationError, match=reason):
        read(BROKEN[name])


@pytest.mark.parametrize("size", [100, 1 << 30])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(OK + b"X: " + b"a" * 5000 + b"\r\n\r\n", id="one long field"),
        pytest.param(
            OK + b"Content-Length: 1\r\nX: " + b"a" * 5000 + b"\r\n\r\na", id="before a body"
        ),
        pytest.param(OK + b"X: " + b"a" * 5000, id="that never ends"),
        pytest.param(OK + b"X: aaaaaaaaaaaaaaa\r\n" * 250 + b"\r\n", id="many fields"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 200, id="endless informational answers"),
        pytest.param(CHUNKED + b"0\r\n" + b"X: aaaaaaaaaaaaaa\r\n" * 300, id="endless trailers"),
        pytest.param(CHUNKED + b"1;" + b"a" * 5000, id="endless chunk extension"),
    ],
)
def test_a_head_or_what_follows_a_body_has_a_bound(data: bytes, size: int) -> None:
    with pytest.raises(RemoteProtocolViolationError, match="more than 4096 bytes"):
        read(data, size=size)


def test_the_bound_is_on_the_head_and_not_on_what_comes_with_it() -> None:
    got, content = read(OK + b"Content-Length: 9000\r\n\r\n" + b"a" * 9000)
    assert (got.is_over, len(content)) == (True, 9000)
    for size in (1000, 1 << 30):
        body = b"".join(b"1;%b\r\na\r\n" % (b"x" * 50) for _ in range(200))
        got, content = read(CHUNKED + body + b"0\r\n\r\n", size=size)
        assert (got.is_over, content) == (True, b"a" * 200)


def test_there_is_a_bound_on_the_number_of_fields() -> None:
    fields = b"X: a\r\n" * 256
    got = answer(max_head=1 << 20)
    got.feed(OK + fields + b"\r\n")
    assert len(got.headers) == 256
    with pytest.raises(RemoteProtocolViolationError, match="256 header fields"):
        answer(max_head=1 << 20).feed(OK + b"X: a\r\n" + fields + b"\r\n")


def test_what_has_arrived_can_be_taken_as_it_comes() -> None:
    got = answer()
    got.feed(OK + b"Content-Length: 5\r\n\r\nhe")
    assert (got.buffered, got.take(), got.buffered, got.take()) == (2, b"he", 0, b"")
    got.feed(b"l")
    got.feed(b"lo")
    assert (got.buffered, got.take()) == (3, b"llo")
