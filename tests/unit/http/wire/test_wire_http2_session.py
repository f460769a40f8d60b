"""What is said on a connection of HTTP/2, frame by frame, without a socket."""

import pytest
from hyperframe import frame as frames

from shared.infrastructure.http import RemoteProtocolViolationError
from shared.infrastructure.http.errors import UnprocessedError
from shared.infrastructure.http.wire.frames import Code, ConnectionFaultError
from shared.infrastructure.http.wire.http2_stream import STREAM_WINDOW
from tests.unit.http.wire.http2_said import MAX_HEAD, Said, data

CONNECTION_WINDOW = 16 * 1024 * 1024


def test_a_client_begins_with_its_preface_settings_and_a_wide_window() -> None:
    said = Said(greeted=False)
    said.session.start()
    settings, window = said.sent()[:2]
    assert settings.settings == {2: 0, 4: STREAM_WINDOW, 6: MAX_HEAD}
    assert (window.stream_id, window.window_increment) == (0, CONNECTION_WINDOW - 65_535)


def test_settings_are_agreed_to_and_say_how_many_streams_there_may_be() -> None:
    said = Said(greeted=False)
    assert said.session.max_streams == 1
    said.hears(frames.SettingsFrame(0, settings={1: 100}))
    assert said.session.max_streams > 10**9
    said.hears(frames.SettingsFrame(0, settings={3: 7}))
    said.hears(frames.SettingsFrame(0))
    assert (said.session.max_streams, said.changes) == (7, 3)
    assert [frame.flags for frame in said.sent() if "ACK" in frame.flags] == [{"ACK"}] * 3


def test_an_answer_arrives_in_whatever_pieces() -> None:
    whole = Said(1)
    spoken = b"".join(
        frame.serialize()
        for frame in (
            whole.head(1, (":status", "103"), ("link", "x")),
            whole.head(1, (":status", "200"), ("a", "b"), ("content-length", "4")),
            data(1, b"ab"),
            frames.DataFrame(1, b"cd", pad_length=9, flags=["PADDED"]),
            whole.head(1, ("trailer", "x"), end=True),
        )
    )
    for step in (1, 7, 1000):
        said = Said(1)
        for at in range(0, len(spoken), step):
            said.hears(spoken[at : at + step])
        answer = said.opened[0].answer
        assert said.over == {1: None}
        assert (answer.status, answer.reason, answer.http_version) == (200, b"OK", b"HTTP/2")
        assert answer.headers == [(b"a", b"b"), (b"content-length", b"4")]
        assert (answer.take(), answer.is_over) == (b"abcd", True)


def test_a_head_may_come_in_pieces_padded_and_with_a_priority() -> None:
    said = Said(1)
    block = said.block((":status", "204"), ("a", "b" * 50))
    first = frames.HeadersFrame(1, block[:5], pad_length=3, depends_on=0, stream_weight=3)
    first.flags |= {"PADDED", "PRIORITY", "END_STREAM"}
    last = frames.ContinuationFrame(1, block[9:], flags=["END_HEADERS"])
    said.hears(first, frames.ContinuationFrame(1, block[5:9]), last)
    assert said.opened[0].answer.headers == [(b"a", b"b" * 50)]
    assert said.over == {1: None}


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
def test_what_the_fields_say_of_a_body_is_about_none(method: bytes) -> None:
    said = Said()
    stream = said.open(method)
    status = "200" if method == b"HEAD" else "304"
    said.hears(said.head(1, (":status", status), ("content-length", "9")), data(1, end=True))
    assert (said.over, stream.answer.take()) == ({1: None}, b"")


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (7, UnprocessedError, "refused the stream"),
        (8, RemoteProtocolViolationError, "with CANCEL"),
        (0, RemoteProtocolViolationError, "with NO_ERROR"),
        (4711, RemoteProtocolViolationError, "with error 4711"),
    ],
)
def test_a_reset_ends_one_stream(code: int, kind: type[Exception], words: str) -> None:
    said = Said(2)
    said.hears(frames.RstStreamFrame(1, code))
    error = said.over.pop(1)
    assert type(error) is kind
    assert words in str(error)
    assert list(said.session.streams) == [3]
    said.hears(said.head(3, end=True))
    assert said.over == {3: None}


def test_a_stream_cannot_be_refused_that_was_answered() -> None:
    said = Said(1)
    said.hears(said.head(1), frames.RstStreamFrame(1, 7))
    assert type(said.over[1]) is RemoteProtocolViolationError


def test_a_reset_of_what_is_complete_or_was_never_opened_is_nothing() -> None:
    said = Said(1)
    said.hears(said.head(1, end=True), frames.RstStreamFrame(1, 0), frames.RstStreamFrame(99, 0))
    assert said.over == {1: None}


def test_an_answer_that_is_complete_ends_the_upload() -> None:
    said = Said()
    said.open(ends=False)
    said.sent()
    said.hears(said.head(1, (":status", "413"), end=True))
    (reset,) = said.sent()
    assert (type(reset), reset.error_code) == (frames.RstStreamFrame, Code.CANCEL)
    assert said.over == {1: None}


def test_a_goodbye_ends_what_it_does_not_cover_and_lets_the_rest_be_answered() -> None:
    said = Said(4)
    said.hears(frames.GoAwayFrame(0, last_stream_id=2**31 - 1))
    assert (said.over, said.session.is_draining) == ({}, True)
    said.hears(said.head(1), frames.GoAwayFrame(0, last_stream_id=3), data(1, b"a", end=True))
    assert said.over.pop(1) is None
    assert sorted(said.over) == [5, 7]
    for error in said.over.values():
        assert isinstance(error, UnprocessedError)
        assert error.unsent
        assert "with NO_ERROR" in str(error)
    said.hears(said.head(3), data(3, b"b", end=True))
    assert said.over[3] is None
    assert said.changes == 3


def test_slow_talk_is_no_flood_and_progress_forgives_it() -> None:
    said = Said(1)
    ping = frames.PingFrame(0, bytes(8)).serialize()
    said.hears(ping * 9_000)
    said.hears(said.head(1))
    said.hears(ping * 9_000)
    said.hears(data(1, b"x"))
    said.hears(ping * 9_990)
    said.clock.stall(11.0)
    said.hears(ping * 9_000)
    assert said.over == {}


def test_a_ping_is_answered_and_the_answer_to_one_is_not() -> None:
    said = Said()
    said.sent()
    said.hears(frames.PingFrame(0, b"12345678"), frames.PingFrame(0, b"abcdefgh", flags=["ACK"]))
    (pong,) = said.sent()
    assert (pong.opaque_data, pong.flags) == (b"12345678", {"ACK"})


def test_what_is_not_read_is_not_granted_anew_but_to_the_other_streams() -> None:
    said = Said(2)
    said.hears(said.head(1), said.head(3))
    for _ in range(64):  # a window full, twice over what the connection would have without more
        said.hears(data(1, bytes(16_384)))
    assert said.sent() == []
    for _ in range(600):
        said.hears(data(3, bytes(16_384)))
        said.opened[1].answer.take()
        said.session.read_on(said.opened[1])
    updates = [(frame.stream_id, frame.window_increment) for frame in said.sent()]
    assert {stream for stream, _ in updates} == {0, 3}
    granted = {stream: sum(size for s, size in updates if s == stream) for stream in (0, 3)}
    assert granted[0] >= 664 * 16_384 - CONNECTION_WINDOW // 2
    assert granted[3] >= 600 * 16_384 - STREAM_WINDOW // 2
    assert len(updates) < 30
    assert said.opened[0].answer.buffered == STREAM_WINDOW


def test_what_still_comes_on_a_stream_that_was_left_is_granted_to_the_others() -> None:
    said = Said(2)
    said.session.reset(said.opened[0])
    said.sent()
    for _ in range(600):
        said.hears(data(1, bytes(16_384)))
    assert {frame.stream_id for frame in said.sent()} == {0}


def test_a_connection_beyond_its_window_is_broken() -> None:
    said = Said(40)
    said.session._granted = 10_000
    with pytest.raises(ConnectionFaultError) as caught:
        said.hears(said.head(1), data(1, bytes(10_001)))
    assert caught.value.code is Code.FLOW_CONTROL_ERROR


def test_there_is_room_as_both_windows_say() -> None:
    said = Said()
    stream, other = said.open(ends=False), said.open(ends=False)
    session = said.session
    assert session.room(stream) == 16_384
    for _ in range(3):
        session.send(stream, bytes(16_384), ends=False)
    session.send(stream, bytes(16_383), ends=False)
    assert (session.room(stream), session.room(other)) == (0, 0)
    said.hears(frames.WindowUpdateFrame(1, 100))
    assert session.room(stream) == 0
    said.hears(frames.WindowUpdateFrame(0, 50))
    assert (session.room(stream), session.room(other)) == (50, 50)
    said.hears(frames.SettingsFrame(0, settings={4: 20}))
    assert (stream.window, session.room(stream), session.room(other)) == (100 - 65_515, -65_415, 20)
    said.hears(frames.SettingsFrame(0, settings={4: 65_535}))
    assert (session.room(stream), session.room(other)) == (50, 50)


def test_a_long_head_goes_out_in_pieces() -> None:
    said = Said()
    said.sent()
    said.open(a="b" * 20_000, c="d" * 20_000, ends=False)
    sent = said.sent()
    assert [type(frame).__name__ for frame in sent] == [
        *("HeadersFrame", "ContinuationFrame", "ContinuationFrame")
    ]
    assert ["END_HEADERS" in frame.flags for frame in sent] == [False, False, True]
    assert all(frame.body_len <= 16_384 for frame in sent)
    said.decoder.max_header_list_size = 100_000
    fields = dict(said.decoder.decode(b"".join(frame.data for frame in sent)))
    assert len(fields["a"]) == 20_000


def test_fields_said_before_are_not_said_again_unless_they_are_secret() -> None:
    said = Said()
    sizes = []
    for _ in range(3):
        said.sent()
        said.open(authorization="secret", agent="x" * 100)
        (frame,) = said.sent()
        fields = dict(said.decoder.decode(frame.data))
        assert (fields["authorization"], fields["agent"]) == ("secret", "x" * 100)
        sizes.append(len(frame.data))
        assert b"secret" in frame.data
    assert sizes[1] == sizes[2] < sizes[0] - 90


def test_a_table_as_small_as_the_service_wants_is_kept_to() -> None:
    said = Said()
    said.open(agent="x")
    for frame in said.sent():
        if isinstance(frame, frames.HeadersFrame):
            said.decoder.decode(frame.data)
    said.hears(frames.SettingsFrame(0, settings={1: 0}))
    said.decoder.max_allowed_table_size = 0
    said.sent()
    for _ in range(2):
        said.open(agent="x")
        (frame,) = said.sent()
        assert dict(said.decoder.decode(frame.data))["agent"] == "x"


def test_numbers_of_streams_run_out_once() -> None:
    said = Said()
    said.session._next = 2**31 - 1
    said.open()
    assert said.session.is_draining
