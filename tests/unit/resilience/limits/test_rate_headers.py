from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.infrastructure.resilience.limits.headers import Quota, read_rate_headers

DATE = "Sat, 21 Nov 2026 12:00:00 GMT"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"RateLimit": '"default";r=50;t=30'}, [(50, 30)]),
        ({"ratelimit": '"burst";r=5;t=1, "daily";r=900;t=4000'}, [(5, 1), (900, 4000)]),
        ({"RateLimit": '"m";r=0', "RateLimit-Policy": '"d";q=9;w=7, "m";q=100;w=60'}, [(0, 60)]),
        ({"X-RateLimit-Remaining": "7", "X-RateLimit-Reset": "12"}, [(7, 12)]),
        ({"RateLimit-Remaining": "7", "RateLimit-Reset": "12"}, [(7, 12)]),
        ({"X-RateLimit-Remaining": "7", "X-RateLimit-Reset": str(int(NOW) + 90)}, [(7, 90)]),
        ({"X-RateLimit-Remaining": "7", "X-RateLimit-Reset": f"{int(NOW) + 90}000"}, [(7, 90)]),
        (
            {
                "anthropic-ratelimit-requests-remaining": "3",
                "anthropic-ratelimit-requests-reset": "2026-11-21T12:00:40Z",
            },
            [(3, 40)],
        ),
    ],
)
def test_a_quota_is_read_in_each_form_services_use(
    headers: dict[str, str], expected: list[tuple[float, float]]
) -> None:
    quotas = read_rate_headers({"Date": DATE, **headers}).quotas
    assert [(quota.remaining, quota.reset) for quota in quotas] == [
        pytest.approx(quota) for quota in expected
    ]


@pytest.mark.parametrize(
    ("span", "seconds"), [("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("1d1h1m1.5s", 90061.5)]
)
def test_a_reset_is_read_in_the_spans_of_openai(span: str, seconds: float) -> None:
    headers = {"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": span}
    assert read_rate_headers(headers).quotas == (Quota(1, pytest.approx(seconds)),)


@pytest.mark.parametrize("reset", ["", "x6m", "6m!", "6m 0s", "1_0", "nan", "-5", "0", "99d", "٣"])
def test_a_quota_without_a_sensible_reset_is_left_out(reset: str) -> None:
    assert not read_rate_headers({"ratelimit-remaining": "1", "ratelimit-reset": reset}).quotas
    assert not read_rate_headers({"RateLimit": f'"d";r=1;t={reset}'}).quotas
    assert not read_rate_headers({"ratelimit-remaining": reset[:1], "ratelimit-reset": ""}).quotas


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "17"}, 17),
        ({"retry-after": "Sat, 21 Nov 2026 12:02:00 GMT"}, 120),
        ({"retry-after": "Sat, 21 Nov 2026 11:00:00 GMT"}, 0),
        ({"retry-after": "17", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "9999999"}, 0),
        ({"retry-after": "-1"}, 0),
        ({"retry-after": "soon: very"}, 0),
        ({}, 0),
    ],
)
def test_a_wait_is_read_in_each_form(headers: dict[str, str], seconds: float) -> None:
    assert read_rate_headers({"date": DATE, **headers}).retry_after == seconds


def test_only_the_quota_of_the_unit_asked_for_is_read() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-remaining-tokens": "2",
        "x-ratelimit-reset-tokens": "3s",
    }
    assert read_rate_headers(headers, unit="tokens").quotas == (Quota(2, 3),)


def test_an_instant_is_relative_to_the_date_of_the_answer_before_any_clock_here() -> None:
    headers = {"x-ratelimit-remaining": "7", "x-ratelimit-reset": str(int(NOW) + 90)}
    assert read_rate_headers(headers, wall_clock=NOW + 30).quotas == (Quota(7, 60),)
    dated = {**headers, "date": DATE}
    assert read_rate_headers(dated, wall_clock=NOW + 30).quotas == (Quota(7, 90),)


NAMES = st.sampled_from(
    [
        "date",
        "RateLimit",
        "RateLimit-Policy",
        "X-RateLimit-Remaining",
        "X-RateLimit-Reset",
        "Retry-After",
        "retry-after-ms",
        "ratelimit-remaining",
        "ratelimit-reset",
    ]
)
SHAPES = st.from_regex(r"[\"a;,=:.rtw0-9smhd TZ/+-]{0,24}|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]+Z?")
VALUES = st.one_of(st.text(), SHAPES, st.datetimes().map(datetime.isoformat))


@settings(max_examples=600, deadline=None, derandomize=True)
@given(headers=st.dictionaries(NAMES, VALUES))
def test_no_text_raises_or_yields_a_nonsensical_number(headers: dict[str, str]) -> None:
    advice = read_rate_headers(headers)
    assert 0.0 <= advice.retry_after <= 31 * 86400
    for quota in advice.quotas:
        assert quota.remaining >= 0.0
        assert 0.0 < quota.reset <= 31 * 86400
