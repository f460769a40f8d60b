import asyncio
import contextlib

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    CallRefusedError,
    CallStats,
    CircuitBreakerConfig,
    CircuitOpenError,
    EndpointGuard,
    HealthMonitor,
    Inner,
    ObserveLayer,
    RateLimitConfig,
    ServiceError,
    stack,
)
from shared.infrastructure.testing import FakeClock, ScriptedSend


async def test_the_first_layer_sees_the_request_first_and_the_answer_last() -> None:
    seen: list[str] = []

    def named(name: str):  # type: ignore[no-untyped-def]
        async def layer(request: str, inner: Inner[str, str]) -> str:
            seen.append(f"{name} in")
            answer = await inner.send(request)
            seen.append(f"{name} out")
            return answer

        return layer

    send = stack(ScriptedSend(["ok"]), named("outer"), named("inner"), semantics=PLAIN_CALL)
    assert await send("x") == "ok"
    assert seen == ["outer in", "inner in", "inner out", "outer out"]


async def test_one_entry_a_call_whatever_its_outcome() -> None:
    stats = CallStats()
    script = ScriptedSend[str](
        ["ok", ValueError("down"), CallRefusedError("no"), asyncio.CancelledError(), "ok"]
    )
    send = stack(script, ObserveLayer(stats), semantics=PLAIN_CALL)
    for _ in range(5):
        with contextlib.suppress(ValueError, CallRefusedError, asyncio.CancelledError):
            await send("x")
    snapshot = stats.snapshot()
    assert snapshot["request_count"] == 4
    assert snapshot["error_count"] == 2
    assert snapshot["refused_count"] == 1
    assert snapshot["cancelled_count"] == 1
    assert snapshot["in_flight"] == 0
    assert snapshot["error_rate"] == 0.5


async def test_nobody_queues_behind_an_open_circuit_or_spends_a_permit_on_it() -> None:
    clock = FakeClock()
    guard = EndpointGuard(
        "gpu",
        health=HealthMonitor("gpu", clock=clock),
        circuit_breaker=CircuitBreakerConfig(failure_threshold=1),
        rate_limit=RateLimitConfig(requests_per_second=1.0, burst_size=1),
        clock=clock,
    )
    send = stack(ScriptedSend([ValueError("down")]), *guard.layers, semantics=PLAIN_CALL)
    with pytest.raises(ValueError, match="down"):
        await send("x")
    with pytest.raises(CircuitOpenError):
        await send("x")
    assert guard.snapshot()["rate_limiter"]["granted"] == 1
    assert guard.snapshot()["bulkhead"] == {"enabled": False}
    assert guard.snapshot()["circuit_breaker"]["state"] == "open"


def test_an_error_tells_its_code_and_story_as_plain_data() -> None:
    error = CircuitOpenError("open", service="db", retry_after=1.5)
    assert error.to_dict() == {
        "code": "circuit_open",
        "message": "open",
        "service": "db",
        "host": None,
        "attempts": 0,
        "retry_after": 1.5,
    }


def test_every_error_class_has_a_code_of_its_own() -> None:
    def tree(root: type[ServiceError]) -> list[type[ServiceError]]:
        return [root, *(kind for child in root.__subclasses__() for kind in tree(child))]

    own = [kind for kind in tree(ServiceError) if kind.__module__.endswith("resilience.errors")]
    assert len({kind.code for kind in own}) == len(own)
