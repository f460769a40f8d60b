"""What the client promises, on httpx and on httpx2 alike."""

import gzip
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.infrastructure.http import (
    ApiKeyLayer,
    CrossOriginError,
    ReadTimeoutError,
    ResponseLimits,
    ResponseTooLargeError,
    TimeoutConfig,
    UndecodableBodyError,
    UnprocessedError,
    UpstreamError,
)
from shared.infrastructure.resilience import (
    CircuitOpenError,
    ConfigurationError,
    HedgeConfig,
    RateLimitConfig,
    RetryConfig,
)
from tests.unit.http.flavours import FLAVOURS, Flavour

FAST = RetryConfig(base_delay=0.0)
both = pytest.mark.parametrize("flavour", FLAVOURS)


class Played:
    """A handler that plays a list of answers, the last one for ever, and keeps the requests."""

    def __init__(self, *answers: Any) -> None:
        self._answers = answers
        self.requests: list[Any] = []

    def __call__(self, request: Any) -> Any:
        answer = self._answers[min(len(self.requests), len(self._answers) - 1)]
        self.requests.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer


@both
async def test_failures_are_retried_and_the_answer_is_the_librarys_own(flavour: Flavour) -> None:
    library = flavour.library
    played = Played(
        library.Response(503), library.ReadTimeout(""), library.Response(200, text="ok")
    )
    async with flavour.client(played, retry_config=FAST) as client:
        response = await client.post("/x", json={"a": 1})
    assert isinstance(client, library.AsyncClient)
    assert isinstance(response, library.Response)
    assert response.text == "ok"
    assert response.elapsed.total_seconds() >= 0.0
    assert len(response.extensions["trace"].entries) >= 2
    assert len(played.requests) == 3


@both
async def test_an_error_is_ours_and_the_librarys(flavour: Flavour) -> None:
    played = Played(flavour.library.ReadTimeout(""))
    async with flavour.client(played, retry_config=FAST) as client:
        with pytest.raises(ReadTimeoutError) as caught:
            await client.get("/x")
    assert isinstance(caught.value, flavour.library.ReadTimeout)
    assert isinstance(caught.value.__cause__, flavour.library.ReadTimeout)
    assert caught.value.attempts == 4
    assert caught.value.request is played.requests[-1]


@both
async def test_a_refusal_is_no_error_of_the_library(flavour: Flavour) -> None:
    played = Played(flavour.library.Response(500))
    async with flavour.client(played, retry_config=None) as client:
        for _ in range(5):
            await client.get("/x")
        with pytest.raises(CircuitOpenError) as caught:
            await client.get("/x")
    assert not isinstance(caught.value, flavour.library.HTTPError)


@both
async def test_a_body_that_breaks_is_a_failed_attempt(flavour: Flavour) -> None:
    library = flavour.library
    played = Played(
        lambda: flavour.streamed(b"half", library.ReadError("reset")),
        lambda: flavour.streamed(b"wh", b"ole"),
    )
    async with flavour.client(played, retry_config=FAST) as client:
        assert (await client.get("/x")).content == b"whole"
    assert client.get_status()["retry_count"] == 1


@both
async def test_a_streamed_body_that_breaks_is_seen_by_the_breaker(flavour: Flavour) -> None:
    broken = flavour.library.ReadError("reset")
    async with flavour.client(Played(lambda: flavour.streamed(b"half", broken))) as client:
        async with client.stream("GET", "/x") as response:
            with pytest.raises(UpstreamError):
                await response.aread()
        status = client.get_status()
    assert status["circuit_breaker"]["failure_count"] == 1
    assert status["failures"] == {"body": 1}


@both
async def test_a_stream_that_breaks_before_its_first_byte_is_retried(flavour: Flavour) -> None:
    played = Played(
        lambda: flavour.streamed(b"", flavour.library.ReadError("reset")),
        lambda: flavour.streamed(b"", b"one", b"two"),
    )
    async with (
        flavour.client(played, retry_config=FAST) as client,
        client.stream("GET", "/x") as response,
    ):
        assert [piece async for piece in response.aiter_raw()] == [b"one", b"two"]
        assert client.get_status()["retry_count"] == 1


@both
async def test_a_redirect_to_another_origin_is_refused_and_carries_no_key(flavour: Flavour) -> None:
    played = Played(flavour.library.Response(302, headers={"Location": "http://evil.test/x"}))
    async with flavour.client(played, headers={"x-api-key": "secret"}) as client:
        assert (await client.get("/x")).status_code == 302
        with pytest.raises(CrossOriginError, match=r"evil\.test"):
            await client.get("/x", follow_redirects=True)
        with pytest.raises(CrossOriginError):
            await client.send(flavour.library.Request("GET", "https://orders.test/x"))
    assert {request.url.host for request in played.requests} == {"orders.test"}


@both
@pytest.mark.parametrize(
    ("status", "advice", "attempts"),
    [(500, "false", 1), (500, "true", 4), (409, "true", 4), (409, "maybe", 1), (400, "false", 1)],
)
async def test_the_service_may_say_whether_to_retry(
    flavour: Flavour, status: int, advice: str, attempts: int
) -> None:
    played = Played(flavour.library.Response(status, headers={"x-should-retry": advice}))
    client = flavour.client(played, retry_config=FAST, idempotency_keys=False)
    async with client:
        assert (await client.post("/x")).status_code == status
    assert len(played.requests) == attempts


@both
async def test_a_post_that_was_not_processed_is_sent_again_and_nobody_is_blamed(
    flavour: Flavour,
) -> None:
    played = Played(*[UnprocessedError("later")] * 3, flavour.library.Response(200))
    client = flavour.client(played, retry_config=FAST, idempotency_keys=False)
    async with client:
        assert (await client.post("/x")).status_code == 200
        status = client.get_status()
    assert (status["attempt_count"], status["retry_count"], status["resent_count"]) == (4, 1, 2)
    assert status["circuit_breaker"]["failure_count"] == 0


@both
async def test_the_deadline_travels_in_a_header_if_asked(flavour: Flavour) -> None:
    played = Played(flavour.library.Response(200))
    timeouts = TimeoutConfig(total=30.0)
    async with flavour.client(
        played, timeout_config=timeouts, deadline_header="x-time-left"
    ) as client:
        await client.get("/x")
    assert 29_000 <= int(played.requests[0].headers["x-time-left"]) <= 30_000


@both
async def test_quotas_in_headers_slow_the_limiter_down(flavour: Flavour) -> None:
    headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "7"}
    played = Played(flavour.library.Response(200, headers=headers))
    limit = RateLimitConfig(requests_per_second=100, burst_size=100)
    async with flavour.client(played, rate_limit_config=limit) as client:
        await client.get("/x")
        assert client.get_status()["rate_limiter"]["paused_for"] == pytest.approx(7, abs=0.5)


@both
async def test_a_compressed_answer_is_decoded_within_bounds(flavour: Flavour) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Length": "99"}
    packed = gzip.compress(b"x" * 10_000)
    played = Played(
        lambda: flavour.streamed(packed, headers=headers),
        lambda: flavour.streamed(packed[:-9], headers=headers),
    )
    async with flavour.client(played, retry_config=None) as client:
        response = await client.get("/x")
        assert response.content == b"x" * 10_000
        assert "content-encoding" not in response.headers
        assert "content-length" not in response.headers
        assert response.extensions["content_encoding"] == "gzip"
        with pytest.raises(UndecodableBodyError) as caught:
            await client.get("/x")
    assert isinstance(caught.value, flavour.library.DecodingError)
    assert set(played.requests[0].headers["accept-encoding"].split(", ")) == {"gzip", "deflate"}


@both
async def test_a_body_beyond_the_limit_is_refused_once(flavour: Flavour) -> None:
    packed = gzip.compress(b"x" * 10_000)
    played = Played(lambda: flavour.streamed(packed, headers={"Content-Encoding": "gzip"}))
    limits = ResponseLimits(max_bytes=9_999)
    async with flavour.client(played, retry_config=FAST, limits=limits) as client:
        with pytest.raises(ResponseTooLargeError, match="9999"):
            await client.get("/x")
    assert len(played.requests) == 1  # it would only be as large again


@both
async def test_json_nested_too_deeply_is_refused_before_anybody_parses_it(flavour: Flavour) -> None:
    headers = {"Content-Type": "application/json"}
    played = Played(lambda: flavour.streamed(b"[" * 101 + b"]" * 101, headers=headers))
    async with flavour.client(played, retry_config=None) as client:
        with pytest.raises(UndecodableBodyError, match="max_json_depth"):
            await client.get("/x")


@both
async def test_a_check_of_the_answer_fails_the_attempt(flavour: Flavour) -> None:
    library = flavour.library
    played = Played(library.Response(200, text="<html>"), library.Response(200, text="{}"))

    def check(response: Any) -> None:
        if response.text.startswith("<"):
            raise UndecodableBodyError("not what was asked for")

    async with flavour.client(played, retry_config=FAST, check_response=check) as client:
        assert (await client.get("/x")).text == "{}"
    assert client.get_status()["attempt_count"] == 2


@both
async def test_the_body_is_the_same_in_each_attempt(flavour: Flavour) -> None:
    seen: list[bytes] = []

    async def handle(request: Any) -> Any:
        seen.append(await request.aread())
        return flavour.library.Response(503)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async with flavour.client(handle, retry_config=FAST) as client:
        await client.put("/x", content=chunks)
    assert seen == [b"onetwo"] * 4


@both
async def test_hedges_and_retries_exclude_each_other(flavour: Flavour) -> None:
    played = Played(flavour.library.Response(200))
    with pytest.raises(ConfigurationError, match="retry_config=None"):
        flavour.client(played, hedge_config=HedgeConfig())
    async with flavour.client(played, retry_config=None, hedge_config=HedgeConfig()) as client:
        await client.get("/x")
        assert client.get_status()["hedge"]["hedged_count"] == 0


@both
async def test_explain_says_it_in_words(flavour: Flavour) -> None:
    played = Played(flavour.library.Response(500))
    async with flavour.client(played, retry_config=None) as client:
        assert "No call has ended yet." in client.explain()
        for _ in range(5):
            await client.get("/x")
        words = client.explain()
    assert "orders at http://orders.test is unhealthy" in words
    assert "5 calls; 100.0% failed (500: 5)" in words
    assert "The circuit is open; the next probe in 60.0 s." in words


@both
async def test_no_secret_of_a_url_is_logged_or_told(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    played = Played(flavour.library.Response(200), flavour.library.ConnectError("refused"))
    url = "http://user:hush1@orders.test"
    async with flavour.client(played, base_url=url, retry_config=None) as client:
        await client.get("/x?key=hush2")
        told = [caplog.text, str(client.get_status()), client.explain()]
        for path in ("/x?key=hush2", "http://evil.test/?key=hush2"):
            with pytest.raises((UpstreamError, CrossOriginError)) as caught:
                await client.get(path)
            told += [str(caught.value), repr(caught.value), str(caught.value.to_dict())]
    assert "GET http://orders.test/x" in caplog.text
    assert "hush" not in "".join(told)


@both
async def test_a_health_check_carries_the_key(flavour: Flavour) -> None:
    played = Played(flavour.library.Response(200))
    key = ApiKeyLayer("secret", origin="http://orders.test")
    async with flavour.client(played, layers=[key], health_check_path="/healthz") as client:
        assert (await client.check_health())["status"] == "healthy"
    sent = [request for request in played.requests if request.url.path == "/healthz"]
    assert {request.headers["authorization"] for request in sent} == {"Bearer secret"}


@both
async def test_options_of_the_library_are_passed_on_but_none_that_goes_around_us(
    flavour: Flavour,
) -> None:
    hooked: list[str] = []

    async def hook(request: Any) -> None:
        hooked.append(request.url.path)

    played = Played(flavour.library.Response(200))
    options = {"params": {"a": "1"}, "cookies": {"c": "2"}, "event_hooks": {"request": [hook]}}
    async with flavour.client(played, **options) as client:
        await client.get("/x")
        await client.get("/x", params={"b": "3"})
    assert [str(request.url.query, "ascii") for request in played.requests] == ["a=1", "a=1&b=3"]
    assert {request.headers["cookie"] for request in played.requests} == {"c=2"}
    assert hooked == ["/x", "/x"]
    with pytest.raises(ConfigurationError, match="mounts"):
        flavour.client(played, mounts={})


@both
async def test_cookies_that_the_service_sets_come_back(flavour: Flavour) -> None:
    played = Played(flavour.library.Response(200, headers={"Set-Cookie": "c=1"}))
    async with flavour.client(played) as client:
        await client.get("/x")
        await client.get("/x")
        assert client.cookies["c"] == "1"
        client.cookies = {"d": "2"}
        await client.get("/x")
    assert [r.headers.get("cookie") for r in played.requests] == [None, "c=1", "d=2"]
