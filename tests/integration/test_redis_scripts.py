"""The scripts themselves, asked by hand, with intervals so long that no time passes in a test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from redis import Redis

from shared.infrastructure.resilience.limits.redis_scripts import (
    SLIDING_WINDOW,
    TOKEN_BUCKET,
    Script,
)
from tests.redis_server import serving_redis

# Microseconds between permits, and what an instant may be off because the test took its time.
INTERVAL = 1000e6
NEAR = 20e6
FOR_EVER = -1


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    with serving_redis() as server, server.admin() as client:
        yield client


@dataclass
class Asked:
    """A reply; instants are those of the server."""

    now: int
    place: int
    turn: int
    answers: list[int]


class Limit:
    """A limit of `capacity` permits, one of which comes back each interval."""

    def __init__(
        self, redis: Redis, script: Script, capacity: int, interval: float = INTERVAL
    ) -> None:
        self._redis = redis
        self._script = script
        self._shape = [interval, capacity]
        redis.flushall()

    def ask(
        self,
        *costs: float,
        line: str = "a",
        patience: float = FOR_EVER,
        debt: float = 0,
        owed: float = 0,
        pause: float = 0,
        refunds: list[tuple[float, float]] | None = None,
    ) -> Asked:
        told = [number for refund in refunds or [] for number in refund]
        wishes = [number for cost in costs for number in (cost, patience)]
        reply: list[int] = self._redis.eval(
            self._script.text, 2, "{limit}", "{limit}:log",
            *(*self._shape, line, debt, owed, int(pause), len(told) // 2, *told, *wishes),
        )  # fmt: skip
        now, place, turn, _, _, *answers = reply
        return Asked(now, place, turn, answers)


both = pytest.mark.parametrize("script", [TOKEN_BUCKET, SLIDING_WINDOW])


@both
def test_lines_queue_in_order_and_take_nothing(redis: Redis, script: Script) -> None:
    limit = Limit(redis, script, 1)
    first = limit.ask(1, 1)
    assert first.answers == [0]
    assert first.turn - first.now == pytest.approx(INTERVAL)
    for position, line in enumerate("bcd"):
        reply = limit.ask(1, line=line)
        assert reply.turn - first.now == pytest.approx((2 + position) * INTERVAL, abs=NEAR)
    # Nobody is moved by asking again, and who leaves moves those behind it.
    assert limit.ask(1, line="c").turn - first.now == pytest.approx(3 * INTERVAL, abs=NEAR)
    limit.ask(line="b")
    assert limit.ask(1, line="c").turn - first.now == pytest.approx(2 * INTERVAL, abs=NEAR)
    limit.ask(line="a", refunds=[(1, first.now)])
    # What is there now is for the first line only.
    assert limit.ask(1, line="d").answers == []
    assert limit.ask(1, line="c").answers == [0]


@both
def test_a_line_that_was_served_goes_behind_the_others(redis: Redis, script: Script) -> None:
    limit = Limit(redis, script, 2)
    first = limit.ask(2, 1)
    limit.ask(1, line="b")
    assert limit.ask(1, 1, refunds=[(1, first.now)]).answers == [0]
    assert limit.ask(1, line="b", refunds=[(1, first.now)]).answers == [0]


@both
def test_whoever_does_not_want_to_queue_leaves_no_trace(redis: Redis, script: Script) -> None:
    limit = Limit(redis, script, 1)
    limit.ask(1)
    reply = limit.ask(1, 1, line="b", patience=5)
    assert [answer == pytest.approx(INTERVAL, abs=NEAR) for answer in reply.answers] == [True, True]
    assert limit.ask(1, line="c").turn - reply.now == pytest.approx(INTERVAL, abs=NEAR)


@both
def test_a_pause_holds_and_ends_evenly(redis: Redis, script: Script) -> None:
    limit = Limit(redis, script, 2)
    paused = limit.ask(pause=10 * INTERVAL)
    earliest = paused.now + 10 * INTERVAL
    waits = [limit.ask(cost, line="b", patience=0) for cost in (1, 2, 0.5)]
    turns = [reply.now + reply.answers[0] for reply in waits]
    assert min(turns) >= earliest
    assert turns[1] - turns[0] == pytest.approx(INTERVAL, abs=3)
    shorter = limit.ask(1, pause=INTERVAL, patience=0)
    assert shorter.now + shorter.answers[0] == pytest.approx(turns[0], abs=3)


def test_a_bucket_that_a_pause_has_emptied_gets_nothing_back(redis: Redis) -> None:
    limit = Limit(redis, TOKEN_BUCKET, 2)
    first = limit.ask(2)
    paused = limit.ask(pause=INTERVAL)
    reply = limit.ask(1, patience=0, refunds=[(2, first.now)])
    assert reply.now + reply.answers[0] == pytest.approx(paused.now + 2 * INTERVAL, abs=3)


# A bucket of one, with a permit so near that it is taken in advance.
SOON = 40e3


def advanced(
    redis: Redis, script: Script, capacity: int, cost: float
) -> tuple[Limit, Asked, Asked]:
    """Return a limit that is used up, the reply to whom did that, and that of a place behind."""
    for _ in range(100):
        limit = Limit(redis, script, capacity, SOON / capacity)
        first = limit.ask(capacity)
        place = limit.ask(cost, line="b")
        if place.place:
            return limit, first, place
    raise AssertionError("this machine is too slow")


@both
def test_a_place_is_exact_and_whoever_asks_later_comes_later(redis: Redis, script: Script) -> None:
    limit, first, place = advanced(redis, script, 1, 1)
    assert place.place - first.now == pytest.approx(SOON, abs=2)
    reply = limit.ask(1, line="c", refunds=[(1, first.now)])
    assert max(reply.place, reply.turn, reply.now) >= place.place + SOON - 2


@both
def test_a_place_that_is_given_back_is_had_by_the_next(redis: Redis, script: Script) -> None:
    limit, _, place = advanced(redis, script, 1, 1)
    reply = limit.ask(1, line="c", refunds=[(1, place.place)])
    assert reply.place in (place.place, 0)
    assert max(reply.place, reply.now) - place.place < INTERVAL


@both
def test_nobody_overtakes_a_place(redis: Redis, script: Script) -> None:
    limit, first, place = advanced(redis, script, 2, 1)
    reply = limit.ask(0.5, line="c", refunds=[(2, first.now)])
    assert max(reply.place, reply.turn, reply.now) >= place.place


def test_a_bucket_takes_no_place_back_that_others_stand_behind(redis: Redis) -> None:
    for _ in range(100):
        limit = Limit(redis, TOKEN_BUCKET, 2, 7e3)
        limit.ask(2)
        places = [limit.ask(2, line=line).place for line in "bcd"]
        reply = limit.ask(1, line="e", refunds=[(2, places[0])])
        if all(places) and reply.now < places[0]:
            break
    else:
        raise AssertionError("this machine is too slow")
    assert max(reply.place, reply.turn) == pytest.approx(places[2] + 7e3, abs=3)


def test_a_refund_makes_a_bucket_no_fuller_than_the_latest_permit_allows(
    redis: Redis,
) -> None:
    limit = Limit(redis, TOKEN_BUCKET, 1)
    limit.ask(1, refunds=[(5, 0)])
    reply = limit.ask(1, patience=0, refunds=[(5, 0)])
    assert reply.answers[0] == pytest.approx(INTERVAL, abs=NEAR)


def test_a_window_counts_what_it_is_given_back_where_it_was_granted(redis: Redis) -> None:
    limit = Limit(redis, SLIDING_WINDOW, 10)
    first = limit.ask(4)
    second = limit.ask(4)
    limit.ask(refunds=[(3, second.now), (3, first.now)])
    assert redis.lrange("{limit}:log", 0, -1) == [f"{first.now}:1", f"{second.now}:1"]
    limit.ask(refunds=[(2, second.now)])
    assert redis.lrange("{limit}:log", 0, -1) == []


def test_more_than_a_window_holds_takes_windows(redis: Redis) -> None:
    limit = Limit(redis, SLIDING_WINDOW, 2)
    first = limit.ask(2)
    for line, windows in zip("abcd", (1, 1, 2, 2), strict=True):
        reply = limit.ask(1, line=line)
        assert reply.turn - first.now == pytest.approx(windows * 2 * INTERVAL, abs=NEAR)


@both
def test_debts_are_waited_off_but_what_was_granted_without_redis_only_empties_a_bucket(
    redis: Redis, script: Script
) -> None:
    limit = Limit(redis, script, 2)
    reply = limit.ask(1, owed=50, patience=0)
    emptied = INTERVAL if script is TOKEN_BUCKET else 2 * INTERVAL
    assert reply.answers[0] == pytest.approx(emptied, abs=NEAR)
    limit = Limit(redis, script, 2)
    reply = limit.ask(1, debt=4, patience=0)
    owing = 3 * INTERVAL if script is TOKEN_BUCKET else 2 * INTERVAL
    assert reply.answers[0] == pytest.approx(owing, abs=NEAR)


def test_a_refund_makes_a_bucket_no_emptier_either(redis: Redis) -> None:
    limit = Limit(redis, TOKEN_BUCKET, 1)
    first = limit.ask(0.5)
    limit.ask(0.25)
    assert limit.ask(0.2, refunds=[(0.1, first.now)]).answers == [0]


def test_nothing_is_given_in_advance_to_a_line_with_others_before_it(redis: Redis) -> None:
    for _ in range(100):
        limit = Limit(redis, TOKEN_BUCKET, 10, 10e3)
        first = limit.ask(10)
        limit.ask(8, line="b")
        reply = limit.ask(1, line="c", refunds=[(4, first.now)])
        if not reply.answers and reply.now < first.now + 30e3:
            break
    else:
        raise AssertionError("this machine is too slow")
    assert reply.place == 0
    assert reply.turn == pytest.approx(first.now + 50e3, abs=3)


def test_a_window_spaces_what_follows_a_pause_and_knows_what_was_given_back(redis: Redis) -> None:
    limit = Limit(redis, SLIDING_WINDOW, 2)
    limit.ask(pause=1)
    first = limit.ask(1)
    assert first.answers == [0]
    wait = limit.ask(1, patience=0).answers[0]
    assert wait == pytest.approx(INTERVAL, abs=NEAR)
    assert limit.ask(1, refunds=[(1, first.now)]).answers == [0]


def test_the_estimate_behind_a_line_is_never_too_long(redis: Redis) -> None:
    limit = Limit(redis, SLIDING_WINDOW, 2)
    limit.ask(1)
    assert limit.ask(2, line="b").turn > 0
    reply = limit.ask(1, line="c")
    assert reply.turn - reply.now == pytest.approx(2 * INTERVAL, abs=NEAR)
