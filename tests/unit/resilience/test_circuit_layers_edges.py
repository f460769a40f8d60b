"""A breaker in a stack: when an answer opens it at once, and what its gate lets pass."""

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerLayer,
    CircuitGate,
    CircuitOpenError,
    Verdict,
    stack,
)
from shared.infrastructure.resilience.layer import PlainCall
from shared.infrastructure.testing import FakeClock, ScriptedSend


class Patient(PlainCall):
    """Answers that are bad, and say how long to wait."""

    def judge(self, outcome: object) -> Verdict:
        return Verdict.FAILED if outcome == "bad" else super().judge(outcome)

    def retry_after(self, outcome: object) -> float | None:
        return 30.0 if outcome in {"bad", "good"} else None


@pytest.mark.parametrize(
    ("obeys", "answer", "state"),
    [(True, "bad", "open"), (False, "bad", "closed"), (True, "good", "closed")],
)
async def test_a_failed_answer_with_a_wait_opens_at_once_if_that_is_to_be_obeyed(
    obeys: bool, answer: str, state: str
) -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(obey_retry_after=obeys)
    breaker = CircuitBreaker("x", config, clock=clock)
    send = stack(ScriptedSend([answer]), CircuitBreakerLayer(breaker), semantics=Patient())
    assert await send("x") == answer
    assert breaker.state.value == state
    assert breaker.snapshot()["retry_after"] == (30.0 if state == "open" else None)


async def test_the_gate_refuses_without_sending_and_lets_probes_pass() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(failure_threshold=1, timeout=8.0)
    breaker = CircuitBreaker("orders", config, clock=clock)
    breaker.admit().settle(Verdict.FAILED)
    script = ScriptedSend(["ok"])
    send = stack(script, CircuitGate(breaker), semantics=PLAIN_CALL)
    with pytest.raises(CircuitOpenError) as refused:
        await send("x")
    assert (refused.value.service, refused.value.retry_after) == ("orders", 8.0)
    assert script.requests == []
    clock.stall(8.0)
    assert await send("x") == "ok"
    breaker.admit()
    with pytest.raises(CircuitOpenError, match="half_open: every probe is taken"):
        await send("x")
