"""Rate headers at the ends of what makes sense."""

import pytest

from shared.infrastructure.resilience.limits.headers import Quota, read_rate_headers

DAY = 86400.0


def retry_after(value: str, now: float = 0.0) -> float:
    return read_rate_headers({"Retry-After": value}, wall_clock=now).retry_after


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2d", 2 * DAY),
        ("3h", 10800.0),
        ("4m", 240.0),
        ("5s", 5.0),
        ("600ms", 0.6),
        ("500us", 0.0005),
        ("500µs", 0.0005),
        ("500ns", 5e-7),
        ("1h30m", 5400.0),
    ],
)
def test_a_span_is_read_in_each_of_its_units(text: str, seconds: float) -> None:
    assert retry_after(text) == pytest.approx(seconds, rel=1e-12)


def test_a_wait_of_a_month_is_believed_and_a_longer_one_is_not() -> None:
    assert retry_after(str(int(31 * DAY))) == 31 * DAY
    assert retry_after(f"{int(31 * DAY)}.5") == 0.0
    assert retry_after(str(int(31 * DAY) + 1)) == 0.0


def test_a_large_number_is_an_instant_in_seconds_or_milliseconds() -> None:
    assert retry_after("1000000000", now=999_999_990.0) == 10.0
    assert retry_after("1000000010", now=999_999_990.0) == 20.0
    assert retry_after("99999999999", now=99_999_999_990.0) == 9.0
    assert retry_after("100000000000", now=99_999_995.0) == 5.0
    assert retry_after("100000010000", now=99_999_995.0) == 15.0
    assert retry_after("999999999", now=999_999_990.0) == 0.0


def test_an_instant_is_read_in_its_own_time_zone_or_as_utc() -> None:
    now = 1767225600.0  # 2026-01-01T00:00:00Z
    assert retry_after("2026-01-01T02:00:10+02:00", now) == 10.0
    assert retry_after("2026-01-01T00:00:10", now) == 10.0
    assert retry_after("Thu, 01 Jan 2026 00:00:10 GMT", now) == 10.0
    assert retry_after("2025-12-31T23:00:00+00:00", now) == 0.0


def test_a_quota_takes_its_window_from_the_policy_of_its_very_name() -> None:
    advice = read_rate_headers(
        {"RateLimit-Policy": '"a~";q=9;w=10, "a";q=9;w=20', "RateLimit": '"a~";r=1, "a";r=2'}
    )
    assert advice.quotas == (Quota(1.0, 10.0), Quota(2.0, 20.0))
