"""What is known of one model at one host, and what is known of the host as a whole."""

from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.config import BalanceConfig
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.balancing.hosts.latency import PeakEWMA
from tests.unit.balancing.fleet import Fleet, busy, streamed


async def test_a_model_that_keeps_failing_leaves_the_others_of_its_host_alone() -> None:
    fleet = Fleet({"a": 500, "b": 200})
    for _ in range(6):
        await fleet.send(fleet.call(model="bad"))
    assert fleet.counts() == {"a": 2, "b": 4}
    fleet.steps["a"] = [200]
    await fleet.statuses(fleet.call(model="good"), 2)
    assert fleet.asked[-2:] == ["a", "b"]
    assert set(fleet["a"].snapshot()["lanes"]) == {"bad", "good"}
    assert fleet["a"].snapshot()["circuit_breaker"]["state"] == "open"  # of the worst


async def test_a_throttled_host_is_not_open_and_left_alone_for_as_long_as_it_asks() -> None:
    fleet = Fleet({"a": [busy(8), 200], "b": 200})
    for _ in range(5):
        await fleet.send()
    assert fleet.counts() == {"a": 1, "b": 4}
    snapshot = fleet["a"].snapshot()
    assert (snapshot["state"], snapshot["throttled_for"]) == ("throttled", 8.0)
    assert snapshot["circuit_breaker"]["state"] == "closed"
    await fleet.clock.advance(8.0)
    for _ in range(2):
        await fleet.send()
    assert fleet.counts()["a"] == 2


async def test_throttling_without_a_time_doubles_and_a_good_answer_ends_that() -> None:
    balance = BalanceConfig(throttle=1.0, max_throttle=4.0, max_wait=0)
    fleet = Fleet({"a": busy()}, balance=balance)
    pauses: list[float] = []
    for _ in range(4):
        await fleet.send()
        pauses.append(fleet["a"].snapshot()["throttled_for"])
        await fleet.clock.advance(pauses[-1])
    fleet.steps["a"] = [200]
    await fleet.send()
    fleet.steps["a"] = [busy()]
    await fleet.send()
    pauses.append(fleet["a"].snapshot()["throttled_for"])
    assert pauses == [1.0, 2.0, 4.0, 4.0, 1.0]


async def test_many_turned_away_at_once_lengthen_the_pause_only_once() -> None:
    fleet = Fleet({"a": 200})
    lane = fleet["a"].lanes.get(None)
    now = fleet.clock.now()
    for _ in range(10):
        lane.throttle(now - 0.5, now, None)
    assert lane.throttled_until == now + 1.0


async def test_an_overloaded_host_that_names_a_time_is_left_alone_for_it() -> None:
    overloaded = httpx.Response(503, headers={"Retry-After": "3"}, json={})
    fleet = Fleet({"a": lambda _: overloaded, "b": 200})
    for _ in range(4):
        await fleet.send()
    assert fleet.counts() == {"a": 1, "b": 3}
    assert fleet["a"].snapshot()["circuit_breaker"]["failure_count"] == 1


def missing(said: Any) -> Any:
    return lambda _: httpx.Response(404, json=said)


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"code": "model_not_found"}},
        {"error": {"message": "The model `M` does not exist.", "type": "NotFoundError"}},
    ],
)
async def test_a_model_the_host_does_not_know_is_missing_there_for_a_while(said: Any) -> None:
    fleet = Fleet({"a": [missing(said), 200], "b": 200})
    for _ in range(4):
        await fleet.send(fleet.call(model="m"))
    assert fleet.counts() == {"a": 1, "b": 3}
    await fleet.statuses(fleet.call(model="other"), 2)
    assert fleet.asked[-2:] == ["a", "b"]
    await fleet.clock.advance(60.0)
    for _ in range(2):
        await fleet.send(fleet.call(model="m"))
    assert fleet.counts()["a"] == 3


@pytest.mark.parametrize(
    "said", [{}, {"detail": "Not Found"}, {"error": {"type": "not_found_error", "message": "no"}}]
)
async def test_a_path_the_host_does_not_know_speaks_against_no_model(said: Any) -> None:
    fleet = Fleet({"a": [missing(said), 200]})
    assert await fleet.statuses(fleet.call(model="m"), 1) == [404]
    assert await fleet.statuses(fleet.call(model="m"), 1) == [200]


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_host_that_refuses_its_key_is_left_alone_for_all_models(status: int) -> None:
    fleet = Fleet({"a": [status, 200], "b": 200}, api_key="k")
    for model in ("m", "n", "m"):
        await fleet.send(fleet.call(model=model))
    assert fleet.counts() == {"a": 1, "b": 2}
    assert fleet["a"].snapshot()["state"] == "misconfigured"
    assert fleet["a"].snapshot()["circuit_breaker"]["failure_count"] == 0
    await fleet.clock.advance(30.0)
    assert fleet["a"].snapshot()["state"] == "ready"


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_request_that_is_wrong_says_nothing_about_the_host(status: int) -> None:
    fleet = Fleet({"a": status})
    for _ in range(10):
        await fleet.send()
    snapshot = fleet["a"].snapshot()
    assert (snapshot["state"], snapshot["error_count"]) == ("ready", 0)
    assert snapshot["circuit_breaker"]["failure_count"] == 0


async def test_the_lanes_of_a_host_are_bounded_and_what_is_open_is_not_forgotten() -> None:
    fleet = Fleet({"a": [500, 500, 200], "b": 200})
    host = fleet["a"]
    for _ in range(2):
        await host.send(httpx.Request("GET", "http://p/x", extensions={"call": _call(fleet)}))
    for number in range(200):
        await fleet.send(fleet.call(model=str(number)))
    lanes = host.snapshot()["lanes"]
    assert len(lanes) == 64
    assert lanes["bad"]["circuit_breaker"]["state"] == "open"


@pytest.mark.parametrize("step", [busy(1000), missing({"error": {"code": "model_not_found"}})])
async def test_a_lane_that_is_to_be_left_alone_is_not_forgotten(step: Any) -> None:
    fleet = Fleet({"a": [step, 200], "b": 200}, balance=BalanceConfig(missing=1000.0))
    await fleet.send(fleet.call(model="bad"))
    before = fleet["a"].standing("bad", fleet.clock.now())
    for number in range(200):
        await fleet.send(fleet.call(model=str(number)))
    assert fleet["a"].standing("bad", fleet.clock.now()) == before
    assert before.state in {"throttled", "missing"}


def _call(fleet: Fleet) -> Any:
    return fleet.call(model="bad")


async def test_latency_is_that_to_the_first_token_and_unknown_at_first() -> None:
    fleet = Fleet({"a": streamed(b"1", b"2")})
    host, now = fleet["a"], fleet.clock.now()
    assert host.latency("m", now) is None

    async def slowly(_: httpx.Request) -> httpx.Response:
        await fleet.clock.sleep(2.0)
        return streamed(b"1", b"2")(_)

    fleet.steps["a"] = [slowly]
    task = fleet.start(fleet.call(model="m"))
    await fleet.clock.advance(2.0)
    response = await task
    await fleet.clock.advance(100.0)
    await response.aread()
    assert host.latency("m", now + 2.0) == 2.0
    assert host.latency("n", now + 2.0) is None


async def test_silence_counts_as_latency_and_a_quick_failure_does_not() -> None:
    fleet = Fleet({"a": [httpx.ConnectError("no"), 200]})
    await fleet.statuses(fleet.call(), 1)
    assert fleet["a"].latency(None, fleet.clock.now()) is None

    async def silent(_: httpx.Request) -> httpx.Response:
        await fleet.clock.sleep(30.0)
        raise httpx.ReadTimeout("silent")

    fleet.steps["a"] = [silent]
    call = fleet.call()
    task = fleet.start(call)
    await fleet.clock.advance(30.0)
    with pytest.raises(httpx.ReadTimeout):
        await task
    assert call.attempts[0].fault is Fault.SILENT
    assert fleet["a"].latency(None, fleet.clock.now()) == 30.0


def test_a_peak_counts_at_once_and_is_forgotten_slowly() -> None:
    mean = PeakEWMA(tau=10.0)
    mean.observe(0.1, 0.0)
    mean.observe(5.0, 0.0)
    assert mean.read(0.0) == 5.0
    mean.observe(0.1, 1.0)
    after_one = mean.read(1.0)
    assert after_one is not None
    assert 4.0 < after_one < 5.0
    for second in range(2, 60):
        mean.observe(0.1, float(second))
    assert mean.read(59.0) == pytest.approx(0.1, rel=0.2)
    idle = mean.read(100.0)
    assert idle is not None
    assert idle < 0.01
