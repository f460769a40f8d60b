import math

import pytest
from scheduling_fakes import Bench, Item

from services.embedding.errors import QueueFullError
from services.embedding.options import Lane
from services.embedding.scheduling.promises import Promises
from shared.infrastructure.resilience import DeadlineExceededError

COSTS = (0.001, 0.001, 0.0)  # about a second for a thousand tokens


def put(bench: Bench, seconds: float, lane: Lane = Lane.DEFAULT, tenant: str = "") -> None:
    bench.submit(*(Item(100, lane, tenant=tenant) for _ in range(round(seconds * 10))))


def refusal(bench: Bench, tokens: int = 100, lane: Lane = Lane.DEFAULT, **of: object) -> float:
    """Return the Retry-After of a call; 0 if it is let in."""
    try:
        bench.scheduler.admit(tokens, lane=lane, **of)  # type: ignore[arg-type]
    except QueueFullError as refused:
        return refused.retry_after or math.nan
    return 0.0


@pytest.mark.parametrize(
    ("lane", "bound"), [(Lane.INTERACTIVE, 4), (Lane.DEFAULT, 4), (Lane.BULK, 60)]
)
async def test_the_queue_is_bounded_in_seconds(lane: Lane, bound: float) -> None:
    async with Bench(costs=COSTS) as bench:
        await bench.learn()
        put(bench, bound - 0.5, lane)
        assert refusal(bench, lane=lane) == 0.0
        put(bench, 1.0, lane)
        assert refusal(bench, lane=lane) > 0.0
        assert bench.scheduler.snapshot()["refused_counts"] == {str(lane): 1}


async def test_a_call_is_refused_only_for_what_is_ahead_of_it() -> None:
    async with Bench(costs=COSTS) as bench:
        await bench.learn()
        assert refusal(bench, 1_000_000) == 0.0


async def test_what_was_let_in_and_is_still_being_prepared_is_ahead_of_the_next() -> None:
    async with Bench(costs=COSTS) as bench:
        await bench.learn()
        assert refusal(bench, 10_000) == 0.0
        assert refusal(bench, 10) > 0.0
        assert refusal(bench, 10, tenant="other") == 0.0
        await bench.clock.advance(5.0)  # it never came: all of it was in the cache
        assert refusal(bench, 10, call="new") == 0.0


async def test_what_came_is_not_awaited_any_more() -> None:
    async with Bench(costs=COSTS) as bench:
        await bench.learn()
        for _ in range(20):
            assert refusal(bench, 1000) == 0.0
            bench.submit(*(items := [Item(100) for _ in range(10)]))
            for item in items:
                bench.scheduler.cancel(item.job)


async def test_a_call_whose_deadline_is_sure_to_pass_is_refused() -> None:
    async with Bench(costs=COSTS) as bench:
        await bench.learn()
        put(bench, 3.0)
        now = bench.clock.now()
        bench.scheduler.admit(10, lane=Lane.DEFAULT, deadline=now + 2.5)  # it might just do
        with pytest.raises(DeadlineExceededError):
            bench.scheduler.admit(10, lane=Lane.DEFAULT, deadline=now + 1.0)
        bench.scheduler.admit(10, lane=Lane.INTERACTIVE, deadline=now + 1.0)
        with pytest.raises(DeadlineExceededError):
            bench.scheduler.admit(10, lane=Lane.INTERACTIVE, deadline=now)
        assert bench.scheduler.snapshot()["refused_counts"] == {"deadline": 2}


async def test_a_call_that_takes_longer_than_it_may_is_refused_by_an_idle_model() -> None:
    async with Bench(costs=COSTS) as bench:
        await bench.learn()
        with pytest.raises(DeadlineExceededError):
            bench.scheduler.admit(10_000, lane=Lane.BULK, deadline=bench.clock.now() + 3.0)


async def test_what_is_known_of_tenants_on_their_way_is_bounded() -> None:
    async with Bench(costs=COSTS) as bench:
        for number in range(5000):
            assert refusal(bench, 10, tenant=str(number)) == 0.0
        assert 0 < len(bench.scheduler._admission._on_their_way) <= 4096


@pytest.mark.parametrize(("bulk", "apart"), [(0.0, 1.1), (50.0, 1.1 * 1.25)])
async def test_places_are_as_far_apart_as_calls_take_beside_other_lanes(
    bulk: float, apart: float
) -> None:
    async with Bench(costs=COSTS) as bench:
        await bench.learn()
        put(bench, 4.5)
        put(bench, bulk, Lane.BULK)
        waits = [refusal(bench, 1000, call=number) for number in range(3)]
        assert waits[1] - waits[0] == pytest.approx(apart, rel=0.1)
        assert waits[2] - waits[1] == pytest.approx(apart, rel=0.1)


@pytest.mark.parametrize(("call", "promises"), [("known", 0), (None, 1)])
async def test_a_call_let_in_before_its_time_gives_its_place_back_if_it_is_known(
    call: str | None, promises: int
) -> None:
    async with Bench(costs=COSTS) as bench:
        await bench.learn()
        items = [Item(100) for _ in range(45)]
        bench.submit(*items)
        assert refusal(bench, call=call) > 0.0
        for item in items:
            bench.scheduler.cancel(item.job)
        assert refusal(bench, call=call) == 0.0
        assert bench.scheduler.snapshot()["promises"] == promises


async def test_who_comes_back_when_told_is_let_in_before_newcomers() -> None:
    async with Bench(costs=COSTS) as bench:
        await bench.learn()
        put(bench, 4.5)
        waits = [refusal(bench, 1000, call=number) for number in range(5)]
        assert waits == sorted(waits)
        await bench.clock.advance(waits[0])
        assert refusal(bench, 10, call="newcomer") > waits[4] - waits[0]
        assert refusal(bench, 1000, call=0) == 0.0


async def test_who_comes_too_early_keeps_his_place() -> None:
    async with Bench(costs=COSTS) as bench:
        await bench.learn()
        put(bench, 4.5)
        first, second = refusal(bench, 1000, call="a"), refusal(bench, 1000, call="b")
        await bench.clock.advance(first / 2)
        assert refusal(bench, 1000, call="a") == pytest.approx(first / 2)
        assert refusal(bench, 1000, call="b") == pytest.approx(second - first / 2)
        assert bench.scheduler.snapshot()["promises"] == 2


async def test_a_promise_is_sooner_for_a_lane_with_less_ahead() -> None:
    async with Bench(costs=COSTS) as bench:
        await bench.learn()
        put(bench, 12.0)
        put(bench, 4.5, Lane.INTERACTIVE)
        assert 0 < refusal(bench, lane=Lane.INTERACTIVE) < refusal(bench, lane=Lane.DEFAULT)


async def test_a_running_batch_is_ahead_of_everybody() -> None:
    async with Bench(costs=COSTS) as bench:
        await bench.learn()
        await bench.occupy(7000)
        assert refusal(bench, call="a") == pytest.approx(5.0, rel=0.25)
        await bench.clock.advance(5.5)
        assert refusal(bench, call="b", tenant="b") == 0.0


def test_places_are_booked_one_behind_the_other() -> None:
    promises = Promises()
    dues = [promises.make(call, 1.0, 10.0, 8.0, distinct=True) for call in range(3)]
    assert dues == pytest.approx([10.0, 11.1, 12.2])
    assert promises.outstanding == pytest.approx(3.0)
    assert len(promises) == 3


def test_a_promise_is_due_from_its_time_until_two_seconds_later() -> None:
    promises = Promises()
    promises.make("a", 1.0, 10.0, 8.0, distinct=True)
    assert [promises.is_due("a", now) for now in (9.9, 10.0, 11.9)] == [False, True, True]
    assert not promises.is_due("b", 11.9)
    assert not promises.is_due("a", 12.1)
    assert promises.outstanding == len(promises) == 0


def test_a_place_that_was_taken_is_given_back() -> None:
    promises = Promises()
    promises.make("a", 1.0, 10.0, 8.0, distinct=True)
    promises.redeem("a")
    promises.redeem("nobody")
    assert promises.outstanding == len(promises) == 0
    assert not promises.is_due("a", 10.0)


def test_a_place_that_was_taken_is_not_forgotten_a_second_time() -> None:
    promises = Promises()
    for call in "ab":
        promises.make(call, 1.0, 10.0, 8.0, distinct=True)
    promises.redeem("a")
    assert promises.outstanding == 1.0
    assert not promises.is_due("a", 12.05)
    assert promises.outstanding == len(promises) == 1
    assert not promises.is_due("a", 99.0)
    assert promises.outstanding == len(promises) == 0


def test_who_came_in_time_and_in_vain_is_told_a_new_time_without_booking_again() -> None:
    promises = Promises()
    promises.make("a", 1.0, 10.0, 8.0, distinct=True)
    assert promises.make("a", 1.0, 13.0, 10.5, distinct=True) == 13.0
    assert promises.outstanding == 1.0
    assert promises.make("b", 1.0, 9.0, 10.5, distinct=True) == pytest.approx(11.1)


def test_callers_that_look_alike_have_a_place_each() -> None:
    promises = Promises()
    dues = [promises.make("same", 1.0, 10.0, 8.0, distinct=False) for _ in range(2)]
    assert dues == pytest.approx([10.0, 11.1])
    promises.redeem("same")
    assert not promises.is_due("same", 10.5)
    assert promises.is_due("same", 11.1)


def test_one_who_does_not_come_back_says_little_of_the_others() -> None:
    promises = Promises()
    promises.make("lost", 1.0, 10.0, 10.0, distinct=True)
    assert not promises.is_due("lost", 20.0)
    first, second = (promises.make(call, 1.0, 30.0, 30.0, distinct=True) for call in "ab")
    assert second - first == pytest.approx(1.1 * 0.95)


def test_less_is_booked_for_those_who_do_not_come_back() -> None:
    promises = Promises()
    for turn in range(200):
        promises.make(turn, 1.0, turn * 100.0, turn * 100.0, distinct=True)
        assert not promises.is_due(turn, turn * 100.0 + 50)
    first, second = (promises.make(call, 1.0, 1e6, 1e6, distinct=True) for call in "ab")
    assert 0.0 < second - first < 0.1
    patient, other = (promises.make(call, 1.0, 1e6 + 50, 1e6, distinct=True) for call in "cd")
    assert 0.0 < other - patient < 0.1  # who waits longer is no more patient, as far as is known


def test_more_is_booked_for_those_who_are_patient_than_for_those_who_are_not() -> None:
    promises = Promises()
    for turn in range(200):
        now = turn * 100.0
        promises.make("lost", 1.0, now + 50, now, distinct=True)
        promises.make("kept", 1.0, now, now, distinct=True)
        promises.redeem("kept")
        assert not promises.is_due("lost", now + 99)
    first, second = (promises.make(call, 1.0, 1e6, 1e6, distinct=True) for call in "ab")
    assert second - first == pytest.approx(1.1)
    first, second = (promises.make(call, 1.0, 2e6 + 50, 2e6, distinct=True) for call in "cd")
    assert 0.0 < second - first < 0.1


def test_callers_that_never_come_back_do_not_make_the_others_wait() -> None:
    promises = Promises()
    now = 0.0
    waits: list[float] = []
    for number in range(12_000):  # four times what can be done, for a minute
        assert not promises.is_due(number, now)
        waits.append(promises.make(number, 0.02, now + 2, now, distinct=True) - now)
        now += 0.005
    assert max(waits) < 20.0  # nothing is known of them before the first are two seconds late
    assert waits[-1] < 4.0
    assert not promises.is_due("one", now + 5)
    assert promises.make("one", 0.02, now + 6, now + 5, distinct=True) == now + 6
    assert promises.outstanding < 0.1


def test_there_is_no_place_later_than_in_a_minute() -> None:
    promises = Promises()
    waits = [promises.make(call, 1.0, 10.0, 8.0, distinct=True) - 8.0 for call in range(100)]
    assert max(waits) == 60.0 == waits[-1]
    assert len(promises) == 53
    assert promises.make("late", 1.0, 500.0, 8.0, distinct=True) == 500.0  # so much is ahead


def test_who_was_told_a_later_time_does_not_hold_up_the_line() -> None:
    promises = Promises()
    for call in "ab":
        promises.make(call, 1.0, 10.0, 8.0, distinct=True)
    assert promises.make("a", 1.0, 50.0, 10.5, distinct=True) == 50.0
    assert not promises.is_due("b", 14.0)
    assert len(promises) == 1
    assert promises.is_due("a", 51.0)
    assert not promises.is_due("a", 53.0)
    assert len(promises) == 0


def test_promises_are_bounded() -> None:
    promises = Promises()
    for call in range(70_000):
        promises.make(call, 1e-6, 10.0, 8.0, distinct=True)
    assert len(promises) == 65_536
    assert math.isfinite(promises.outstanding)
