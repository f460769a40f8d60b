"""What an ordinary coroutine's outcomes mean, and where a stack says that it is out of order."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    BulkheadFullError,
    ChainLayer,
    DeadlineExceededError,
    DeadlineLayer,
    Inner,
    Layer,
    LayerOrderWarning,
    ObserveLayer,
    Position,
    RateLimitExceededError,
    RetryConfig,
    RetryLayer,
    ServiceError,
    Verdict,
    describe,
    stack,
)
from shared.infrastructure.resilience.layer import PlainCall, summary
from shared.infrastructure.resilience.observe import CallStats
from shared.infrastructure.testing import FakeClock, ScriptedSend


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        ("a value", Verdict.OK),
        (None, Verdict.OK),
        (KeyError("x"), Verdict.FAILED),
        (TimeoutError(), Verdict.FAILED),
        (BulkheadFullError("full"), Verdict.VOID),
        (DeadlineExceededError("over"), Verdict.VOID),
        (asyncio.CancelledError(), Verdict.VOID),
        (KeyboardInterrupt(), Verdict.VOID),
    ],
)
def test_of_a_plain_call_an_error_is_a_failure_unless_it_is_ours_or_an_end(
    outcome: Any, verdict: Verdict
) -> None:
    assert PLAIN_CALL.judge(outcome) is verdict


async def test_a_plain_call_is_over_at_once_and_may_be_repeated() -> None:
    verdicts: list[Verdict] = []
    assert PLAIN_CALL.watch("value", verdicts.append) == "value"
    assert verdicts == [Verdict.OK]
    assert PLAIN_CALL.repeatable("x", KeyError()) is True
    assert PLAIN_CALL.retry_after(KeyError()) is None
    assert PLAIN_CALL.retry_after(RateLimitExceededError("no", retry_after=3.0)) == 3.0
    await PLAIN_CALL.discard("value")


def test_an_outcome_is_told_by_its_type_and_an_error_by_its_text_too() -> None:
    assert PLAIN_CALL.describe("x", 5) == "int"
    assert PLAIN_CALL.describe("x", KeyError("a\n  b")) == "KeyError: 'a\\n b'"
    assert summary(ValueError()) == "ValueError"
    assert summary(ValueError("two\n  lines")) == "ValueError: two lines"


def test_the_summary_of_an_error_has_at_most_200_characters() -> None:
    longest = "x" * (200 - len("ValueError: "))
    assert summary(ValueError(longest)) == f"ValueError: {longest}"
    cut = summary(ValueError(longest + "y"))
    assert len(cut) == 200
    assert cut == f"ValueError: {longest[:-1]}…"


def test_a_warning_points_at_the_line_that_makes_the_stack() -> None:
    upper, lower = RetryLayer(RetryConfig()), DeadlineLayer(1.0)
    with pytest.warns(LayerOrderWarning) as caught:
        stack(ScriptedSend(["ok"]), upper, lower, semantics=PLAIN_CALL)
    assert Path(caught[0].filename) == Path(__file__)
    with pytest.warns(LayerOrderWarning) as caught:
        ChainLayer(upper, lower)
    assert Path(caught[0].filename) == Path(__file__)


async def test_functions_methods_and_objects_are_layers_alike() -> None:
    seen: list[str] = []

    async def function(request: str, inner: Inner[str, str]) -> str:
        seen.append("function")
        return await inner.send(request)

    class Own:
        async def method(self, request: str, inner: Inner[str, str]) -> str:
            seen.append("method")
            return await inner.send(request)

        async def __call__(self, request: str, inner: Inner[str, str]) -> str:
            seen.append("object")
            return await inner.send(request)

    send = stack(ScriptedSend(["ok"]), function, Own().method, Own(), semantics=PLAIN_CALL)
    assert await send("x") == "ok"
    assert seen == ["function", "method", "object"]


def test_what_does_not_declare_a_position_may_stand_anywhere() -> None:
    class Odd:
        position = "outermost"

        async def __call__(self, request: Any, inner: Inner[Any, Any]) -> Any:
            return await inner.send(request)

    stack(ScriptedSend(["ok"]), RetryLayer(RetryConfig()), Odd(), semantics=PLAIN_CALL)
    stack(ScriptedSend(["ok"]), Odd(), RetryLayer(RetryConfig()), semantics=PLAIN_CALL)


def test_positions_are_ordered_as_the_design_says() -> None:
    order = ["REPLACE", "CALL", "REPEAT", "REFUSE", "PACE", "SLOT", "COUNT", "ATTEMPT"]
    assert [position.name for position in sorted(Position)] == order


async def test_a_chain_serves_two_stacks_in_turn() -> None:
    names: list[object] = []

    async def note(request: Any, inner: Inner[Any, Any]) -> Any:
        names.append(await inner.send(request))
        return names[-1]

    chain: Layer[Any, Any] = ChainLayer(note)
    first = stack(ScriptedSend(["a"]), chain, semantics=PLAIN_CALL)
    second = stack(ScriptedSend(["b"]), chain, semantics=PLAIN_CALL)
    assert [await first("x"), await second("x"), await first("x")] == ["a", "b", "a"]
    assert names == ["a", "b", "a"]
    assert describe(first).splitlines()[0].endswith("note")


class _Endless:
    """Answers that are over when the test says so."""

    def __init__(self) -> None:
        self.settle: Any = None

    def judge(self, outcome: object) -> Verdict:
        return PLAIN_CALL.judge(outcome)

    def watch(self, response: Any, settle: Any) -> Any:
        self.settle = settle
        return response

    def retry_after(self, outcome: object) -> float | None:
        return None

    def repeatable(self, request: object, outcome: object) -> bool:
        return False

    def describe(self, request: object, outcome: object) -> str:
        return "answer"

    async def discard(self, response: object) -> None:
        return None


class PoliteCall(PlainCall):
    """A call whose answer may be that the service is busy."""

    def judge(self, outcome: object) -> Verdict:
        return Verdict.BUSY if outcome == "busy" else super().judge(outcome)

    def watch(self, response: Any, settle: Any) -> Any:
        settle(self.judge(response))
        return response

    def describe(self, request: object, outcome: object) -> str:
        return f"{outcome}!"


async def test_a_call_counts_by_how_its_answer_ends_and_for_as_long_as_that_takes() -> None:
    clock, stats, semantics = FakeClock(), CallStats(), _Endless()
    script = ScriptedSend(["a", "b", "c", ServiceError("d"), BulkheadFullError("e")])
    send = stack(script, ObserveLayer(stats, clock=clock), semantics=semantics)
    for verdict, in_flight in [(Verdict.OK, 1), (Verdict.FAILED, 1), (Verdict.VOID, 1)]:
        await send("x")
        assert stats.in_flight == in_flight
        clock.stall(2.0)
        semantics.settle(verdict)
        assert stats.in_flight == 0
    for error in (ServiceError, BulkheadFullError):
        with pytest.raises(error):
            await send("x")
    assert stats.snapshot() == {
        "request_count": 4,
        "error_count": 3,
        "refused_count": 1,
        "cancelled_count": 1,
        "in_flight": 0,
        "error_rate": 0.75,
        "average_response_time": 1.0,
        "response_time_p50": 0.0,
        "response_time_p90": 2.0,
        "response_time_p95": 2.0,
        "response_time_p99": 2.0,
        "failures": {"body": 1, "service_error": 1, "bulkhead_full": 1},
    }


async def test_failures_are_named_and_the_commonest_comes_first() -> None:
    stats = CallStats()
    script = ScriptedSend([KeyError(), "busy", "busy"])
    semantics = PoliteCall()
    send = stack(script, ObserveLayer(stats), semantics=semantics)
    with pytest.raises(KeyError):
        await send("x")
    for _ in range(2):
        await send("x")
    assert list(stats.snapshot()["failures"].items()) == [("busy!", 2), ("KeyError", 1)]


async def test_percentiles_are_those_of_the_last_1000_calls() -> None:
    stats = CallStats()
    for seconds in (5000, *range(1, 1001)):
        stats.settle(ok=False, elapsed=float(seconds))
    snapshot = stats.snapshot()
    named = {percent: snapshot[f"response_time_p{percent}"] for percent in (50, 90, 95, 99)}
    assert named == {50: 500.0, 90: 900.0, 95: 950.0, 99: 990.0}
    assert snapshot["failures"] == {}


async def test_nothing_has_happened_before_the_first_call() -> None:
    assert CallStats().snapshot() == {
        "request_count": 0,
        "error_count": 0,
        "refused_count": 0,
        "cancelled_count": 0,
        "in_flight": 0,
        "error_rate": 0.0,
        "average_response_time": 0.0,
        "response_time_p50": None,
        "response_time_p90": None,
        "response_time_p95": None,
        "response_time_p99": None,
        "failures": {},
    }


async def test_a_cancelled_call_is_counted_apart_and_its_error_time_is_real() -> None:
    clock, stats = FakeClock(), CallStats()

    async def fail_after(seconds: float) -> None:
        await clock.sleep(seconds)
        raise KeyError

    send = stack(fail_after, ObserveLayer(stats, clock=clock), semantics=PLAIN_CALL)
    calls = [asyncio.ensure_future(send(seconds)) for seconds in (3.0, 9.0)]
    await clock.advance(4.0)
    assert stats.in_flight == 1
    calls[1].cancel()
    await asyncio.wait(calls)
    snapshot = stats.snapshot()
    assert (snapshot["cancelled_count"], snapshot["error_count"], stats.in_flight) == (1, 1, 0)
    assert snapshot["average_response_time"] == 3.0


def test_a_verdict_has_a_plain_name() -> None:
    assert [verdict.value for verdict in Verdict] == ["ok", "failed", "busy", "void"]


def test_every_layer_of_the_stack_below_is_looked_at() -> None:
    below = stack(
        ScriptedSend(["ok"]),
        ObserveLayer(CallStats()),
        DeadlineLayer(1.0),
        semantics=PLAIN_CALL,
    )
    with pytest.warns(LayerOrderWarning, match="DeadlineLayer"):
        stack(below, RetryLayer(RetryConfig()), semantics=PLAIN_CALL)


def test_each_thing_that_is_wrong_with_a_stack_has_a_line_of_its_own() -> None:
    with pytest.warns(LayerOrderWarning) as caught:
        ChainLayer(RetryLayer(RetryConfig()), DeadlineLayer(1.0), DeadlineLayer(2.0))
    lines = str(caught[0].message).split("\n")
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert lines[0].startswith("RetryLayer stands above DeadlineLayer: ")
