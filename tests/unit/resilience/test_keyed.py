import contextlib

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerLayer,
    CircuitGate,
    CircuitOpenError,
    CircuitState,
    ConfigurationError,
    stack,
)
from shared.infrastructure.resilience.keyed import Keyed, KeyedLayer
from shared.infrastructure.resilience.layer import ChainLayer, describe

ONE_FAILURE = CircuitBreakerConfig(failure_threshold=1)


def breaker(host: str) -> CircuitBreaker:
    return CircuitBreaker(host, ONE_FAILURE)


def is_in_use(value: CircuitBreaker) -> bool:
    return value.state is not CircuitState.CLOSED


def test_a_value_is_built_once_for_each_key() -> None:
    breakers = Keyed(breaker)
    first = breakers.get("a")
    assert first.name == "a"
    assert breakers.get("a") is first
    assert breakers.get("b") is not first
    assert len(breakers) == 2


def test_the_key_least_recently_asked_for_goes_when_there_are_too_many() -> None:
    breakers = Keyed(breaker, max_keys=2)
    first = breakers.get("a")
    breakers.get("b")
    breakers.get("a")
    breakers.get("c")
    assert len(breakers) == 2
    assert "b" not in breakers
    assert breakers.get("a") is first


def test_a_thousand_keys_are_held_unless_told_otherwise() -> None:
    numbers = Keyed(str)
    for number in range(1001):
        numbers.get(number)
    assert len(numbers) == 1000
    assert 0 not in numbers
    assert 1 in numbers


def test_an_open_breaker_outlives_closed_ones_that_were_used_later() -> None:
    breakers = Keyed(breaker, max_keys=3, keep=is_in_use)
    breakers.get("down").force_open()
    for host in ("a", "b", "c", "d", "e"):
        breakers.get(host)
    assert "down" in breakers
    assert len(breakers) == 3
    assert "e" in breakers


def test_values_in_use_are_bounded_too_and_the_oldest_goes_first() -> None:
    breakers = Keyed(breaker, max_keys=3, keep=is_in_use)
    for host in ("a", "b", "c", "d"):
        breakers.get(host).force_open()
    assert len(breakers) == 3
    assert "a" not in breakers


def test_no_more_than_eight_values_are_asked_and_the_next_time_others() -> None:
    asked: list[str] = []

    def is_low(value: str) -> bool:
        asked.append(value)
        return int(value) < 10

    numbers = Keyed(str, max_keys=12, keep=is_low)
    for number in range(13):
        numbers.get(number)
    assert asked == [str(number) for number in range(8)]
    assert 0 not in numbers
    asked.clear()
    numbers.get(13)
    assert asked == ["8", "9", "10"]
    assert 10 not in numbers


def test_a_key_that_is_discarded_begins_anew() -> None:
    breakers = Keyed(breaker)
    first = breakers.get("a")
    breakers.discard("a")
    breakers.discard("never seen")
    assert "a" not in breakers
    assert breakers.get("a") is not first


def test_a_factory_that_fails_costs_no_other_key_its_value() -> None:
    def picky(key: str) -> str:
        if key == "bad":
            raise ValueError(key)
        return key

    values = Keyed(picky, max_keys=1)
    values.get("good")
    with pytest.raises(ValueError, match="bad"):
        values.get("bad")
    assert "good" in values
    assert "bad" not in values


def test_the_snapshot_has_every_value_that_can_give_one() -> None:
    breakers = Keyed(breaker)
    breakers.get("a").force_open()
    breakers.get(("tenant", 1))
    states = {key: value["state"] for key, value in breakers.snapshot().items()}
    assert states == {"a": "forced_open", ("tenant", 1): "closed"}
    plain = Keyed(str)
    plain.get("a")
    assert plain.snapshot() == {}


def test_a_registry_that_could_hold_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_keys"):
        Keyed(str, max_keys=0)


class HostLayer(ChainLayer):
    def __init__(self, host: str) -> None:
        self.breaker = breaker(host)
        super().__init__(CircuitGate(self.breaker), CircuitBreakerLayer(self.breaker))

    def snapshot(self) -> dict[str, object]:
        return self.breaker.snapshot()


def itself(host: str) -> str:
    return host


async def test_one_stack_guards_many_hosts_separately() -> None:
    sent: list[str] = []

    async def send(host: str) -> str:
        sent.append(host)
        if host == "down":
            raise OSError(host)
        return host

    layers = Keyed(HostLayer)
    call = stack(send, KeyedLayer(itself, layers), semantics=PLAIN_CALL)
    with contextlib.suppress(OSError):
        await call("down")
    with pytest.raises(CircuitOpenError, match="down"):
        await call("down")
    assert await call("up") == "up"
    assert sent == ["down", "up"]
    states = {host: value["state"] for host, value in layers.snapshot().items()}
    assert states == {"down": "open", "up": "closed"}
    assert describe(call).splitlines()[0] == "KeyedLayer (2 keys)"
