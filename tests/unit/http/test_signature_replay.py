"""A signed request gets through once."""

import asyncio
import contextlib
import dataclasses
import threading
from typing import Any

import httpx
import pytest

from shared.infrastructure.http.signing import (
    HMACSigner,
    Message,
    SignatureError,
    SignatureReplayedError,
    SignatureVerifier,
)
from shared.infrastructure.http.signing.nonces import NonceMemory

SECRETS = {"client-1": b"the secret of the first client  ", "client-2": "the secret of the second"}
NOW = 1_618_884_473.0
REQUEST = httpx.Request("POST", "https://api.example/v1/orders", content=b"tea")


class Wall:
    """A wall clock that is set by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def signed(keyid: str = "client-1", now: float = NOW, **options: Any) -> Message:
    signer = HMACSigner(keyid, SECRETS[keyid], wall_clock=lambda: now, **options)
    return Message.of(REQUEST).with_fields(asyncio.run(signer.sign(REQUEST)))


def verifier(wall: Wall, **options: Any) -> SignatureVerifier:
    return SignatureVerifier(SECRETS, wall_clock=wall, **options)


def test_no_request_gets_through_twice_however_the_clock_is_set() -> None:
    wall = Wall()
    server, message = verifier(wall), signed()
    server.verify(message)
    for now in (NOW, NOW + 300.0, NOW - 300.0):
        wall.now = now
        with pytest.raises(SignatureReplayedError):
            server.verify(message)
    wall.now = NOW + 301.0
    server.verify(signed(now=wall.now))  # what is too old is forgotten
    wall.now = NOW
    with pytest.raises(SignatureReplayedError):
        server.verify(message)


def test_a_refused_request_spends_no_nonce() -> None:
    server, message = verifier(Wall()), signed()
    for change in ({"body": b"other"}, {"method": "PUT"}):
        with pytest.raises(SignatureError):
            server.verify(dataclasses.replace(message, **change))
    server.verify(message)


def test_a_nonce_counts_for_its_own_key_alone() -> None:
    server = verifier(Wall())
    for keyid in SECRETS:
        server.verify(signed(keyid=keyid, new_nonce=lambda: "same"))


def test_a_flood_shortens_the_window_and_lets_no_replay_through() -> None:
    server = verifier(Wall(), max_nonces=3)
    messages = [signed(now=NOW + second) for second in range(10)]
    for message in messages:
        server.verify(message)
    for message in messages:
        with pytest.raises(SignatureReplayedError):
            server.verify(message)
    with pytest.raises(SignatureReplayedError):
        server.verify(signed(now=NOW + 6))
    server.verify(signed(now=NOW + 7))


def test_the_memory_is_bounded_by_number_and_by_time() -> None:
    memory = NonceMemory(10.0, 100)
    for second in range(1000):
        assert memory.add(str(second), second, float(second))
        assert len(memory) == min(second + 1, 11)
    crowded = NonceMemory(10.0, 5)
    for number in range(100):
        crowded.add(str(number), number // 10, 9.0)
        assert len(crowded) <= 5


def test_of_many_threads_only_one_gets_a_request_through() -> None:
    server, message, passed = verifier(Wall()), signed(), []
    start = threading.Barrier(8)

    def attempt() -> None:
        start.wait()
        with contextlib.suppress(SignatureReplayedError):
            passed.append(server.verify(message))

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passed) == 1
