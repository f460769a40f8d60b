"""Which host an attempt goes to, and which it does not go to again."""

import asyncio
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.config import BalanceConfig
from shared.infrastructure.balancing.errors import NoHostAvailableError
from shared.infrastructure.balancing.faults import RULES, Fault
from shared.infrastructure.balancing.hosts import HostLimits
from shared.infrastructure.http import PoolTimeoutError
from shared.infrastructure.resilience import CircuitBreakerConfig
from tests.unit.balancing.fleet import First, Fleet, InTurn, busy, streamed

NEVER_PANICS = BalanceConfig(panic_threshold=1.0, slow_start=0.0)


async def test_a_host_that_failed_is_not_asked_again_whatever_the_affinity() -> None:
    """A strategy that goes on wanting the dead host must not cost the call its other host."""
    dead, well = httpx.ConnectError("dead"), 200
    fleet = Fleet({"a": dead, "b": well}, strategy=First())
    call = fleet.call(affinity="session")
    assert await fleet.statuses(call, 2) == ["ConnectFailedError", 200]
    assert fleet.asked == ["a", "b"]


async def test_a_session_comes_back_to_its_host_once_that_is_well_again() -> None:
    fleet = Fleet({"a": [500, 500, 200], "b": 200}, strategy=First())
    await fleet.statuses(fleet.call(affinity="s"), 2)
    await fleet.statuses(fleet.call(affinity="s"), 2)
    for _ in range(3):
        await fleet.send(fleet.call(affinity="s"))
    assert fleet.asked[-3:] == ["b", "b", "b"]  # and none of them probed it
    await fleet.clock.advance(5.0)
    for _ in range(3):
        await fleet.send(fleet.call(affinity="s"))
    assert fleet.asked[-3:] == ["a", "a", "a"]


async def test_a_silent_host_is_not_asked_again() -> None:
    fleet = Fleet({"a": httpx.ReadTimeout("silent")})
    call = fleet.call()
    assert await fleet.statuses(call, 2) == ["ReadTimeoutError", "NoHostAvailableError"]
    assert fleet.asked == ["a"]


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        (500, Fault.BROKEN),
        (503, Fault.OVERLOADED),
        (busy(0), Fault.THROTTLED),
        (401, Fault.MISCONFIGURED),
        (404, Fault.NO_MODEL),
        (400, Fault.REJECTED),
    ],
)
async def test_a_lone_host_is_asked_again_as_often_as_the_error_table_says(
    step: Any, fault: Fault
) -> None:
    config = BalanceConfig(throttle=1e-9, misconfigured=1e-9, missing=1e-9)
    fleet = Fleet({"a": step}, balance=config, policy={"circuit_breaker": None})
    call = fleet.call(model="m")
    for _ in range(4):
        await fleet.statuses(call, 1)
        await fleet.clock.advance(1.0)
    assert len(fleet.asked) == min(4, 1 + RULES[fault].same_host)


async def test_the_fresh_hosts_come_first_and_then_those_that_may_be_asked_again() -> None:
    fleet = Fleet({"a": 500, "b": 500, "c": 500}, policy={"circuit_breaker": None})
    call = fleet.call()
    await fleet.statuses(call, 6)
    assert sorted(fleet.asked[:3]) == sorted(fleet.asked[3:]) == ["a", "b", "c"]


async def test_of_hosts_that_failed_the_one_just_asked_comes_last() -> None:
    fleet = Fleet({"a": 500, "b": 500}, policy={"circuit_breaker": None}, strategy=First())
    await fleet.statuses(fleet.call(), 4)
    assert fleet.asked == ["a", "b", "a", "b"]


async def test_the_legs_of_a_race_never_share_a_host() -> None:
    never = asyncio.Event()
    fleet = Fleet({"a": never, "b": never}, strategy=First())
    call = fleet.call()
    legs = [fleet.start(call) for _ in range(3)]
    await fleet.settle()
    assert fleet.asked == ["a", "b"]
    assert isinstance(legs[2].exception(), NoHostAvailableError)
    for leg in legs:
        leg.cancel()
    await asyncio.gather(*legs, return_exceptions=True)


async def test_attempts_that_go_elsewhere_are_counted() -> None:
    fleet = Fleet({"a": 500, "b": 200})
    await fleet.statuses(fleet.call(), 2)
    await fleet.statuses(fleet.call(), 1)
    assert fleet.balance.failovers == 1


async def test_an_error_names_its_host() -> None:
    fleet = Fleet({"a": httpx.ConnectError("no")})
    with pytest.raises(httpx.ConnectError) as caught:
        await fleet.send()
    assert caught.value.host == "a"  # type: ignore[attr-defined]


@pytest.mark.parametrize("calls", [200])
async def test_a_full_pool_of_our_own_opens_no_circuit_under_load(calls: int) -> None:
    """Errors of our own making, however many, must not take healthy hosts away."""
    fleet = Fleet({"a": httpx.PoolTimeout("full"), "b": httpx.PoolTimeout("full")})
    outcomes = await asyncio.gather(*(fleet.start() for _ in range(calls)), return_exceptions=True)
    assert all(isinstance(outcome, PoolTimeoutError) for outcome in outcomes)
    assert {host.snapshot()["state"] for host in fleet.roster.hosts.values()} == {"ready"}


def open_up(fleet: Fleet, names: str) -> None:
    for name in names:
        lane = fleet[name].lanes.get(None)
        assert lane.breaker is not None
        lane.breaker.open_for(5.0)


async def ask_all_but(fleet: Fleet, name: str) -> Any:
    call = fleet.call()
    call.left[name] = 0
    return await fleet.statuses(call, 1)


async def test_if_most_hosts_are_open_a_call_without_another_is_let_through() -> None:
    fleet = Fleet({"a": 200, "b": 200, "c": 200})
    open_up(fleet, "ab")
    for _ in range(3):
        assert (await fleet.send()).status_code == 200
    assert fleet.asked == ["c", "c", "c"]
    assert await ask_all_but(fleet, "c") == [200]
    assert [host.name for host in fleet.strategy.seen[-1]] == ["a", "b"]


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
async def test_if_no_host_is_well_the_circuits_are_believed(names: str) -> None:
    fleet = Fleet(dict.fromkeys(names, 200))
    open_up(fleet, names)
    with pytest.raises(NoHostAvailableError) as caught:
        await fleet.send()
    assert caught.value.retry_after == 5.0
    assert fleet.asked == []


async def test_an_answer_in_spite_of_an_open_circuit_invites_a_probe() -> None:
    fleet = Fleet({"a": 200, "b": 200, "c": 200})
    open_up(fleet, "ab")
    for _ in range(8):
        assert await ask_all_but(fleet, "c") == [200]
    states = [fleet[name].snapshot()["circuit_breaker"]["state"] for name in "ab"]
    assert states == ["closed", "open"]  # which is no longer most of them


@pytest.mark.parametrize("step", [busy(90), 401])
async def test_there_is_no_panic_where_the_others_are_only_spared(step: Any) -> None:
    fleet = Fleet({"a": step, "b": 200, "c": 200}, each={"a": {"api_key": "k"}})
    call = fleet.call()
    await fleet.send(call)
    open_up(fleet, "bc")
    assert await fleet.statuses(call, 1) == ["NoHostAvailableError"]
    assert fleet.asked == ["a"]


async def test_panic_ignores_no_other_reason() -> None:
    fleet = Fleet({"a": 200, "b": 200, "c": 401, "d": busy(90), "e": 200}, api_key="k")
    await fleet.statuses(fleet.call(), 4)
    fleet.roster.enable("e", False)
    fleet.asked.clear()
    for name in "ab":
        breaker = fleet[name].lanes.get(None).breaker
        assert breaker is not None
        breaker.open_for(5.0)
    outcomes = [await fleet.statuses(fleet.call(), 1) for _ in range(4)]
    assert outcomes == [["NoHostAvailableError"]] * 4  # two of four are not the most


async def test_without_panic_it_says_of_every_host_why_not() -> None:
    fleet = Fleet(
        {"a": 200, "b": 200, "c": 401, "d": busy(90), "e": 200, "f": 200},
        balance=NEVER_PANICS,
        each={"c": {"api_key": "k"}, "e": {"models": ["x"]}, "f": {"capabilities": []}},
    )
    facts: dict[str, Any] = {"model": "m", "needs": frozenset({"tools"})}
    call = fleet.call(**facts)
    await fleet.statuses(call, 4)
    fleet.roster.enable("a", False)
    breaker = fleet["b"].lanes.get("m").breaker
    assert breaker is not None
    breaker.open_for(5.0)
    with pytest.raises(NoHostAvailableError) as caught:
        await fleet.send(fleet.call(**facts))
    assert caught.value.reasons == {
        "a": "it is disabled",
        "b": "its circuit is open",
        "c": "it refused its key",
        "d": "it asked for patience",
        "e": "it does not serve 'm'",
        "f": "it has not all of tools",
    }
    assert caught.value.retry_after == 5.0


async def test_what_keeps_a_call_away_is_told_as_a_fault_too() -> None:
    fleet = Fleet({"a": busy(90), "b": 200, "c": 200}, balance=NEVER_PANICS)
    await fleet.statuses(fleet.call(), 1)
    fleet.roster.enable("b", False)
    open_up(fleet, "c")
    with pytest.raises(NoHostAvailableError) as caught:
        await fleet.send()
    assert caught.value.faults == {"a": Fault.THROTTLED, "b": None, "c": Fault.BROKEN}


async def test_a_call_waits_for_the_probe_of_the_only_host_and_is_told_if_it_fails() -> None:
    """Half-open, a lone host refused everybody but its probe; they may as well wait for it."""
    breaker = CircuitBreakerConfig(failure_threshold=1, timeout=5.0, success_threshold=1)
    end = asyncio.Event()
    steps: Any = [500, end, 500]
    fleet = Fleet({"a": steps}, policy={"circuit_breaker": breaker})
    await fleet.send()
    await fleet.clock.advance(5.0)
    probe, other = fleet.start(), fleet.start()
    await fleet.settle()
    seen = fleet.balance.outlook(fleet.call())
    assert seen is not None
    assert 0.0 < seen.seconds < 1.0
    end.set()
    await fleet.settle()
    assert (probe.result().status_code, other.result().status_code) == (200, 500)
    with pytest.raises(NoHostAvailableError):
        await fleet.send()


async def test_a_half_open_host_gets_one_probe_and_the_others_go_elsewhere() -> None:
    """A probe that takes its time must not cost anybody else an error."""
    end = asyncio.Event()
    breaker = CircuitBreakerConfig(failure_threshold=1, timeout=5.0, success_threshold=1)
    fleet = Fleet({"a": [500, end, 200], "b": 200}, policy={"circuit_breaker": breaker})
    await fleet.send()
    await fleet.clock.advance(5.0)
    calls = [fleet.start() for _ in range(20)]
    await fleet.settle()
    assert fleet.counts()["a"] == 2
    end.set()
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {200}
    await fleet.send()
    await fleet.send()
    assert fleet.counts()["a"] == 3


async def test_a_long_stream_is_as_good_a_probe_as_any() -> None:
    end = asyncio.Event()
    breaker = CircuitBreakerConfig(failure_threshold=1, timeout=5.0, success_threshold=1)
    steps: Any = [500, streamed(b"1", end, b"2"), 200]
    fleet = Fleet({"a": steps, "b": 200}, policy={"circuit_breaker": breaker}, strategy=First())
    await fleet.send()
    await fleet.clock.advance(5.0)
    probe = await fleet.send()
    for _ in range(3):
        await fleet.clock.advance(60.0)
        await fleet.send()
    assert fleet.counts() == {"a": 2, "b": 3}
    end.set()
    await probe.aread()
    assert fleet["a"].snapshot()["circuit_breaker"]["state"] == "closed"


async def test_a_probe_that_is_cancelled_makes_room_for_the_next() -> None:
    breaker = CircuitBreakerConfig(failure_threshold=1, timeout=5.0, success_threshold=1)
    steps: Any = [500, asyncio.Event(), 200]
    fleet = Fleet({"a": steps, "b": 200}, policy={"circuit_breaker": breaker}, strategy=First())
    await fleet.send()
    await fleet.clock.advance(5.0)
    probe = fleet.start()
    await fleet.settle()
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    await fleet.send()
    assert fleet.asked == ["a", "a", "a"]


async def outlook(fleet: Fleet, attempts: int, **facts: Any) -> tuple[float, bool] | None:
    call = fleet.call(**facts)
    await fleet.statuses(call, attempts)
    return fleet.balance.outlook(call)


async def test_the_outlook_is_now_while_a_fresh_host_is_left() -> None:
    assert await outlook(Fleet({"a": 500, "b": 200}), 1) == (0.0, True)


async def test_the_outlook_says_that_only_a_tried_host_is_left() -> None:
    assert await outlook(Fleet({"a": 500}), 1) == (0.0, False)


@pytest.mark.parametrize(
    ("step", "wait"), [(busy(7), (7.0, False)), (httpx.ReadTimeout("s"), None)]
)
async def test_the_outlook_is_as_long_as_was_asked_for_or_none(
    step: Any, wait: tuple[float, bool] | None
) -> None:
    assert await outlook(Fleet({"a": step}), 1) == wait


async def test_the_outlook_is_now_where_it_is_only_a_matter_of_room() -> None:
    fleet = Fleet(
        {"a": 500, "b": asyncio.Event()}, each={"b": {"limits": HostLimits(max_in_flight=1)}}
    )
    fleet.roster.enable("a", False)
    other = fleet.start()
    await fleet.settle()
    assert await outlook(fleet, 0) == (0.0, True)
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)


async def test_a_strategy_sees_the_facts_at_each_attempt() -> None:
    seen: list[Any] = []

    class Spy(InTurn):
        def pick(self, candidates: Any, context: Any, /) -> Any:
            seen.append(context)
            return super().pick(candidates, context)

    fleet = Fleet({"a": 500, "b": 200}, strategy=Spy())
    call = fleet.call(model="m", affinity="s")
    await fleet.statuses(call, 2)
    assert [context.facts for context in seen] == [call.facts, call.facts]


async def test_a_stream_that_broke_off_goes_on_elsewhere() -> None:
    fleet = Fleet({"a": streamed(b"1", httpx.ReadError("gone")), "b": 200}, strategy=First())
    call = fleet.call()
    response = await fleet.send(call)
    with pytest.raises(httpx.ReadError):
        await response.aread()
    await fleet.send(call)
    assert fleet.asked == ["a", "b"]
