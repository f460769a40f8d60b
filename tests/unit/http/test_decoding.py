import asyncio
import gzip
import itertools
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.infrastructure.http.decoding import (
    BodyDecoder,
    ResponseLimits,
    acceptable,
    decoded,
    decoder_for,
)
from shared.infrastructure.http.errors import ResponseTooLargeError, UndecodableBodyError

Encode = Callable[[bytes], bytes]

LIMITS = ResponseLimits()
TEXT = b"The quick brown fox jumps over the lazy dog. " * 5
PIECE = 64 * 1024
MIB = 1024 * 1024


def deflated(data: bytes, window: int) -> bytes:
    packer = zlib.compressobj(wbits=window)
    return packer.compress(data) + packer.flush()


def zlibbed(data: bytes) -> bytes:
    return deflated(data, zlib.MAX_WBITS)


def raw(data: bytes) -> bytes:
    return deflated(data, -zlib.MAX_WBITS)


def is_31_fold(body: bytes) -> bool:
    return int.from_bytes(body[:2], "big") % 31 == 0


CODINGS = [
    pytest.param("gzip", gzip.compress, id="gzip"),
    pytest.param("x-gzip", gzip.compress, id="x-gzip"),
    pytest.param("deflate", zlibbed, id="zlib"),
    pytest.param("deflate", raw, id="raw"),
]


def decode(decoder: BodyDecoder, chunks: Iterable[bytes]) -> bytes:
    pieces = [piece for chunk in chunks for piece in decoder.feed(chunk)]
    decoder.finish()
    return b"".join(pieces)


def decode_whole(coding: str | None, body: bytes, limits: ResponseLimits = LIMITS) -> bytes:
    return decode(decoder_for(coding, limits), [body])


@pytest.mark.parametrize(("coding", "encode"), CODINGS)
def test_a_body_may_arrive_in_any_two_parts(coding: str, encode: Encode) -> None:
    body = encode(TEXT)
    for at in range(len(body) + 1):
        assert decode(decoder_for(coding, LIMITS), [body[:at], body[at:]]) == TEXT


@pytest.mark.parametrize(("coding", "encode"), CODINGS)
def test_a_body_may_arrive_byte_by_byte(coding: str, encode: Encode) -> None:
    body = encode(TEXT)
    assert decode(decoder_for(coding, LIMITS), [bytes([byte]) for byte in body]) == TEXT


@pytest.mark.parametrize(("coding", "encode"), CODINGS)
def test_a_body_cut_at_any_byte_is_an_error(coding: str, encode: Encode) -> None:
    body = encode(TEXT)
    for length in range(1, len(body)):
        with pytest.raises(UndecodableBodyError, match="ended within"):
            decode_whole(coding, body[:length])


@pytest.mark.parametrize(("coding", "encode"), CODINGS)
@given(data=st.data(), content=st.binary(max_size=2000), repeat=st.integers(1, 100))
def test_what_was_encoded_is_decoded_however_it_is_chunked(
    coding: str, encode: Encode, data: st.DataObject, content: bytes, repeat: int
) -> None:
    content *= repeat
    body = encode(content)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=10)))
    ends = [0, *cuts, len(body)]
    chunks = [body[start:end] for start, end in itertools.pairwise(ends)]
    assert decode(decoder_for(coding, LIMITS), chunks) == content


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_garbage_is_an_error_and_nothing_else(body: bytes, coding: str) -> None:
    try:
        decode_whole(coding, body)
    except UndecodableBodyError:
        return
    assert not body or coding == "deflate"  # a few raw bytes may well be a valid body


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", TEXT),
        ("gzip", zlibbed(TEXT)),
        ("deflate", gzip.compress(TEXT)),
        ("deflate", TEXT),
        ("deflate", b"\x78\xbb" + zlibbed(TEXT)[2:]),  # asks for a dictionary
    ],
)
def test_a_body_in_another_coding_is_an_error(coding: str, body: bytes) -> None:
    with pytest.raises(UndecodableBodyError, match=f"is not {coding}"):
        decode_whole(coding, body)


@pytest.mark.parametrize("place", [-8, -4], ids=["checksum", "length"])
def test_a_gzip_body_must_be_what_its_trailer_says(place: int) -> None:
    body = bytearray(gzip.compress(TEXT))
    body[place] ^= 1
    with pytest.raises(UndecodableBodyError, match="is not gzip"):
        decode_whole("gzip", bytes(body))


def test_a_zlib_body_must_have_the_right_checksum() -> None:
    body = zlibbed(TEXT)
    with pytest.raises(UndecodableBodyError, match="is not deflate"):
        decode_whole("deflate", body[:-1] + bytes([body[-1] ^ 1]))


def test_the_members_of_a_gzip_body_follow_one_another() -> None:
    parts = [b"one ", b"", b"two ", TEXT * 1000, b"three", b""]
    body = b"".join(map(gzip.compress, parts))
    content = b"".join(parts)
    assert decode_whole("gzip", body) == content
    assert decode(decoder_for("gzip", LIMITS), [bytes([byte]) for byte in body]) == content


def test_a_gzip_body_of_many_empty_members_is_empty() -> None:
    assert decode_whole("gzip", gzip.compress(b"") * 20_000) == b""


def test_a_second_member_cut_at_any_byte_is_an_error() -> None:
    first, second = gzip.compress(b"first"), gzip.compress(b"second")
    for length in range(1, len(second)):
        with pytest.raises(UndecodableBodyError, match="ended within"):
            decode_whole("gzip", first + second[:length])


@pytest.mark.parametrize(("coding", "encode"), CODINGS)
@pytest.mark.parametrize("rest", [b"\0\0", b"\r\n", b"garbage"])
@pytest.mark.parametrize("is_apart", [False, True], ids=["same chunk", "next chunk"])
def test_what_follows_the_encoded_data_is_an_error(
    coding: str, encode: Encode, rest: bytes, is_apart: bool
) -> None:
    body = encode(TEXT)
    chunks = [body, rest] if is_apart else [body + rest]
    with pytest.raises(UndecodableBodyError):
        decode(decoder_for(coding, LIMITS), chunks)


@pytest.mark.parametrize("encode", [gzip.compress, zlibbed, raw])
def test_a_deflate_body_has_no_second_member(encode: Encode) -> None:
    with pytest.raises(UndecodableBodyError, match="goes on after its deflate data"):
        decode_whole("deflate", zlibbed(TEXT) + encode(TEXT))


def test_bare_deflate_data_may_begin_almost_like_zlib_data() -> None:
    alike = [body for body in (raw(b"%d" % number) for number in range(1000)) if is_31_fold(body)]
    assert alike
    for body in alike:
        assert decode_whole("deflate", body).isdigit()
    stored = b"\x08\x05\x00\xfa\xffhello"
    assert decode_whole("deflate", stored + raw(b"")) == b"hello"


@pytest.mark.parametrize("coding", [None, "", "identity", "gzip", "deflate"])
@pytest.mark.parametrize("chunks", [[], [b""], [b"", b""]])
def test_an_empty_body_is_complete_in_any_coding(coding: str | None, chunks: list[bytes]) -> None:
    assert decode(decoder_for(coding, LIMITS), chunks) == b""


@pytest.mark.parametrize("coding", [None, "", " ", "identity", "Identity, identity"])
def test_a_body_without_coding_passes_as_it_is(coding: str | None) -> None:
    pieces = list(decoder_for(coding, LIMITS).feed(TEXT))
    assert len(pieces) == 1
    assert pieces[0] is TEXT


@pytest.mark.parametrize("coding", ["GZIP", " gzip ", "X-Gzip", "identity, gzip"])
def test_a_coding_is_known_by_its_name_in_any_case(coding: str) -> None:
    assert decode_whole(coding, gzip.compress(TEXT)) == TEXT


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "utf-8", "gzip, gzip", "br, gzip"])
def test_a_coding_that_was_not_asked_for_is_an_error_before_the_body_is_read(coding: str) -> None:
    with pytest.raises(UndecodableBodyError, match=f"encoded as '{coding}'"):
        decoder_for(coding, LIMITS)


@pytest.mark.parametrize(("coding", "encode"), [*CODINGS, pytest.param(None, bytes, id="none")])
def test_a_body_may_have_as_many_bytes_as_the_limit_and_no_more(
    coding: str | None, encode: Encode
) -> None:
    limits = ResponseLimits(max_bytes=200_000)
    assert len(decode_whole(coding, encode(bytes(200_000)), limits)) == 200_000
    with pytest.raises(ResponseTooLargeError, match=r"200000 bytes.*ResponseLimits\.max_bytes"):
        decode_whole(coding, encode(bytes(200_001)), limits)


@pytest.mark.parametrize(("coding", "encode"), [*CODINGS, pytest.param(None, bytes, id="none")])
def test_a_streamed_body_has_a_limit_of_its_own(coding: str | None, encode: Encode) -> None:
    limits = ResponseLimits(max_bytes=10, max_streamed_bytes=20)
    decoder = decoder_for(coding, limits, is_streamed=True)
    assert decode(decoder, [encode(bytes(20))]) == bytes(20)
    with pytest.raises(ResponseTooLargeError, match=r"ResponseLimits\.max_streamed_bytes"):
        decode(decoder_for(coding, limits, is_streamed=True), [encode(bytes(21))])
    endless = ResponseLimits(max_bytes=10)
    assert decode(decoder_for(coding, endless, is_streamed=True), [encode(TEXT)]) == TEXT


def test_the_members_of_a_gzip_body_share_one_limit() -> None:
    body = gzip.compress(bytes(60)) * 2
    with pytest.raises(ResponseTooLargeError):
        decode_whole("gzip", body, ResponseLimits(max_bytes=100))


@pytest.mark.parametrize("coding", [None, "identity"])
@pytest.mark.parametrize("length", ["101", "0101", "9" * 5000])
def test_a_body_declared_too_large_is_an_error_before_it_is_read(
    coding: str | None, length: str
) -> None:
    with pytest.raises(ResponseTooLargeError):
        decoder_for(coding, ResponseLimits(max_bytes=100), content_length=length)


@pytest.mark.parametrize(
    ("coding", "length"),
    [(None, "100"), (None, "0"), (None, ""), (None, "x"), (None, "101, 101"), ("gzip", "101")],
)
def test_any_other_declared_length_is_no_reason_to_refuse(coding: str | None, length: str) -> None:
    decoder = decoder_for(coding, ResponseLimits(max_bytes=100), content_length=length)
    assert decode(decoder, []) == b""


@pytest.mark.parametrize(("coding", "encode"), CODINGS)
def test_pieces_are_small_however_much_comes_of_a_chunk(coding: str, encode: Encode) -> None:
    sizes = [len(piece) for piece in decoder_for(coding, LIMITS).feed(encode(bytes(3_000_000)))]
    assert max(sizes) == PIECE
    assert sum(sizes) == 3_000_000


@pytest.mark.parametrize(("coding", "encode"), CODINGS)
def test_a_body_is_complete_wherever_its_last_piece_ends(coding: str, encode: Encode) -> None:
    for size in range(PIECE - 2, PIECE + 300):
        assert len(decode_whole(coding, encode(bytes(size)))) == size


@pytest.mark.parametrize(("coding", "window"), [("gzip", 31), ("deflate", 15), ("deflate", -15)])
def test_what_was_flushed_is_decoded_at_once(coding: str, window: int) -> None:
    packer, decoder = zlib.compressobj(wbits=window), decoder_for(coding, LIMITS)
    for event in (b"data: one\n\n", b"data: two\n\n", bytes(5 * PIECE)):
        sent = packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)
        assert b"".join(decoder.feed(sent)) == event
    assert b"".join(decoder.feed(packer.flush())) == b""
    decoder.finish()


@pytest.fixture(scope="module", params=[31, -15], ids=["gzip", "raw"])
def bomb(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    """A coding, and 200 kB in it that stand for 200 MiB."""
    packer = zlib.compressobj(9, wbits=request.param)
    body = b"".join([packer.compress(bytes(MIB)) for _ in range(200)]) + packer.flush()
    assert len(body) < 250_000
    return ("gzip" if request.param == 31 else "deflate"), body


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
def test_a_bomb_that_is_read_takes_no_more_memory_than_the_limit(bomb: tuple[str, bytes]) -> None:
    coding, body = bomb
    kept: list[bytes] = []
    with pytest.raises(ResponseTooLargeError):
        kept.extend(decoder_for(coding, ResponseLimits(max_bytes=8 * MIB)).feed(body))
    assert sum(map(len, kept)) == 8 * MIB
    assert tracemalloc.get_traced_memory()[1] < 9 * MIB


@pytest.mark.usefixtures("traced")
def test_a_bomb_that_is_streamed_takes_next_to_no_memory(bomb: tuple[str, bytes]) -> None:
    coding, body = bomb
    decoder = decoder_for(coding, LIMITS, is_streamed=True)
    assert sum(map(len, decoder.feed(body))) == 200 * MIB
    decoder.finish()
    assert tracemalloc.get_traced_memory()[1] < MIB


async def arriving(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_a_body_is_decoded_as_it_arrives() -> None:
    body = gzip.compress(TEXT)
    pieces = [
        piece
        async for piece in decoded(arriving(body[:20], body[20:]), decoder_for("gzip", LIMITS))
    ]
    assert b"".join(pieces) == TEXT


async def test_a_body_that_ends_too_early_is_an_error_at_its_end() -> None:
    pieces = decoded(arriving(gzip.compress(TEXT)[:-1]), decoder_for("gzip", LIMITS))
    assert await anext(pieces) == TEXT
    with pytest.raises(UndecodableBodyError):
        await anext(pieces)


async def test_other_tasks_get_their_turn_while_a_large_chunk_is_decoded() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async for _ in decoded(arriving(gzip.compress(bytes(10 * MIB))), decoder_for("gzip", LIMITS)):
        pass
    task.cancel()
    assert turns == 10


@pytest.mark.parametrize(
    ("asked", "ours"),
    [
        (None, "gzip, deflate"),
        ("", "identity"),
        ("gzip, deflate, br, zstd", "gzip, deflate"),
        ("gzip", "gzip"),
        ("GZIP", "GZIP"),
        ("x-gzip", "x-gzip"),
        ("identity", "identity"),
        ("br", "identity"),
        ("br;q=1.0, gzip;q=0.5, identity;q=0.1", "gzip;q=0.5, identity;q=0.1"),
        ("gzip;q=0, identity", "gzip;q=0, identity"),
        ("identity;q=0, br, gzip", "identity;q=0, gzip"),
        ("*", "gzip, deflate"),
        ("br, *;q=0.3", "gzip;q=0.3, deflate;q=0.3"),
        ("gzip;q=0.9, *;q=0.3", "gzip;q=0.9, deflate;q=0.3"),
        ("gzip, deflate, *", "gzip, deflate"),
        ("gzip, *;q=0", "gzip, *;q=0"),
        ("*; q=0.000", "*; q=0.000"),
        ("*;Q=0", "*;Q=0"),
        ("*;q=0.001", "gzip;q=0.001, deflate;q=0.001"),
        (" gzip ,, br , deflate ", "gzip, deflate"),
    ],
)
def test_only_codings_are_asked_for_that_can_be_decoded(asked: str | None, ours: str) -> None:
    assert acceptable(asked) == ours
    assert acceptable(ours) == ours


@pytest.mark.parametrize(
    "wrong", [{"max_bytes": -1}, {"max_header_bytes": 0}, {"max_json_depth": 0}, {"max_size": 1}]
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ResponseLimits(**wrong)
