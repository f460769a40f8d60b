"""Token limits: what is reserved, settled and given back, and what the host says of it."""

import asyncio

import httpx
import pytest

from shared.infrastructure.balancing.accounting import Estimate, TokenLimits
from shared.infrastructure.balancing.errors import TokenLimitError
from shared.infrastructure.balancing.hosts.config import HostLimits
from shared.infrastructure.testing import FakeClock

CALL = Estimate(100, 100)


def limits(clock: FakeClock, **a_minute: float) -> TokenLimits:
    return TokenLimits(HostLimits.model_validate(a_minute), clock=clock)


def available(tokens: TokenLimits, unit: str = "tokens") -> float:
    return float(tokens.snapshot()[unit]["available"])


def test_a_host_without_limits_takes_everything() -> None:
    tokens = limits(FakeClock())
    for _ in range(100):
        tokens.reserve(Estimate(10**9, 10**9)).settle(10**9, 10**9)
    assert tokens.delay(CALL) == 0.0
    assert tokens.snapshot() == {}


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        ("requests_per_minute", 999.0),
        ("tokens_per_minute", 800.0),
        ("input_tokens_per_minute", 900.0),
        ("output_tokens_per_minute", 900.0),
    ],
)
def test_each_limit_counts_what_its_name_says(limit: str, left: float) -> None:
    tokens = limits(FakeClock(), **{limit: 1000.0})
    tokens.reserve(CALL)
    [line] = tokens.snapshot().values()
    assert line == {"limit": 1000.0, "available": pytest.approx(left), "named": None}


def test_the_scarcest_limit_decides() -> None:
    tokens = limits(FakeClock(), requests_per_minute=1.0, tokens_per_minute=6000.0)
    tokens.reserve(CALL)
    assert tokens.delay(CALL) == pytest.approx(60.0)


async def test_the_bucket_fills_evenly() -> None:
    clock = FakeClock()
    tokens = limits(clock, tokens_per_minute=600.0)
    for _ in range(3):
        tokens.reserve(CALL)
    assert tokens.delay(CALL) == pytest.approx(20.0)
    await clock.advance(10.0)
    assert tokens.delay(CALL) == pytest.approx(10.0)
    with pytest.raises(TokenLimitError) as refused:
        tokens.reserve(CALL)
    assert refused.value.retry_after == pytest.approx(10.0)
    await clock.advance(10.0)
    tokens.reserve(CALL)


def test_what_was_estimated_too_high_comes_back() -> None:
    tokens = limits(FakeClock(), tokens_per_minute=600.0)
    tokens.reserve(CALL).settle(50, 10)
    assert available(tokens) == pytest.approx(540.0)


def test_an_overshoot_delays_the_next() -> None:
    tokens = limits(FakeClock(), tokens_per_minute=600.0)
    tokens.reserve(CALL).settle(100, 800)
    assert available(tokens) == pytest.approx(-300.0)
    assert tokens.delay(CALL) == pytest.approx(50.0)


def test_a_cancelled_call_gives_everything_back_once() -> None:
    tokens = limits(FakeClock(), tokens_per_minute=600.0, requests_per_minute=10.0)
    reservation = tokens.reserve(CALL)
    reservation.cancel()
    reservation.cancel()
    reservation.settle(1000, 1000)
    assert available(tokens) == pytest.approx(600.0)
    assert available(tokens, "requests") == pytest.approx(10.0)


async def test_a_call_larger_than_the_bucket_goes_when_it_is_full() -> None:
    clock = FakeClock()
    tokens = limits(clock, tokens_per_minute=600.0)
    tokens.reserve(CALL)
    giant = Estimate(1000, 200)
    assert tokens.delay(giant) == pytest.approx(20.0)
    await clock.advance(20.0)
    tokens.reserve(giant)
    assert tokens.delay(CALL) == pytest.approx(80.0)


def test_a_call_larger_than_all_a_host_says_it_takes_goes_when_the_bucket_is_full() -> None:
    tokens = limits(FakeClock())
    tokens.observe({"x-ratelimit-limit-tokens": "1000"})
    tokens.reserve(Estimate(10**6, 0))
    assert 0.0 < tokens.delay(CALL) <= 60.0


async def test_many_calls_at_once_are_not_let_in_by_a_race() -> None:
    """Each looks, and takes in the same step what it has seen; nobody comes in between."""
    clock = FakeClock()
    tokens = limits(clock, tokens_per_minute=6000.0)
    admitted: list[float] = []

    async def call(number: int) -> None:
        await asyncio.sleep(0)
        while delay := tokens.delay(CALL):
            await clock.sleep(delay)
        tokens.reserve(CALL)
        admitted.append(clock.now())

    calls = [asyncio.ensure_future(call(number)) for number in range(100)]
    began = clock.now()
    await clock.advance(0.0)
    assert len(admitted) == 30
    await clock.advance(60.0)
    assert sum(at <= began + 60.0 for at in admitted) == 60
    await clock.advance(1000.0)
    assert len(admitted) == 100
    await asyncio.gather(*calls)


HEADERS = {
    "OpenAI": (
        {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-limit-tokens": "150000",
            "x-ratelimit-remaining-tokens": "99984",
            "x-ratelimit-reset-tokens": "20.0s",
        },
        {"requests": (60.0, 59.0), "tokens": (150000.0, 99984.0)},
    ),
    "OpenAI, by the day": (
        {
            "x-ratelimit-limit-requests": "200",
            "x-ratelimit-remaining-requests": "199",
            "x-ratelimit-reset-requests": "7m12s",
        },
        {"requests": (200.0, 199.0)},
    ),
    "Anthropic": (
        {
            "date": "Sun, 22 Nov 2026 02:00:00 GMT",
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2026-11-22T02:00:01Z",
            "anthropic-ratelimit-input-tokens-limit": "40000",
            "anthropic-ratelimit-input-tokens-remaining": "39000",
            "anthropic-ratelimit-input-tokens-reset": "2026-11-22T02:00:02Z",
            "anthropic-ratelimit-output-tokens-limit": "8000",
            "anthropic-ratelimit-output-tokens-remaining": "7000",
            "anthropic-ratelimit-output-tokens-reset": "2026-11-22T02:00:07Z",
        },
        {
            "requests": (50.0, 49.0),
            "input-tokens": (40000.0, 39000.0),
            "output-tokens": (8000.0, 7000.0),
        },
    ),
    "without a unit": (
        {"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": "4", "X-RateLimit-Reset": "6ms"},
        {"requests": (10.0, 4.0)},
    ),
    "without a reset": (
        {"x-ratelimit-limit-tokens": "10", "x-ratelimit-remaining-tokens": "4"},
        {"tokens": (10.0, 4.0)},
    ),
    "nonsense": (
        {"x-ratelimit-limit-tokens": "many", "x-ratelimit-remaining-tokens": "-1"},
        {},
    ),
    "none": ({"content-type": "application/json"}, {}),
}


@pytest.mark.parametrize("form", [dict, httpx.Headers])
@pytest.mark.parametrize("case", HEADERS)
def test_a_host_that_says_what_it_takes_is_believed(case: str, form: type) -> None:
    headers, expected = HEADERS[case]
    tokens = limits(FakeClock())
    tokens.observe(form(headers))
    learned = {
        unit: (line["named"], pytest.approx(line["available"]))
        for unit, line in tokens.snapshot().items()
    }
    assert learned == expected


def test_a_host_that_says_it_has_more_is_not_believed() -> None:
    tokens = limits(FakeClock(), tokens_per_minute=600.0)
    tokens.reserve(CALL)
    tokens.observe({"x-ratelimit-limit-tokens": "9000", "x-ratelimit-remaining-tokens": "9000"})
    assert tokens.snapshot()["tokens"] == {
        "limit": 600.0,
        "available": pytest.approx(400.0),
        "named": 9000.0,
    }


def test_a_lower_limit_keeps_what_is_owed() -> None:
    tokens = limits(FakeClock(), tokens_per_minute=6000.0)
    tokens.reserve(CALL).settle(100, 7000)
    tokens.observe({"x-ratelimit-limit-tokens": "3000"})
    assert available(tokens) == pytest.approx(-1100.0)


async def test_a_window_that_is_used_up_is_waited_for() -> None:
    clock = FakeClock()
    tokens = limits(clock, requests_per_minute=60.0)
    tokens.observe(
        {
            "x-ratelimit-limit": "60",
            "x-ratelimit-remaining": "0",
            "x-ratelimit-reset": "30",
        }
    )
    assert 30.0 <= tokens.delay(CALL) <= 31.0
    await clock.advance(31.0)
    assert tokens.delay(CALL) == 0.0


def test_an_even_quota_that_is_used_up_is_not_waited_for_to_the_end() -> None:
    tokens = limits(FakeClock(), requests_per_minute=60.0)
    tokens.observe(
        {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "60",
        }
    )
    assert tokens.delay(CALL) == pytest.approx(1.0)
