"""Which hosts may be called, and how that changes while the pool runs."""

import asyncio
from typing import Any

import pytest

from shared.infrastructure.balancing.config import BalanceConfig
from shared.infrastructure.balancing.hosts import Capability, Host
from shared.infrastructure.resilience import ConfigurationError
from tests.unit.balancing.fleet import Fleet, busy, streamed


def names(fleet: Fleet, **facts: Any) -> list[str]:
    return [host.name for host in candidates(fleet, **facts)]


def candidates(fleet: Fleet, **facts: Any) -> Any:
    call = fleet.call(**facts)
    return fleet.roster.candidates(fleet.roster.view(call.facts, fleet.clock.now()), call)


async def test_while_nothing_speaks_against_a_host_the_tuple_is_the_same() -> None:
    fleet = Fleet({"a": 200, "b": 200})
    first = candidates(fleet)
    assert isinstance(first, tuple)
    await fleet.send()
    await fleet.clock.advance(100.0)
    assert candidates(fleet) is first
    assert candidates(fleet, model="m") is first
    assert candidates(fleet, needs=frozenset({"tools"})) is first


async def test_a_host_that_comes_back_is_in_the_same_tuple_again() -> None:
    fleet = Fleet({"a": [busy(5), 200], "b": 200})
    before = candidates(fleet)
    await fleet.send()
    assert names(fleet) == ["b"]
    await fleet.clock.advance(5.0)
    assert candidates(fleet) is before


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, ["a", "b", "c"]),
        ({"model": "m"}, ["a", "b"]),
        ({"model": "n"}, ["b", "c"]),
        ({"model": "z"}, ["b"]),
        ({"model": "m", "needs": frozenset({"tools"})}, ["a", "b"]),
        ({"model": "n", "needs": frozenset({"vision"})}, ["b"]),
        ({"needs": frozenset({"prefill"})}, ["c"]),
    ],
)
async def test_a_host_has_to_serve_the_model_and_to_be_able(facts: Any, expected: Any) -> None:
    each = {
        "a": {"models": {"m": "own"}},
        "c": {"models": ["n"], "capabilities": [Capability.TOOLS, Capability.PREFILL]},
    }
    assert names(Fleet({"a": 200, "b": 200, "c": 200}, each=each), **facts) == expected


async def test_a_disabled_host_gets_no_call_until_it_is_enabled() -> None:
    fleet = Fleet({"a": 200, "b": 200})
    fleet.roster.enable("a", False)
    for _ in range(3):
        await fleet.send()
    assert fleet.counts() == {"b": 3}
    assert fleet["a"].snapshot()["state"] == "disabled"
    fleet.roster.enable("a", True)
    await fleet.send()
    await fleet.send()
    assert fleet.counts()["a"] == 1


@pytest.mark.parametrize("change", ["remove", "set_weight", "enable"])
def test_a_host_that_is_not_there_is_named(change: str) -> None:
    fleet = Fleet({"a": 200, "b": 200})
    arguments: list[Any] = [] if change == "remove" else [1]
    with pytest.raises(ConfigurationError, match="no host 'z': the hosts are a, b"):
        getattr(fleet.roster, change)("z", *arguments)


def test_two_hosts_of_one_name_are_refused() -> None:
    fleet = Fleet({"a": 200})
    with pytest.raises(ConfigurationError, match="two 'a'"):
        fleet.add("a")


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_has_to_be_above_0(weight: float) -> None:
    with pytest.raises(ConfigurationError, match="weight of a must be above 0"):
        Fleet({"a": 200}).roster.set_weight("a", weight)


async def test_whoever_goes_by_the_old_hosts_is_not_disturbed_by_a_change() -> None:
    fleet = Fleet({"a": 200, "b": 200})
    old = candidates(fleet)
    fleet.roster.remove("a")
    fleet.add("c")
    assert [host.name for host in old] == ["a", "b"]
    assert names(fleet) == ["b", "c"]


async def test_draining_waits_for_live_streams_and_then_disables() -> None:
    end = asyncio.Event()
    fleet = Fleet({"a": streamed(b"1", end, b"2"), "b": 200})
    response = await fleet.send()
    draining = asyncio.ensure_future(fleet.roster.drain("a", 30.0))
    await fleet.settle()
    assert (fleet["a"].snapshot()["state"], names(fleet)) == ("draining", ["b"])
    end.set()
    assert await response.aread() == b"12"
    assert await draining
    assert fleet["a"].snapshot()["state"] == "disabled"
    assert fleet.clock.pending == 0


async def test_draining_gives_up_after_its_time_and_says_so() -> None:
    fleet = Fleet({"a": asyncio.Event(), "b": 200})
    call = fleet.start()
    await fleet.settle()
    draining = asyncio.ensure_future(fleet.roster.drain("a", 3.0))
    await fleet.clock.advance(3.0)
    assert not await draining
    assert not fleet["a"].enabled
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert fleet.in_flight["a"] == 0


async def test_draining_an_idle_host_takes_no_time() -> None:
    fleet = Fleet({"a": 200})
    assert await fleet.roster.drain("a", 3.0)


@pytest.mark.parametrize("way", ["cancel", "enable"])
async def test_draining_can_be_called_off(way: str) -> None:
    fleet = Fleet({"a": asyncio.Event()})
    call = fleet.start()
    await fleet.settle()
    draining = asyncio.ensure_future(fleet.roster.drain("a", 3.0))
    await fleet.settle()
    if way == "cancel":
        draining.cancel()
    else:
        fleet.roster.enable("a", True)
    await fleet.clock.advance(3.0)
    await asyncio.gather(draining, return_exceptions=True)
    assert names(fleet) == ["a"]
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def test_of_two_drains_the_one_that_is_cancelled_does_not_undo_the_other() -> None:
    end = asyncio.Event()
    fleet = Fleet({"a": end, "b": 200})
    call = fleet.start()
    await fleet.settle()
    drains = [asyncio.ensure_future(fleet.roster.drain("a", 100.0)) for _ in range(2)]
    await fleet.settle()
    drains[0].cancel()
    await fleet.settle()
    assert names(fleet) == ["b"]
    end.set()
    await call
    assert await drains[1]
    assert fleet["a"].snapshot()["state"] == "disabled"


async def test_who_retires_a_host_that_somebody_else_let_go_is_told_at_once() -> None:
    fleet = Fleet({"a": asyncio.Event(), "b": 200})
    call = fleet.start()
    await fleet.settle()
    first = asyncio.ensure_future(fleet.roster.retire("a", 1.0))
    second = asyncio.ensure_future(fleet.roster.retire("a", 100.0))
    await fleet.settle()
    old = fleet["a"]
    first.add_done_callback(lambda _: fleet.add("a"))
    await fleet.clock.advance(1.0)
    assert await first == (old, False)
    with pytest.raises(ConfigurationError, match="let go meanwhile"):
        await second
    assert fleet["a"].enabled  # the new one is none of their business
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def share(fleet: Fleet, host: Host) -> float:
    candidates(fleet)  # weights are brought up to date when somebody asks
    return host.weight / host.base_weight


async def ramp_of(fleet: Fleet, host: Host) -> list[float]:
    found: list[float] = []
    for _ in range(5):
        found.append(round(await share(fleet, host), 2))
        await fleet.clock.advance(7.5)
    return found


RAMP = [0.1, 0.25, 0.5, 0.75, 1.0]


async def test_a_host_that_is_added_later_grows_to_its_weight() -> None:
    fleet = Fleet({"a": 200}, slow_start=30.0)
    assert fleet["a"].snapshot()["state"] == "ready"  # there from the beginning
    host = fleet.add("b", slow_start=True, weight=4.0)
    assert host.snapshot()["state"] == "slow_start"
    assert await ramp_of(fleet, host) == RAMP
    assert (host.snapshot()["state"], host.weight) == ("ready", 4.0)


async def test_a_host_that_is_enabled_again_grows_to_its_weight() -> None:
    fleet = Fleet({"a": 200}, slow_start=30.0)
    fleet.roster.enable("a", True)
    assert await share(fleet, fleet["a"]) == 1.0  # it was never gone
    fleet.roster.enable("a", False)
    fleet.roster.enable("a", True)
    assert await ramp_of(fleet, fleet["a"]) == RAMP


async def test_a_host_whose_circuit_closes_grows_to_its_weight() -> None:
    fleet = Fleet({"a": [500, 500, 200], "b": 200}, balance=BalanceConfig(slow_start=30.0))
    for _ in range(4):
        await fleet.send()
    assert names(fleet) == ["b"]
    await fleet.clock.advance(5.0)
    for _ in range(4):
        await fleet.send()
    assert fleet["a"].snapshot()["circuit_breaker"]["state"] == "closed"
    assert await ramp_of(fleet, fleet["a"]) == RAMP


async def test_a_circuit_that_closes_slows_nobody_down_whose_other_models_were_well() -> None:
    fleet = Fleet({"a": [200, 500, 500, 200]}, balance=BalanceConfig(slow_start=30.0))
    await fleet.send(fleet.call(model="good"))
    await fleet.statuses(fleet.call(model="bad"), 2)
    await fleet.clock.advance(5.0)
    for _ in range(2):
        await fleet.send(fleet.call(model="bad"))
    assert fleet["a"].snapshot()["lanes"]["bad"]["circuit_breaker"]["state"] == "closed"
    assert await share(fleet, fleet["a"]) == 1.0


async def test_a_new_weight_counts_in_slow_start_too() -> None:
    fleet = Fleet({"a": 200}, slow_start=30.0)
    host = fleet.add("b", slow_start=True)
    fleet.roster.set_weight("b", 10.0)
    assert (await share(fleet, host), host.weight) == (0.1, 1.0)
    await fleet.clock.advance(30.0)
    candidates(fleet)
    assert host.weight == 10.0


async def test_models_without_end_take_no_memory_without_end() -> None:
    fleet = Fleet({"a": 200})
    for number in range(5000):
        assert names(fleet, model=str(number)) == ["a"]
    assert len(fleet.roster._views) <= 1000
