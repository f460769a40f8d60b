"""Active checks: of all hosts, whatever their state, and what follows from them."""

import asyncio
import math
from typing import Any

import httpx
import pytest

from shared.infrastructure.resilience import CircuitBreakerConfig, ConfigurationError, HealthConfig
from tests.unit.balancing.fleet import Fleet, Step

CHECKS = HealthConfig(
    interval=10.0, edge_interval=None, jitter=0.0, timeout=2.0, unhealthy_after=2, healthy_after=2
)


def fleet_of(health: Step, slow_start: float = 0.0, **options: Any) -> Fleet:
    fleet = Fleet({"a": 200, "b": 200}, slow_start=slow_start, policy={"health": CHECKS}, **options)
    fleet.health["a"] = health
    return fleet


async def check(fleet: Fleet, times: int = 1) -> str:
    for _ in range(times):
        await fleet["a"].health.check()
    return str(fleet["a"].snapshot()["state"])


@pytest.mark.parametrize("health", [500, 503, httpx.ConnectError("no")])
async def test_a_host_is_down_after_some_bad_checks_and_up_after_some_good_ones(
    health: Step,
) -> None:
    fleet = fleet_of(health)
    assert await check(fleet) == "ready"
    assert await check(fleet) == "down"
    for _ in range(3):
        await fleet.send()
    assert fleet.counts() == {"b": 3}
    fleet.health["a"] = 200
    assert await check(fleet) == "down"
    fleet.health["a"] = health
    assert await check(fleet) == "down"
    fleet.health["a"] = 200
    assert await check(fleet, 2) == "ready"


async def test_a_check_that_is_not_answered_is_a_bad_one() -> None:
    fleet = fleet_of(asyncio.Event())
    for _ in range(2):
        checking = asyncio.ensure_future(check(fleet))
        await fleet.clock.advance(2.0)
        await checking
    assert fleet["a"].snapshot()["state"] == "down"


async def test_a_host_that_recovers_starts_slowly() -> None:
    fleet = fleet_of(500, slow_start=30.0)
    await check(fleet, 2)
    fleet.health["a"] = 200
    assert await check(fleet, 2) == "slow_start"
    assert fleet["a"].weight == 0.1


async def test_traffic_that_fails_does_not_make_a_host_down() -> None:
    fleet = fleet_of(200, each={"a": {"models": ["bad", "good"]}, "b": {"models": ["z"]}})
    fleet.steps["a"] = [500, 500, 500, 200]
    await fleet.statuses(fleet.call(model="bad"), 2)
    assert fleet["a"].health.status == "degraded" or not fleet["a"].health.is_down
    assert await fleet.statuses(fleet.call(model="good"), 1) == [500]
    assert await fleet.statuses(fleet.call(model="good"), 1) == [200]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_check_that_is_refused_means_a_wrong_key_and_not_that_it_is_down(
    status: int,
) -> None:
    fleet = fleet_of(status, api_key="k")
    assert await check(fleet, 3) == "misconfigured"
    await fleet.clock.advance(30.0)
    assert fleet["a"].snapshot()["state"] == "ready"


async def test_a_good_check_clears_a_host_that_refused_its_key() -> None:
    fleet = fleet_of(200, api_key="k")
    fleet.steps["a"] = [401, 200]
    await fleet.send()
    assert fleet["a"].snapshot()["state"] == "misconfigured"
    assert await check(fleet) == "ready"


async def test_a_good_check_lets_an_open_circuit_be_probed_early() -> None:
    breaker = CircuitBreakerConfig(failure_threshold=1, timeout=20.0, success_threshold=1)
    fleet = Fleet({"a": [500, 200], "b": 200}, policy={"circuit_breaker": breaker})
    await fleet.send()
    assert fleet["a"].snapshot()["state"] == "open"
    await check(fleet)
    await fleet.send()
    await fleet.send()
    assert fleet.asked[1:].count("a") >= 1
    assert fleet["a"].snapshot()["state"] == "ready"


async def test_a_check_goes_to_its_own_path_with_the_key_and_past_all_guards() -> None:
    seen: list[httpx.Request] = []

    def health(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    fleet = fleet_of(health, each={"a": {"api_key": "k", "url": "http://a/base"}})
    fleet.steps["a"] = [500]
    for _ in range(4):
        await fleet.send()
    await check(fleet)
    assert (str(seen[0].url), seen[0].headers["Authorization"]) == (
        "http://a/base/health",
        "Bearer k",
    )
    assert fleet["a"].snapshot()["request_count"] == 2


@pytest.mark.parametrize("state", ["disabled", "draining", "open"])
async def test_every_host_is_checked_whatever_its_state(state: str) -> None:
    asked = 0

    def health(_: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        return httpx.Response(200)

    fleet = fleet_of(health)
    draining = None
    if state == "disabled":
        fleet.roster.enable("a", False)
    elif state == "draining":
        fleet.steps["a"] = [asyncio.Event()]
        fleet.start()
        await fleet.settle()
        draining = asyncio.ensure_future(fleet.roster.drain("a", 1000.0))
    else:
        fleet.steps["a"] = [500]
        for _ in range(4):
            await fleet.send()
        await fleet.clock.advance(11.0)
    fleet["a"].start()
    fleet["a"].start()
    await fleet.clock.advance(25.0)
    await fleet["a"].health.stop()
    assert asked == 3
    if draining is not None:
        draining.cancel()


async def test_closing_a_host_ends_its_checks_and_closes_its_transport() -> None:
    fleet = fleet_of(200)
    fleet["a"].start()
    await fleet.settle()
    before = {task.get_name() for task in asyncio.all_tasks()}
    await fleet["a"].aclose()
    assert "health-a" in before
    assert "health-a" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_where_nobody_checks_any_more_a_host_is_not_down_for_ever() -> None:
    fleet = fleet_of(500)
    assert await check(fleet, 2) == "down"
    await fleet.clock.advance(9.9)
    assert await fleet.statuses(fleet.call(), 1) == [200]
    assert fleet.counts() == {"b": 1}
    await fleet.clock.advance(0.1)
    await fleet.statuses(fleet.call(), 2)
    assert fleet.counts() == {"b": 2, "a": 1}
    assert await check(fleet) == "ready"  # and one bad check is not enough again


async def test_a_host_that_is_checked_stays_down_between_the_checks() -> None:
    fleet = fleet_of(500)
    fleet["a"].start()
    await fleet.clock.advance(10.0)
    assert fleet["a"].snapshot()["state"] == "down"
    assert fleet["a"].standing(None, fleet.clock.now()).until == math.inf
    await fleet["a"].aclose()


def test_checks_are_ended_on_the_loop_they_run_on_and_the_rest_is_closed_all_the_same() -> None:
    fleet = fleet_of(200)
    closed: list[bool] = []
    fleet["a"]._stack._wire.aclose = lambda: asyncio.sleep(0, closed.append(True))

    async def start() -> None:
        fleet["a"].start()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    with pytest.raises(ConfigurationError, match="another event loop"):
        asyncio.run(fleet["a"].aclose())
    assert closed == [True]
    loop.run_until_complete(fleet["a"].aclose())
    loop.close()
