import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from shared.infrastructure.local_embeddings import TokenBatch
from shared.infrastructure.local_embeddings.worker.channel import (
    Channel,
    ChannelClosedError,
    pack,
)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    here, there = map(Channel, socket.socketpair())
    yield here, there
    here.close()
    there.close()


@pytest.mark.parametrize(
    "message",
    [
        None,
        ["a text", "\ud83d\ude00 in two halves", "\ud800", "nul\0"],
        np.arange(5_000_000, dtype=np.float32).reshape(2, -1),
        np.empty((0, 384), np.float32),
        np.arange(12).reshape(3, 4)[:, ::2],
        np.arange(12).reshape(3, 4).T,
        np.array(7.0),
        np.array(["a", None], object),
        np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
        np.array([1, 2], ">i4"),
    ],
    ids=[
        "none",
        "texts",
        "20 MB",
        "empty",
        "strided",
        "Fortran",
        "no axis",
        "objects",
        "fields",
        "big-endian",
    ],
)
def test_what_is_sent_arrives(ends: tuple[Channel, Channel], message: object) -> None:
    here, there = ends
    sender = threading.Thread(target=here.send, args=(pack(message),))
    sender.start()
    received = there.receive()
    sender.join()
    if isinstance(message, np.ndarray):
        assert received.dtype == message.dtype
        assert received.shape == message.shape
        assert np.array_equal(received, message)
    else:
        assert received == message
    assert not there.has_news


@pytest.mark.parametrize("texts", [[[1, 2, 3], [], [4]], [[]], []], ids=len)
def test_tokens_arrive_as_they_were_and_may_be_written_to(
    ends: tuple[Channel, Channel], texts: list[list[int]]
) -> None:
    here, there = ends
    batch = TokenBatch.of(texts, [bool(ids) for ids in texts], prompt_tokens=2)
    here.send(pack(batch))
    arrived: TokenBatch = there.receive()
    for name in ("ids", "offsets", "truncated"):
        expected, found = getattr(batch, name), getattr(arrived, name)
        assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist())
        assert found.flags.writeable
    assert arrived.prompt_tokens == 2


def test_vectors_arrive_in_the_buffer_of_who_waits_for_them(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    buffer = np.zeros((5, 2), np.float32)
    here.send(pack(vectors))
    received = there.receive(into=buffer[1:4])
    assert np.shares_memory(received, buffer)
    assert buffer.tolist() == [[0, 0], [0, 1], [2, 3], [4, 5], [0, 0]]


@pytest.mark.parametrize(
    "buffer",
    [np.zeros((2, 2), np.float32), np.zeros((2, 3), np.float32).T],
    ids=["too small", "not contiguous"],
)
def test_a_buffer_that_does_not_fit_is_left_alone(
    ends: tuple[Channel, Channel], buffer: np.ndarray
) -> None:
    here, there = ends
    vectors = np.ones((3, 2), np.float32)
    here.send(pack(vectors))
    assert np.array_equal(there.receive(into=buffer), vectors)
    assert not buffer.any()


def test_whoever_waits_is_told_when_the_other_end_closes(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    closer = threading.Timer(0.01, here.close)
    closer.start()
    with pytest.raises(ChannelClosedError):
        there.receive()
    assert there.has_news
    with pytest.raises(ChannelClosedError):
        there.send(pack("anybody there?"))
    closer.join()


def test_half_a_message_is_none(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    here.send([memoryview(b"\x10\0\0\0")])
    here.close()
    with pytest.raises(ChannelClosedError):
        there.receive()


def test_nobody_waits_beyond_the_deadline(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    with pytest.raises(TimeoutError):
        there.receive(time.monotonic() + 0.01)
    with pytest.raises(TimeoutError):
        here.send(pack(np.zeros(5_000_000)), time.monotonic() + 0.01)


def test_a_channel_closes_after_its_user(ends: tuple[Channel, Channel]) -> None:
    _, there = ends
    seen: list[type[BaseException]] = []

    def use() -> None:
        with there.lock:
            try:
                there.receive()
            except ChannelClosedError as exc:
                seen.append(type(exc))

    user = threading.Thread(target=use)
    user.start()
    while not there.lock.locked():
        time.sleep(0.001)
    there.close()
    user.join()
    assert seen == [ChannelClosedError]
    assert there._socket.fileno() == -1


def test_what_is_packed_holds_arrays_and_no_views_of_views() -> None:
    # A memoryview of a memoryview crashes the interpreter if a cycle of garbage holds both.
    *_, numbers = pack(np.ones(3, np.float32))
    assert isinstance(numbers.obj, np.ndarray)
