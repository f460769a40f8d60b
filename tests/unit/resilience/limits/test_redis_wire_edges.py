"""What a store hears of the package redis: an answer, that Redis is away, or that it refuses us."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from redis import exceptions

from shared.infrastructure.resilience.limits.redis_scripts import PROBE, Script
from shared.infrastructure.resilience.limits.redis_store import StoreAwayError, StoreRefusesError
from shared.infrastructure.resilience.limits.redis_wire import RedisWire


class Client:
    """A client of Redis that gives the answers it is made with."""

    def __init__(self, *answers: list[object] | Exception) -> None:
        self._answers = list(answers)
        self.commands: list[tuple[object, ...]] = []

    async def execute_command(self, *args: object) -> Any:
        self.commands.append(args)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def aclose(self) -> None:
        self.commands.append(("close",))


def wire_with(*answers: list[object] | Exception) -> tuple[RedisWire, Client]:
    wire, client = RedisWire("redis://nowhere"), Client(*answers)
    wire._client = client
    return wire, client


async def test_a_script_is_sent_by_name_and_in_full_if_redis_does_not_know_it() -> None:
    wire, client = wire_with([b"7", 8], exceptions.NoScriptError("NOSCRIPT"), [9])
    assert await wire.run(PROBE, ["key"], [1.5]) == [7, 8]
    assert await wire.run(PROBE, ["key"], [1.5]) == [9]
    await wire.aclose()
    sha = hashlib.sha1(PROBE.text.encode(), usedforsecurity=False).hexdigest()
    by_name, in_full = ("EVALSHA", sha, 1, "key", 1.5), ("EVAL", PROBE.text, 1, "key", 1.5)
    assert client.commands == [by_name, by_name, in_full, ("close",)]


@pytest.mark.parametrize(
    "error",
    [
        exceptions.AuthenticationError("wrong password"),
        exceptions.AuthorizationError("not for you"),
        exceptions.NoPermissionError("not that"),
        exceptions.ResponseError("what is that"),
    ],
)
async def test_what_only_a_change_can_help_is_a_refusal(error: Exception) -> None:
    wire, _ = wire_with(error)
    with pytest.raises(StoreRefusesError, match=str(error)):
        await wire.run(PROBE, ["key"], [])


@pytest.mark.parametrize(
    "error",
    [
        exceptions.BusyLoadingError("loading"),
        exceptions.ConnectionError("lost"),
        exceptions.ReadOnlyError("a replica"),
        exceptions.TimeoutError("late"),
        OSError("no route"),
    ],
)
async def test_what_may_pass_means_that_redis_is_away(error: Exception) -> None:
    wire, _ = wire_with(error)
    with pytest.raises(StoreAwayError, match=str(error)):
        await wire.run(PROBE, ["key"], [])


async def test_a_bug_is_neither() -> None:
    wire, _ = wire_with(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await wire.run(PROBE, ["key"], [])


async def test_nothing_is_sent_twice() -> None:
    connections: list[int] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        await reader.readline()
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        wire = RedisWire(f"redis://127.0.0.1:{port}")
        with pytest.raises(StoreAwayError):
            await wire.run(PROBE, ["key"], [])
        await wire.aclose()
    assert len(connections) == 1


def test_scripts_have_their_names_where_sha_1_is_only_for_what_needs_no_security(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sha1 = hashlib.sha1

    def strict(data: bytes, *, usedforsecurity: bool = True) -> Any:
        if usedforsecurity:
            raise ValueError("disabled for FIPS")
        return sha1(data, usedforsecurity=False)

    monkeypatch.setattr(hashlib, "sha1", strict)
    assert Script("return 1").sha == "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"
