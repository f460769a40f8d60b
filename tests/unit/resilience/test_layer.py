import asyncio
import contextlib
import warnings

import pytest

from shared.infrastructure import (
    DistributedLLMClient,
    EnhancedHTTPClient,
    LLMHost,
    LocalEmbeddingModel,
    TimeoutConfig,
)
from shared.infrastructure.resilience import (
    PLAIN_CALL,
    AttemptTimeoutLayer,
    Bulkhead,
    BulkheadConfig,
    BulkheadLayer,
    CallRefusedError,
    CallStats,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerLayer,
    CircuitGate,
    CircuitOpenError,
    DeadlineLayer,
    EndpointGuard,
    HealthLayer,
    HealthMonitor,
    Inner,
    ObserveLayer,
    RateLimitConfig,
    RateLimitLayer,
    RetryConfig,
    RetryLayer,
    ServiceError,
    TokenBucket,
    stack,
)
from shared.infrastructure.resilience.layer import (
    ChainLayer,
    LayerOrderWarning,
    Position,
    describe,
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


BREAKER = CircuitBreaker()
RETRY = RetryLayer(RetryConfig())
GATE, COUNT = CircuitGate(BREAKER), CircuitBreakerLayer(BREAKER)
LIMIT = RateLimitLayer(TokenBucket(1.0))
SLOT = BulkheadLayer(Bulkhead(BulkheadConfig(max_concurrent=1)))
HEALTH = HealthLayer(HealthMonitor())
DEADLINE, ATTEMPT = DeadlineLayer(1.0), AttemptTimeoutLayer(1.0)
OBSERVE = ObserveLayer(CallStats())
WHOLE = (OBSERVE, DEADLINE, RETRY, GATE, LIMIT, SLOT, COUNT, HEALTH, ATTEMPT)


async def answer(request: str) -> str:
    return request


@pytest.mark.parametrize(
    ("upper", "lower", "harm"),
    [
        (COUNT, RETRY, "takes all attempts of a call for one"),
        (LIMIT, RETRY, "takes all attempts of a call for one"),
        (ATTEMPT, RETRY, "takes all attempts of a call for one"),
        (SLOT, RETRY, "takes all attempts of a call for one"),
        (RETRY, DEADLINE, "outside of the time that DeadlineLayer allows"),
        (LIMIT, GATE, "only to be refused by CircuitGate"),
        (SLOT, LIMIT, "still waits for a permit"),
        (COUNT, LIMIT, "still waits for a permit"),
        (COUNT, SLOT, "still waits for a slot"),
        (ATTEMPT, COUNT, "CircuitBreakerLayer sees no timeout"),
        (ATTEMPT, HEALTH, "HealthLayer sees no timeout"),
    ],
)
def test_an_order_that_defeats_a_layer_is_warned_of(
    upper: object, lower: object, harm: str
) -> None:
    names = type(upper).__name__, type(lower).__name__
    with pytest.warns(LayerOrderWarning) as caught:
        stack(answer, upper, OBSERVE, lower, semantics=PLAIN_CALL)  # type: ignore[arg-type]
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith(f"{names[0]} stands above {names[1]}: ")
    assert harm in message
    assert message.endswith(f"; put {names[1]} above {names[0]}")
    assert caught[0].filename == __file__
    stack(answer, lower, OBSERVE, upper, semantics=PLAIN_CALL)  # type: ignore[arg-type]


def test_two_retries_are_warned_of() -> None:
    with pytest.warns(LayerOrderWarning, match="attempts multiply: keep one"):
        stack(answer, RETRY, RetryLayer(RetryConfig()), semantics=PLAIN_CALL)


def test_all_that_is_wrong_with_a_stack_is_one_warning() -> None:
    with pytest.warns(LayerOrderWarning) as caught:
        stack(answer, COUNT, LIMIT, RETRY, semantics=PLAIN_CALL)
    assert len(caught) == 1
    assert len(str(caught[0].message).splitlines()) == 3


def test_a_stack_over_a_stack_is_checked_as_a_whole_but_not_twice() -> None:
    with pytest.warns(LayerOrderWarning, match="CircuitBreakerLayer stands above BulkheadLayer"):
        inner = stack(answer, COUNT, SLOT, semantics=PLAIN_CALL)
    stack(inner, RETRY, semantics=PLAIN_CALL)
    with pytest.warns(LayerOrderWarning) as caught:
        stack(stack(answer, RETRY, semantics=PLAIN_CALL), COUNT, semantics=PLAIN_CALL)
    assert [str(each.message).split(":")[0] for each in caught] == [
        "CircuitBreakerLayer stands above RetryLayer"
    ]


def test_layers_in_a_chain_are_checked_like_others() -> None:
    with pytest.warns(LayerOrderWarning, match="CircuitBreakerLayer stands above BulkheadLayer"):
        ChainLayer(COUNT, SLOT)
    chain = ChainLayer(GATE, ChainLayer(COUNT))
    with pytest.warns(LayerOrderWarning, match="CircuitBreakerLayer stands above RetryLayer"):
        stack(answer, chain, RETRY, semantics=PLAIN_CALL)


@Position.REPEAT
class Twice:
    async def __call__(self, request: str, inner: Inner[str, str]) -> str:
        await inner.send(request)
        return await inner.send(request)


def test_a_layer_of_ones_own_is_placed_by_declaring_it() -> None:
    with pytest.warns(LayerOrderWarning, match="HealthLayer stands above Twice"):
        stack(answer, HEALTH, Twice(), semantics=PLAIN_CALL)


def test_the_stacks_of_the_sdk_are_in_order() -> None:
    everything = {
        "rate_limit_config": RateLimitConfig(requests_per_second=1),
        "bulkhead_config": BulkheadConfig(max_concurrent=1),
        "timeout_config": TimeoutConfig(attempt=1, total=2),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stack(answer, *WHOLE, semantics=PLAIN_CALL)
        EnhancedHTTPClient("a")
        EnhancedHTTPClient("a", **everything)  # type: ignore[arg-type]
        hosts = [LLMHost("a", "http://a")]
        DistributedLLMClient(hosts)
        DistributedLLMClient(hosts, **everything)  # type: ignore[arg-type]
        LocalEmbeddingModel()


def test_a_stack_is_drawn_outermost_first_and_by_attempts() -> None:
    inner = stack(answer, ChainLayer(GATE, SLOT), semantics=PLAIN_CALL)
    assert describe(stack(inner, OBSERVE, RETRY, semantics=PLAIN_CALL)).splitlines() == [
        "ObserveLayer",
        "RetryLayer: 3 retries, 1 s doubling to 60 s, jitter",
        "  CircuitGate",
        "  BulkheadLayer",
        "  answer",
    ]


def test_a_layer_is_drawn_as_it_describes_itself() -> None:
    class Described:
        def describe(self) -> str:
            return "described, 3 times"

        async def __call__(self, request: str, inner: Inner[str, str]) -> str:
            return await inner.send(request)

    class Printed(Twice):
        def __str__(self) -> str:
            return "printed"

    send = stack(ScriptedSend(["ok"]), Described(), Printed(), semantics=PLAIN_CALL)
    assert describe(send) == "described, 3 times\nprinted\n  ScriptedSend"
    assert describe(answer) == "answer"


async def test_a_chain_does_what_its_layers_do_in_every_stack_it_stands_in() -> None:
    seen: list[str] = []

    async def first(request: str, inner: Inner[str, str]) -> str:
        seen.append("first")
        return await inner.send(request)

    async def second(request: str, inner: Inner[str, str]) -> str:
        seen.append("second")
        return await inner.send(request)

    chain = ChainLayer(first, second)
    one = stack(ScriptedSend(["one"]), chain, semantics=PLAIN_CALL)
    two = stack(ScriptedSend(["two"]), chain, semantics=PLAIN_CALL)
    assert [await one("x"), await two("x"), await one("x")] == ["one", "two", "one"]
    assert seen == ["first", "second"] * 3
