"""When a store says that Redis is away, when that we ask wrongly, and how it looks for Redis."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from pydantic import ValidationError

from shared.infrastructure.resilience import ConfigurationError
from shared.infrastructure.resilience.events import Event, LimiterStoreChanged
from shared.infrastructure.resilience.limits.redis_scripts import PROBE, TOKEN_BUCKET
from shared.infrastructure.resilience.limits.redis_store import (
    RedisConfig,
    RedisStore,
    StoreAwayError,
    StoreRefusesError,
)
from shared.infrastructure.testing import FakeClock
from tests.unit.resilience.limits.scripted_redis import ScriptedRedis, reply

GONE, REFUSED = StoreAwayError("gone"), StoreRefusesError("wrong password")
URL = "redis://user:secret@host:1234/5"


class Notes:
    """Listens, and uses the store."""

    def __init__(self) -> None:
        self.events: list[tuple[str, bool, str]] = []
        self.changes: list[bool] = []

    def __call__(self, event: Event) -> None:
        assert isinstance(event, LimiterStoreChanged)
        self.events.append((event.service, event.available, event.reason))

    def store_on(self, redis: ScriptedRedis, clock: FakeClock, timeout: float = 1e3) -> RedisStore:
        self._store = RedisStore(
            RedisConfig(url=URL, timeout=timeout), listeners=[self], clock=clock
        )
        self._store._wire = redis
        self._store.watch(self)
        return self._store

    def store_changed(self) -> None:
        self.changes.append(self._store.away)


async def ask(store: RedisStore) -> list[int]:
    return await store.run(TOKEN_BUCKET, ["key"], [])


def test_a_config_has_the_defaults_it_documents_and_hides_the_password() -> None:
    config = RedisConfig(url=URL)
    assert config.model_dump() == {
        "url": URL,
        "prefix": "morgan",
        "timeout": 0.08,
        "retry_every": 0.5,
    }
    assert "secret" not in repr(config)


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [("prefix", "m", ""), ("timeout", 0.001, 0.0), ("retry_every", 0.001, 0.0)],
)
def test_a_value_at_the_end_of_its_range_is_fine_and_one_outside_is_not(
    name: str, inside: Any, outside: Any
) -> None:
    assert getattr(RedisConfig(url=URL, **{name: inside}), name) == inside
    with pytest.raises(ValidationError, match=name):
        RedisConfig(url=URL, **{name: outside})


def test_a_config_is_frozen_and_takes_no_field_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RedisConfig(url=URL).timeout = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="tiemout"):
        RedisConfig(url=URL, tiemout=1.0)  # type: ignore[call-arg]


async def test_redis_is_looked_for_until_it_answers_and_nothing_else_is_asked() -> None:
    clock, redis, notes = FakeClock(), ScriptedRedis(GONE, GONE, REFUSED), Notes()
    async with notes.store_on(redis, clock) as store:
        redis.answers.appendleft(reply(0))
        assert await ask(store) == reply(0)
        for _ in range(2):  # the second time without asking
            with pytest.raises(StoreAwayError):
                await ask(store)
        assert len(redis.asked) == 2
        await clock.advance(0.49)
        assert len(redis.asked) == 2
        await clock.advance(0.01)  # gone still
        await clock.advance(0.5)  # refuses us, as it did not before
        assert store.away
        await clock.advance(0.5)
        assert not store.away
        await clock.advance(10.0)
    probes = redis.asked[2:]
    assert [(one.script, one.keys) for one in probes] == [(PROBE, ["morgan:probe"])] * 3
    where = "host:1234"
    assert notes.events == [(where, False, "gone"), (where, True, "back after 1.5 s")]
    assert notes.changes == [True, False]
    assert redis.closed


@pytest.mark.parametrize("has_answered", [False, True])
async def test_a_refusal_is_our_mistake_as_long_as_redis_has_never_answered(
    has_answered: bool,
) -> None:
    redis, notes = ScriptedRedis(), Notes()
    async with notes.store_on(redis, FakeClock()) as store:
        if has_answered:
            await ask(store)
        redis.answers.append(REFUSED)
        with pytest.raises(
            StoreAwayError if has_answered else ConfigurationError, match="wrong password"
        ) as raised:
            await ask(store)
    assert ("check url, user, password" in str(raised.value)) is not has_answered
    assert "secret" not in str(raised.value)
    assert notes.changes == ([True] if has_answered else [])


async def test_whoever_asks_next_is_told_that_a_redis_found_at_last_refuses_us() -> None:
    clock, redis, notes = FakeClock(), ScriptedRedis(GONE, REFUSED, REFUSED), Notes()
    async with notes.store_on(redis, clock) as store:
        with pytest.raises(StoreAwayError):
            await ask(store)
        await clock.advance(0.5)
        assert notes.changes == [True, False]
        with pytest.raises(ConfigurationError):
            await ask(store)
    assert [available for _, available, _ in notes.events] == [False]


async def test_an_answer_that_takes_too_long_is_none() -> None:
    redis, notes = ScriptedRedis(), Notes()
    async with notes.store_on(redis, FakeClock(), timeout=0.001) as store:
        redis.hold()
        with pytest.raises(StoreAwayError, match=r"no answer within 0\.001 s"):
            await ask(store)
        await asyncio.sleep(0)
        assert redis.given_up == 1
    assert [reason for _, _, reason in notes.events] == ["no answer within 0.001 s"]


async def test_a_store_closes_its_connections_when_nothing_is_under_way_any_more() -> None:
    redis = ScriptedRedis()
    store = Notes().store_on(redis, FakeClock())
    redis.hold()
    call = asyncio.create_task(ask(store))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    given_up: list[int] = []
    close = redis.aclose

    async def note() -> None:
        given_up.append(redis.given_up)
        await close()

    redis.aclose = note  # type: ignore[method-assign]
    await store.aclose()
    assert given_up == [1]
    for lost in (call, asyncio.create_task(ask(store))):
        with pytest.raises(ConfigurationError, match="is closed"):
            await lost


class Stubborn(ScriptedRedis):
    """Answers a question that is given up with an error."""

    async def run(self, *args: Any) -> list[int]:
        try:
            return await super().run(*args)
        except asyncio.CancelledError:
            raise GONE from None


@pytest.mark.parametrize("kind", [ScriptedRedis, Stubborn])
async def test_what_becomes_of_a_question_that_was_given_up_is_not_reported(
    kind: type[ScriptedRedis],
) -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, what: reported.append(what))
    redis = kind()
    async with Notes().store_on(redis, FakeClock()) as store:
        redis.hold()
        call = asyncio.create_task(ask(store))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
        assert call.cancelled()
    del call
    gc.collect()
    assert redis.given_up == 1
    assert reported == []
