"""How long a host may keep a caller waiting, on a clock that stands still."""

import asyncio
from typing import Any

import pytest

from shared.infrastructure.balancing.answers import MAY_RESTART
from shared.infrastructure.balancing.errors import (
    FirstTokenTimeoutError,
    SilenceError,
    SlowStreamError,
    StreamIdleTimeoutError,
)
from shared.infrastructure.http import ReadTimeoutError, TimeoutConfig
from shared.infrastructure.http.extensions import PATIENCE
from shared.infrastructure.resilience import DeadlineExceededError
from tests.scripted_host import choice, event
from tests.unit.balancing.answering import (
    JSON,
    PLAIN,
    Answering,
    Piece,
    body_of,
    stream_of,
)

ROLE = event(choice({"role": "assistant", "content": ""}))
HI, STOP = event(choice({"content": "hi"})), event(choice({}, "stop"))
REASON = event(choice({"reasoning_content": "hm"}))
TOOL = event(choice({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}))
PING, BLANK = b": ping\n\n", event(choice({"content": ""}))
DONE = b"data: [DONE]\n\n"
BODY = b'{"choices": [{"message": {"content": "hi"}}]}'

NO_CONTENT = {
    "silence": [60.0],
    "a role, then silence": [ROLE, 60.0],
    "pings": [ROLE, *[0.5, PING] * 100],
    "blanks": [ROLE, *[0.5, BLANK] * 100],
    "annotations": [*[0.5, event(choice({"annotations": [{"a": 1}]}))] * 100],
    "a filter's verdict": [*[0.5, event({"choices": [], "prompt_filter_results": [{}]})] * 100],
    "more frames than anyone wants": [ROLE * 2000, *[0.5, BLANK * 2000] * 100],
}


@pytest.mark.parametrize("pieces", NO_CONTENT.values(), ids=NO_CONTENT.keys())
async def test_what_is_no_content_does_not_stop_the_first_token_timer(pieces: list[Piece]) -> None:
    host = Answering(*pieces, first_token=10.0)
    error = await host.outcome(host.send(), 10.0)
    assert isinstance(error, FirstTokenTimeoutError)
    assert error.host == "a"
    assert host.body.is_closed
    assert host.clock.pending == 0


@pytest.mark.parametrize("content", [HI, REASON, TOOL])
async def test_text_reasoning_and_tool_calls_are_content(content: bytes) -> None:
    host = Answering(ROLE, 9.9, content, 60.0, first_token=10.0)
    began = host.clock.now()
    response = await host.outcome(host.send(), 9.9)
    assert response.status_code == 200
    assert host.attempt.first_token_at == pytest.approx(began + 9.9)


async def test_the_first_token_is_awaited_from_sending_headers_included() -> None:
    host = Answering(6.0, HI, head_after=6.0, first_token=10.0)
    assert isinstance(await host.outcome(host.send(), 10.0), FirstTokenTimeoutError)


BETWEEN = {
    "silence": [HI, 60.0],
    "pings": [HI, *[0.5, PING] * 100],
    "blanks": [HI, *[0.5, BLANK] * 100],
}


@pytest.mark.parametrize("pieces", BETWEEN.values(), ids=BETWEEN.keys())
@pytest.mark.parametrize("how", ["raw", "texts"])
async def test_what_is_no_content_does_not_reset_the_idle_timer(
    pieces: list[Piece], how: str
) -> None:
    host = Answering(*pieces, idle=5.0)
    error = await host.outcome(getattr(host, how)(), 5.0)
    assert isinstance(error, StreamIdleTimeoutError)
    assert host.body.is_closed
    assert host.clock.pending <= 1  # that of the body


async def test_content_resets_the_idle_timer() -> None:
    host = Answering(*[4.9, HI] * 20, STOP, DONE, idle=5.0)
    assert len(await host.outcome(host.texts(), 100.0)) == 21
    assert host.clock.pending == 0


async def test_one_timer_does_for_many_pieces() -> None:
    host = Answering(*[0.1, HI] * 100, STOP, DONE, idle=5.0)
    calls = 0
    call_later = host.clock.call_later

    def counted(seconds: float, callback: Any) -> Any:
        nonlocal calls
        calls += seconds > 0.11  # and not one of the body
        return call_later(seconds, callback)

    host.clock.call_later = counted  # type: ignore[method-assign]
    await host.outcome(host.texts(), 20.0)
    assert calls <= 5


async def test_time_that_the_reader_takes_does_not_count() -> None:
    host = Answering(HI, 1.0, HI, 1.0, HI, STOP, DONE, idle=5.0)
    stream = body_of(await host.send())
    pieces: list[bytes] = []

    async def read_slowly() -> None:
        async for piece in stream:
            pieces.append(piece)
            await host.clock.sleep(60.0)

    await host.outcome(read_slowly(), 400.0)
    assert pieces == [HI, HI, HI, STOP, DONE]


async def test_the_deadline_of_the_call_holds_within_the_stream() -> None:
    host = Answering(*[1.0, HI] * 100)
    error = await host.outcome(host.texts(deadline=host.clock.now() + 7.5), 7.5)
    assert isinstance(error, DeadlineExceededError)
    assert host.body.is_closed
    host = Answering(*[HI] * 100)
    stream = stream_of(await host.send(deadline=host.clock.now() + 7.5)).events()
    await anext(stream)
    await host.clock.advance(8.0)
    with pytest.raises(DeadlineExceededError):
        await anext(stream)


SLOW: dict[str, Any] = {"min_chars_per_second": 4.0, "slow_window": 5.0}


async def test_a_slow_stream_is_given_up_while_nobody_has_seen_it() -> None:
    host = Answering(*[1.0, HI] * 100, STOP, **SLOW)
    assert isinstance(await host.outcome(host.send(hold="whole"), 6.0), SlowStreamError)
    host = Answering(*[0.4, HI] * 100, *[1.0, HI] * 100, STOP, **SLOW)
    assert isinstance(await host.outcome(host.send(hold="whole"), 50.4), SlowStreamError)
    host = Answering(*[0.4, HI] * 100, STOP, **SLOW)
    assert len(await host.outcome(host.texts(hold="whole"), 60.0)) == 101


async def test_a_slow_stream_that_was_handed_up_is_given_up_only_if_it_may_restart() -> None:
    host = Answering(*[1.0, HI] * 20, STOP, DONE, **SLOW)
    assert len(await host.outcome(host.texts(), 30.0)) == 21
    error = await host.outcome(host.texts(**{MAY_RESTART: True}), 6.0)
    assert isinstance(error, SlowStreamError)


async def test_a_fast_end_is_not_slow_for_what_the_host_lingers() -> None:
    host = Answering(HI, STOP, 60.0, min_chars_per_second=100.0, slow_window=0.5)
    assert await host.outcome(host.texts(hold="whole"), 5.0) == ["hi", ""]


@pytest.mark.parametrize(
    ("p99", "seconds"), [(None, 30.0), (1.0, 10.0), (20.0, 60.0), (500.0, 120.0)]
)
async def test_an_adaptive_limit_is_three_times_the_99th_percentile(
    p99: float | None, seconds: float
) -> None:
    host = Answering(500.0, p99=lambda model: p99 if model == "m" else 9.0, first_token="adaptive")
    task = asyncio.ensure_future(host.send())
    await host.clock.advance(seconds - 0.01)
    assert not task.done()
    await host.clock.advance(0.01)
    assert isinstance(task.exception(), FirstTokenTimeoutError)


async def test_a_model_that_thinks_longer_may() -> None:
    host = Answering(50.0, HI, first_token=10.0, first_token_by_model={"m": 60.0})
    assert (await host.outcome(host.send(), 50.0)).status_code == 200


async def test_the_wire_outwaits_the_guard_before_an_answer_and_not_within_it() -> None:
    host = Answering(HI, STOP, timeouts=TimeoutConfig(read=7.0), first_token=90.0, idle_bytes=3.0)
    await host.send(timeout={"connect": 1.0, "read": 600.0})
    assert host.request.extensions["timeout"] == {"connect": 1.0, "read": 91.0}
    assert host.request.extensions[PATIENCE] == 3.0


async def test_a_caller_who_allows_less_than_the_pool_waits_no_longer() -> None:
    host = Answering(60.0, HI, first_token=90.0)
    error = await host.outcome(host.send(timeout={"read": 2.0}), 2.0)
    assert isinstance(error, FirstTokenTimeoutError)
    host = Answering(HI, 60.0)
    error = await host.outcome(host.texts(timeout={"read": 1.0}, **{PATIENCE: 2.0}), 2.0)
    assert isinstance(error, StreamIdleTimeoutError)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [([], FirstTokenTimeoutError), ([ROLE, HI], StreamIdleTimeoutError)],
)
async def test_silence_on_the_wire_has_the_same_types(
    pieces: list[Piece], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await Answering(*pieces, ReadTimeoutError("silence")).texts()


SILENT_BODIES = {
    "silence": ([60.0], FirstTokenTimeoutError, 10.0),
    "white space now and then": ([*[0.5, b" \r\n"] * 100], FirstTokenTimeoutError, 10.0),
    "a beginning, then silence": ([9.0, BODY[:9], 60.0], StreamIdleTimeoutError, 29.0),
    "a beginning, then white space": (
        [9.0, BODY[:9], *[0.5, b" "] * 200],
        StreamIdleTimeoutError,
        29.0,
    ),
}


@pytest.mark.parametrize(("pieces", "kind", "after"), SILENT_BODIES.values(), ids=SILENT_BODIES)
async def test_a_plain_answer_has_to_come_too(
    pieces: list[Piece], kind: type[SilenceError], after: float
) -> None:
    timeouts = TimeoutConfig(read=20.0)
    host = Answering(*pieces, headers=JSON, timeouts=timeouts, first_token=10.0)
    task = asyncio.ensure_future(host.send(PLAIN))
    await host.clock.advance(after - 0.01)
    assert not task.done()
    await host.clock.advance(0.01)
    assert type(task.exception()) is kind
    assert host.body.is_closed
    assert host.clock.pending <= 1


async def test_a_plain_answer_may_take_its_time_as_long_as_it_comes() -> None:
    pieces = [part for at in range(0, len(BODY), 2) for part in (4.0, BODY[at : at + 2])]
    host = Answering(*pieces, headers=JSON, timeouts=TimeoutConfig(read=5.0), first_token=10.0)
    began = host.clock.now()
    response = await host.outcome(host.send(PLAIN), 4.0 * len(BODY))
    assert response.json()["choices"]
    assert host.attempt.first_token_at == began + 4.0
    assert host.clock.pending == 0


async def test_a_cancelled_caller_is_not_told_that_time_is_up() -> None:
    host = Answering(HI, 60.0, idle=5.0)
    task = asyncio.ensure_future(host.texts())
    await host.clock.advance(1.0)
    host.clock.stall(10.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_time_is_up_in_a_task_that_someone_cancelled_before_and_let_live() -> None:
    host = Answering(HI, 60.0, idle=5.0)

    async def survivor() -> list[str]:
        try:
            await asyncio.sleep(1e9)
        except asyncio.CancelledError:
            return await host.texts()
        return []

    task = asyncio.ensure_future(survivor())
    await asyncio.sleep(0)
    task.cancel()
    await host.clock.advance(5.0)
    assert isinstance(task.exception(), StreamIdleTimeoutError)
    assert task.cancelling() == 1
