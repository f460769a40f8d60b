import asyncio
from typing import Any

import pytest

from shared.infrastructure.resilience import (
    BulkheadFullError,
    CircuitOpenError,
    DeadlineExceededError,
    DeadlineLayer,
    Event,
    FallbackUsed,
    LayerOrderWarning,
    Listeners,
    RetryConfig,
    RetryLayer,
    Verdict,
    stack,
    trace_call,
)
from shared.infrastructure.resilience.fallback import FallbackLayer
from shared.infrastructure.resilience.layer import PLAIN_CALL, PlainCall
from shared.infrastructure.testing import ScriptedSend


class Reply:
    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.discarded = 0


class ReplySemantics(PlainCall):
    def judge(self, outcome: object) -> Verdict:
        return outcome.verdict if isinstance(outcome, Reply) else super().judge(outcome)

    async def discard(self, response: Any) -> None:
        response.discarded += 1


class Recorder:
    """A fallback that remembers what it was called for."""

    def __init__(self, answer: Any = "instead") -> None:
        self.answer = answer
        self.calls: list[tuple[Any, Any]] = []

    async def __call__(self, request: Any, outcome: Any) -> Any:
        self.calls.append((request, outcome))
        if isinstance(self.answer, Exception):
            raise self.answer
        return outcome if self.answer == "the same" else self.answer


def guarded(outcome: Any, fallback: Recorder, **options: Any) -> Any:
    return stack(
        ScriptedSend([outcome]), FallbackLayer(fallback, **options), semantics=ReplySemantics()
    )


USELESS = [ValueError("down"), CircuitOpenError("open"), BulkheadFullError("full")]


@pytest.mark.parametrize("error", [*USELESS, DeadlineExceededError("late")])
async def test_an_error_or_a_refusal_is_replaced_by_the_fallback(error: Exception) -> None:
    fallback = Recorder()
    assert await guarded(error, fallback)("x") == "instead"
    assert fallback.calls == [("x", error)]


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.BUSY])
async def test_a_useless_answer_is_replaced_and_discarded_once(verdict: Verdict) -> None:
    reply, fallback = Reply(verdict), Recorder()
    assert await guarded(reply, fallback)("x") == "instead"
    assert fallback.calls == [("x", reply)]
    assert reply.discarded == 1


async def test_an_answer_that_the_fallback_keeps_is_not_discarded() -> None:
    reply = Reply(Verdict.FAILED)
    assert await guarded(reply, Recorder("the same"))("x") is reply
    assert reply.discarded == 0


@pytest.mark.parametrize("verdict", [Verdict.OK, Verdict.VOID])
async def test_other_answers_are_returned_untouched(verdict: Verdict) -> None:
    reply, fallback = Reply(verdict), Recorder()
    assert await guarded(reply, fallback)("x") is reply
    assert (fallback.calls, reply.discarded) == ([], 0)


async def test_the_caller_may_say_which_outcomes_are_replaced() -> None:
    fallback = Recorder()
    only_missing = {"when": lambda outcome: isinstance(outcome, KeyError)}
    assert await guarded(KeyError("k"), fallback, **only_missing)("x") == "instead"
    with pytest.raises(ValueError, match="down"):
        await guarded(ValueError("down"), fallback, **only_missing)("x")


async def test_the_error_of_a_fallback_is_chained_to_the_one_it_was_called_for() -> None:
    original, second = ValueError("down"), KeyError("no cache either")
    with pytest.raises(KeyError) as caught:
        await guarded(original, Recorder(second))("x")
    assert caught.value is second
    assert caught.value.__context__ is original


async def test_an_answer_is_discarded_even_if_its_fallback_fails() -> None:
    reply = Reply(Verdict.FAILED)
    with pytest.raises(KeyError):
        await guarded(reply, Recorder(KeyError("no cache")))("x")
    assert reply.discarded == 1


async def test_a_cancelled_call_has_no_fallback() -> None:
    async def hang(_request: str) -> str:
        return await asyncio.get_running_loop().create_future()

    fallback = Recorder()
    send = stack(hang, FallbackLayer(fallback, when=lambda _: True), semantics=PLAIN_CALL)
    task = asyncio.ensure_future(send("x"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fallback.calls == []


async def test_every_use_is_counted_and_told_with_its_cause() -> None:
    told: list[Event] = []
    options = {"name": "search", "listeners": Listeners([told.append])}
    layer = FallbackLayer(Recorder(), **options)  # type: ignore[arg-type]
    script = ScriptedSend([ValueError("down"), Reply(Verdict.FAILED), Reply(Verdict.OK)])
    send = stack(script, layer, semantics=ReplySemantics())
    for _ in range(3):
        await send("x")
    assert told == [FallbackUsed("search", "ValueError: down"), FallbackUsed("search", "Reply")]
    assert layer.snapshot() == {"used_count": 2, "failed_count": 0}


async def test_without_an_audience_nobody_looks_for_words() -> None:
    class Wordless(PlainCall):
        def describe(self, request: object, outcome: object) -> str:
            raise AssertionError("asked for words")

    send = stack(ScriptedSend([ValueError()]), FallbackLayer(Recorder()), semantics=Wordless())
    assert await send("x") == "instead"


@pytest.mark.parametrize("outcome", [ValueError("down"), Reply(Verdict.FAILED)])
async def test_a_fallback_that_fails_too_is_counted(outcome: Any) -> None:
    layer = FallbackLayer(Recorder(KeyError("no cache")))
    with trace_call() as trace, pytest.raises(KeyError):
        await stack(ScriptedSend([outcome]), layer, semantics=ReplySemantics())("x")
    assert layer.snapshot() == {"used_count": 1, "failed_count": 1}
    assert [entry.event.kind for entry in trace.entries] == ["fallback_used"]


async def test_a_fallback_that_is_cancelled_has_not_failed_but_gives_its_answer_back() -> None:
    async def hang(_request: str, _outcome: Any) -> Any:
        return await asyncio.get_running_loop().create_future()

    reply, layer = Reply(Verdict.FAILED), FallbackLayer[Any, Any](hang)
    send = stack(ScriptedSend[Any]([reply]), layer, semantics=ReplySemantics())
    task = asyncio.ensure_future(send("x"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert layer.snapshot() == {"used_count": 1, "failed_count": 0}
    assert reply.discarded == 1


async def from_the_cache(_request: str, _outcome: Any) -> str:
    return "cached"


def test_a_fallback_layer_names_what_it_asks() -> None:
    assert FallbackLayer(from_the_cache).describe() == "FallbackLayer: from_the_cache"
    assert FallbackLayer(Recorder()).describe() == "FallbackLayer: Recorder"


def test_a_fallback_belongs_above_retry_and_on_either_side_of_a_deadline() -> None:
    fallback, retry, limit = (
        FallbackLayer(from_the_cache),
        RetryLayer(RetryConfig()),
        DeadlineLayer(1.0),
    )
    send = ScriptedSend(["ok"])
    with pytest.warns(LayerOrderWarning, match="takes an answer of FallbackLayer for one of the"):
        stack(send, retry, fallback, semantics=PLAIN_CALL)
    stack(send, fallback, limit, retry, semantics=PLAIN_CALL)
    stack(send, limit, fallback, retry, semantics=PLAIN_CALL)
