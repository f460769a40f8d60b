"""What a host says of its limits: believed where it is less, and only for a while."""

import httpx
import pytest

from shared.infrastructure.balancing.accounting import Estimate, TokenLimits
from shared.infrastructure.balancing.accounting.quotas import read_quotas
from shared.infrastructure.balancing.hosts.config import HostLimits
from shared.infrastructure.testing import FakeClock

CALL = Estimate(100, 100)


def limits(clock: FakeClock, **a_minute: float) -> TokenLimits:
    return TokenLimits(HostLimits.model_validate(a_minute), clock=clock)


LOCKOUTS = {
    "one token a minute": {"x-ratelimit-limit-tokens": "1"},
    "a month": {
        "x-ratelimit-limit-requests": "200",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "31d",
    },
    "a month, without a unit": {
        "x-ratelimit-limit": "200",
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": "31d",
    },
    "a day": {
        "anthropic-ratelimit-tokens-limit": "5",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "24h",
    },
}


@pytest.mark.parametrize("case", LOCKOUTS)
async def test_no_header_locks_a_host_out(case: str) -> None:
    """One call a minute hears what the host says now, and after five minutes it is forgotten."""
    clock = FakeClock()
    tokens = limits(clock)
    tokens.observe(LOCKOUTS[case])
    if not tokens.delay(CALL):
        tokens.reserve(CALL)
    for _ in range(3):
        assert 0.0 < tokens.delay(CALL) <= 60.0
        await clock.advance(tokens.delay(CALL))
        tokens.reserve(CALL)
    assert tokens.delay(CALL) > 0.0
    await clock.advance(300.0)
    assert tokens.delay(Estimate(10**9, 10**9)) == 0.0
    assert tokens.snapshot() == {}


async def test_one_call_alone_probes_a_limit_that_was_named() -> None:
    clock = FakeClock()
    tokens = limits(clock)
    tokens.observe(LOCKOUTS["a month"])
    await clock.advance(60.0)
    tokens.reserve(CALL)
    assert tokens.delay(CALL) == pytest.approx(60.0)


async def test_a_probe_keeps_to_the_limits_of_the_user() -> None:
    clock = FakeClock()
    tokens = limits(clock, tokens_per_minute=600.0)
    tokens.reserve(CALL).settle(600, 1200)
    tokens.observe(LOCKOUTS["one token a minute"])
    await clock.advance(60.0)
    assert tokens.delay(CALL) == pytest.approx(80.0)


@pytest.mark.parametrize("limit", ["0.0001", "0", "0.99"])
def test_a_limit_below_one_is_none(limit: str) -> None:
    tokens = limits(FakeClock())
    tokens.observe({"x-ratelimit-limit-requests": limit, "x-ratelimit-limit-tokens": limit})
    assert tokens.snapshot() == {}


def test_a_limit_without_a_window_is_not_one_by_the_minute() -> None:
    tokens = limits(FakeClock())
    for remaining in range(9, -1, -1):
        tokens.observe({"x-ratelimit-limit": "10", "x-ratelimit-remaining": str(remaining)})
        assert tokens.delay(CALL) == 0.0


async def test_a_window_of_a_second_is_over_after_a_second() -> None:
    """A host that takes 10 a second is given 10 a second, although it says so without a unit."""
    clock = FakeClock()
    tokens = limits(clock)
    for _ in range(5):
        for remaining in range(9, -1, -1):
            assert tokens.delay(CALL) == 0.0
            tokens.reserve(CALL)
            tokens.observe(
                {
                    "x-ratelimit-limit": "10",
                    "x-ratelimit-remaining": str(remaining),
                    "x-ratelimit-reset": "1",
                }
            )
        assert 0.0 < tokens.delay(CALL) <= 1.1
        await clock.advance(2.0)


def test_a_limit_with_a_unit_goes_before_one_without() -> None:
    tokens = limits(FakeClock())
    tokens.observe(
        {
            "x-ratelimit-limit": "3",
            "x-ratelimit-reset": "1",
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
        }
    )
    assert tokens.snapshot()["requests"]["named"] == 60.0


async def test_what_a_host_counts_is_owed_to_a_bound() -> None:
    clock = FakeClock()
    tokens = limits(clock, tokens_per_minute=1000.0)
    for _ in range(3):
        held = [tokens.reserve(Estimate(1, 1)) for _ in range(3)]
        for reservation in held:
            reservation.settle(10**15, 10**15)
        assert tokens.delay(CALL) <= 6 * 60.0
        await clock.advance(tokens.delay(CALL))


def test_a_wild_estimate_gives_back_no_more_than_it_took() -> None:
    tokens = limits(FakeClock(), tokens_per_minute=1000.0)
    tokens.reserve(Estimate(10, 10**30)).settle(10, 490)
    assert tokens.snapshot()["tokens"]["available"] == pytest.approx(500.0)


async def test_what_was_taken_before_a_limit_was_learned_is_not_given_back_to_it() -> None:
    clock = FakeClock()
    tokens = limits(clock, tokens_per_minute=5000.0)
    early = tokens.reserve(CALL)
    await clock.advance(1.0)
    tokens.observe(httpx.Headers({"x-ratelimit-limit-tokens": "1000"}))
    tokens.reserve(CALL)
    early.settle(0, 0)
    assert tokens.snapshot()["tokens"]["available"] == pytest.approx(800.0)


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("6ms", 0.006),
        ("1m2.5s", 62.5),
        ("6m0s", 360.0),
        ("30", 30.0),
        ("1795312830", 30.0),
        ("2026-11-22T02:00:30Z", 30.0),
        ("soon", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("date", ["Sun, 22 Nov 2026 02:00:00 GMT"])
def test_a_reset_is_read_in_every_form(reset: str, seconds: float | None, date: str) -> None:
    headers = {"date": date, "x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": reset}
    quota = read_quotas(headers)["tokens"]
    assert quota.reset == (None if seconds is None else pytest.approx(seconds))
