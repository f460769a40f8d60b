import json
import random

import pytest

from shared.infrastructure.balancing import InvalidStreamError, SSEParser


def parse(*pieces: bytes) -> list[bytes]:
    parser = SSEParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.flush()


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_every_line_ending_ends_a_line(end: bytes) -> None:
    lines = [b"event: x", b"data: one", b"data:two", b"", b": ping", b"id: 7", b"data", b"", b""]
    assert parse(end.join(lines) + end) == [b"one\ntwo", b""]


def test_a_stream_means_the_same_however_it_is_cut() -> None:
    texts = ["Grüße 🎉", 'a "quote" \\ and\ttab', "data: [DONE]", ""]
    whole = b"\xef\xbb\xbf"
    for text in texts:
        data = json.dumps(text, ensure_ascii=False).encode()
        whole += b"data: [\r\ndata:" + data + b"\r\n: ping\r\ndata: ]\r\n\r\n"
    expected = parse(whole)
    assert [json.loads(event) for event in expected] == [[text] for text in texts]
    rng = random.Random(7)
    for size in (1, 2, 3, 5):
        assert parse(*(whole[at : at + size] for at in range(0, len(whole), size))) == expected
    for _ in range(50):
        cut = rng.randrange(len(whole))
        assert parse(whole[:cut], b"", whole[cut:]) == expected


def test_an_event_without_its_blank_line_comes_out_at_the_end_of_the_stream() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: [DONE]") == []
    assert parser.flush() == [b"[DONE]"]
    assert parser.flush() == []


def test_an_event_of_8_mib_is_taken_and_a_larger_one_than_allowed_is_refused() -> None:
    big = b"data: " + b"x" * 8 * 2**20 + b"\n\n"
    pieces = [big[at : at + 65536] for at in range(0, len(big), 65536)]
    assert [len(event) for event in parse(*pieces)] == [8 * 2**20]
    small = SSEParser(max_event_bytes=1000)
    assert sum(len(small.feed(b"data: " + b"x" * 500 + b"\n\n")) for _ in range(10)) == 10
    with pytest.raises(InvalidStreamError, match="larger than 1000 bytes"):
        SSEParser(max_event_bytes=1000).feed(b"data: " + b"x" * 1000)
    with pytest.raises(InvalidStreamError):
        SSEParser(max_event_bytes=1000).feed(b"data:\n" * 2000)
