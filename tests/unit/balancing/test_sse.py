import json
import tracemalloc
from itertools import pairwise
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.infrastructure.balancing.answers import ServerEvent, SSEParser
from shared.infrastructure.balancing.errors import InvalidStreamError


def parse(*pieces: bytes) -> list[ServerEvent]:
    parser = SSEParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.flush()


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_every_line_ending_ends_a_line(end: bytes) -> None:
    lines = [b"event: x", b"data: one", b"data:two", b"", b": ping", b"id: 7", b"data", b"", b""]
    assert parse(end.join(lines) + end) == [("x", b"one\ntwo"), (None, b"")]


def test_a_name_is_that_of_one_event() -> None:
    stream = b"event: a\ndata: 1\n\ndata: 2\n\nevent: b\n\ndata: 3\n\nevent:\ndata: 4\n\n"
    assert parse(stream) == [("a", b"1"), (None, b"2"), (None, b"3"), (None, b"4")]


LINES = st.sampled_from(
    [
        *(b"data: {}", b"data:", b"data", b"data:  x", b"data: [DONE]", b"data: \xf0\x9f\x8e\x89"),
        *(
            b"event: message",
            b"event:",
            b": ping",
            b"id: 7",
            b"retry: 1",
            b"",
            b"",
            b"dat",
            b"\xff",
        ),
    ]
)
ENDS = st.sampled_from([b"\n", b"\n\n", b"\r\n", b"\r\n\r\n", b"\r"])


@given(
    st.booleans(),
    st.lists(st.tuples(LINES, ENDS), max_size=12),
    st.lists(st.integers(0, 120), max_size=8),
)
def test_a_stream_means_the_same_however_it_is_cut(
    has_bom: bool, lines: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    whole = b"\xef\xbb\xbf" * has_bom + b"".join(line + end for line, end in lines)
    expected = parse(*(whole[at : at + 1] for at in range(len(whole))))
    places = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(places)]
    assert parse(*pieces) == parse(whole) == expected


def test_many_events_in_one_piece_come_out_in_order() -> None:
    events = [b'data: {"n": %d}\n\n' % n for n in range(50)]
    named = [b"event: e%d\ndata: %d\n\n" % (n, n) for n in range(50)]
    assert [json.loads(data)["n"] for _, data in parse(b"".join(events))] == list(range(50))
    assert parse(b"".join(named)) == [(f"e{n}", b"%d" % n) for n in range(50)]
    mixed = parse(b": ping\n\n" + events[0] + named[1] + b"\n\ndata: a\ndata: b\n\n" + events[2])
    assert mixed == [(None, b'{"n": 0}'), ("e1", b"1"), (None, b"a\nb"), (None, b'{"n": 2}')]


def test_an_event_without_its_blank_line_comes_out_at_the_end_of_the_stream() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: [DONE]") == []
    assert parser.flush() == [(None, b"[DONE]")]
    assert parser.flush() == []


def test_an_event_of_8_mib_is_taken_in_linear_time_and_bounded_memory() -> None:
    def took(size: int, piece: int) -> float:
        big = b"data: " + b"x" * size + b"\n\n"
        pieces = [big[at : at + piece] for at in range(0, len(big), piece)]
        began = perf_counter()
        assert [len(data) for _, data in parse(*pieces)] == [size]
        return perf_counter() - began

    # Were pieces scanned again, eight times the size would take 64 times as long.
    small = min(took(2**20, 4096) for _ in range(3))
    assert min(took(8 * 2**20, 4096) for _ in range(3)) < 30 * small + 0.05
    parser, filler = SSEParser(), b"x" * 65536
    tracemalloc.start()
    try:
        parser.feed(b"data: ")
        for _ in range(128):
            parser.feed(filler)
        parser.feed(b"\n\n")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * 8 * 2**20


@pytest.mark.parametrize(
    "piece",
    [
        b"data: " + b"x" * 1000,
        b"data: " + b"x" * 1000 + b"\n\n",
        b"data: " + b"x" * 1000 + b"\n\ndata: y",
        b"data:\n" * 2000,
        b":" + b" " * 1001,
    ],
)
def test_an_event_larger_than_allowed_is_refused(piece: bytes) -> None:
    parser = SSEParser(max_event_bytes=1000)
    assert sum(len(parser.feed(b"data: " + b"x" * 500 + b"\n\n")) for _ in range(10)) == 10
    with pytest.raises(InvalidStreamError, match="larger than 1000 bytes"):
        parser.feed(piece)
