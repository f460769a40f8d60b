import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    AttemptTimedOut,
    AttemptTimeoutError,
    Event,
    HealthLayer,
    HealthMonitor,
    LayerOrderWarning,
    Listeners,
    RetryConfig,
    RetryLayer,
    Verdict,
    stack,
)
from shared.infrastructure.resilience.adaptive_timeout import (
    AdaptiveTimeoutConfig,
    AdaptiveTimeoutLayer,
)
from shared.infrastructure.resilience.layer import PlainCall
from shared.infrastructure.testing import FakeClock


def config(**options: Any) -> AdaptiveTimeoutConfig:
    return AdaptiveTimeoutConfig(**{"maximum": 10.0, "min_samples": 20, **options})


class Service:
    """Answers after `takes` seconds, or fails then."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.takes = 0.2
        self.error: Exception | None = None

    async def __call__(self, request: str) -> str:
        await self._clock.sleep(self.takes)
        if self.error:
            raise self.error
        return request


class Setup:
    """A layer over a service, and how many of its calls were cut off."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.request = "x"
        self.service = Service(self.clock)
        self.told: list[Event] = []
        self.layer = AdaptiveTimeoutLayer(
            config(**options), clock=self.clock, listeners=Listeners([self.told.append])
        )
        self.send = stack(self.service, self.layer, semantics=PLAIN_CALL)

    @property
    def limit(self) -> float:
        limit: float = self.layer.snapshot()["limit"]
        return limit

    async def call(self, takes: float, times: int = 1) -> int:
        """Make calls one after the other; return how many ran into the limit."""
        self.service.takes = takes
        cut_off = 0
        for _ in range(times):
            call = asyncio.ensure_future(self.send(self.request))
            await self.clock.advance(takes)
            (outcome,) = await asyncio.gather(call, return_exceptions=True)
            cut_off += isinstance(outcome, AttemptTimeoutError)
        return cut_off


async def test_until_enough_answers_were_seen_the_limit_is_the_longest() -> None:
    setup = Setup()
    assert await setup.call(0.2, times=19) == 0
    assert setup.limit == 10.0
    await setup.call(0.2)
    assert setup.limit == pytest.approx(0.4, rel=0.1)


async def test_an_attempt_that_takes_unusually_long_is_cut_off_and_can_be_retried() -> None:
    setup = Setup()
    await setup.call(0.2, times=20)
    retry = RetryLayer(RetryConfig(base_delay=0.0), clock=setup.clock)
    send = stack(setup.send, retry, semantics=PLAIN_CALL)
    setup.service.takes = 60.0
    call = asyncio.ensure_future(send("x"))
    await setup.clock.advance(0.1)
    setup.service.takes = 0.2
    await setup.clock.advance(0.7)
    assert await call == "x"
    assert setup.layer.snapshot()["expired_count"] == 1


async def test_the_limit_stays_within_its_bounds() -> None:
    quick, slow = Setup(minimum=0.5), Setup()
    await quick.call(0.001, times=30)
    assert quick.limit == 0.5
    await slow.call(9.0, times=30)
    assert slow.limit == 10.0


async def test_the_slowest_answers_up_to_the_percentile_set_the_limit() -> None:
    setup = Setup(percentile=0.9, factor=1.5, min_samples=100)
    await setup.call(0.1, times=85)
    await setup.call(1.0, times=15)
    assert setup.limit == pytest.approx(1.5, rel=0.1)


async def test_expiries_never_shorten_the_limit_and_true_latencies_are_seen_again() -> None:
    setup = Setup(factor=1.2, window=6000.0)
    await setup.call(0.2, times=50)
    before = setup.limit
    assert await setup.call(1.0, times=3) == 1
    assert setup.limit == 10.0 > before
    assert await setup.call(1.0, times=130) == 0
    assert setup.limit == pytest.approx(1.2, rel=0.1)


async def test_a_rare_expiry_changes_nothing() -> None:
    setup = Setup()
    await setup.call(0.2, times=200)
    before = setup.limit
    assert await setup.call(60.0) == 1
    assert setup.limit == before
    assert setup.told == [AttemptTimedOut("service", before)]


async def test_failures_say_nothing_about_how_long_an_answer_takes() -> None:
    setup = Setup()
    await setup.call(1.0, times=25)
    before = setup.limit
    setup.service.error = ConnectionError("refused")
    await setup.call(0.0, times=200)
    await setup.call(1.5, times=20)
    assert setup.limit == before


async def test_an_answer_that_is_a_failure_says_nothing_either() -> None:
    class Picky(PlainCall):
        def judge(self, outcome: object) -> Verdict:
            return Verdict.FAILED if outcome == "sorry" else super().judge(outcome)

    setup = Setup(percentile=0.5)
    setup.send = stack(setup.service, setup.layer, semantics=Picky())
    await setup.call(1.0, times=25)
    before = setup.limit
    setup.request = "sorry"
    await setup.call(0.1, times=50)
    assert setup.limit == before


@pytest.mark.parametrize(("after", "expected"), [(0.01, 2.0), (1.9, 3.8)])
async def test_a_cancelled_attempt_counts_only_if_it_had_taken_long(
    after: float, expected: float
) -> None:
    setup = Setup(percentile=0.5)
    await setup.call(1.0, times=20)
    assert setup.limit == pytest.approx(2.0, rel=0.1)
    setup.service.takes = 9.0
    for _ in range(30):
        call = asyncio.ensure_future(setup.send("x"))
        await setup.clock.advance(after)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    await setup.clock.advance(10.0)
    assert setup.limit == pytest.approx(expected, rel=0.1)
    assert setup.layer.snapshot()["expired_count"] == 0


async def test_latencies_out_of_the_window_no_longer_count() -> None:
    setup = Setup(window=60.0)
    await setup.call(0.4, times=20)
    assert setup.limit < 10.0
    await setup.clock.advance(120.0)
    assert setup.limit == 10.0
    assert setup.layer.snapshot()["percentile"] is None


async def test_it_belongs_where_the_fixed_limit_would_be() -> None:
    layer = AdaptiveTimeoutLayer(config())
    with pytest.warns(LayerOrderWarning, match="HealthLayer sees no timeout"):
        stack(Service(FakeClock()), layer, HealthLayer(HealthMonitor()), semantics=PLAIN_CALL)


@pytest.mark.parametrize(
    "options",
    [{"maximum": float("nan")}, {"maximum": float("inf")}, {"minimum": 11.0}, {"factor": 0.5}],
)
def test_bounds_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        config(**options)
