"""What the layer of a shared limit makes of each outcome."""

from typing import Any

import pytest

from shared.infrastructure.resilience import (
    CircuitOpenError,
    SharedRateLimitLayer,
    TokenBucket,
    Verdict,
    stack,
)
from shared.infrastructure.resilience.layer import PlainCall
from shared.infrastructure.testing import FakeClock, ScriptedSend


class Patient(PlainCall):
    """Every outcome names a time, but only some ask for patience."""

    def judge(self, outcome: object) -> Verdict:
        is_busy = outcome == "busy" or isinstance(outcome, BlockingIOError)
        return Verdict.BUSY if is_busy else super().judge(outcome)

    def retry_after(self, outcome: object) -> float | None:
        return 30.0


async def play(outcome: Any) -> TokenBucket:
    """Make a call with this outcome, which is its caller's too; return the limiter."""
    bucket = TokenBucket(8.0, 8, clock=FakeClock())
    send = stack(ScriptedSend([outcome]), SharedRateLimitLayer(bucket), semantics=Patient())
    if isinstance(outcome, Exception):
        with pytest.raises(type(outcome)) as caught:
            await send("x")
        assert caught.value is outcome
    else:
        assert await send("x") == outcome
    return bucket


@pytest.mark.parametrize("outcome", ["busy", BlockingIOError()])
async def test_only_what_asks_for_patience_pauses_everybody(outcome: Any) -> None:
    assert (await play(outcome)).snapshot()["paused_for"] == 30.0


@pytest.mark.parametrize("outcome", ["ok", KeyError("theirs")])
async def test_a_failure_that_names_a_time_pauses_nobody_and_its_permit_is_spent(
    outcome: Any,
) -> None:
    snapshot = (await play(outcome)).snapshot()
    assert (snapshot["paused_for"], snapshot["granted"]) == (0.0, 1)


async def test_the_permit_of_a_call_refused_further_down_is_given_back() -> None:
    snapshot = (await play(CircuitOpenError("open"))).snapshot()
    assert (snapshot["paused_for"], snapshot["granted"]) == (0.0, 0)
