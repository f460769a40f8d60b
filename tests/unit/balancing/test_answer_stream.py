"""What is a stream and what is none, at the guard."""

import asyncio
import gc
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.infrastructure.balancing.answers import MAX_EVENT_BYTES
from shared.infrastructure.balancing.answers import stream as stream_module
from shared.infrastructure.balancing.call import FAULT, PARSED, Hold
from shared.infrastructure.balancing.errors import (
    InBandError,
    InvalidResponseError,
    InvalidStreamError,
    SlowStreamError,
    StreamIdleTimeoutError,
    StreamTruncatedError,
)
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.balancing.semantics import POOL
from shared.infrastructure.http import ReadFailedError, UpstreamError
from shared.infrastructure.resilience import Verdict
from tests.scripted_host import chat_events, choice, event
from tests.unit.balancing.answering import JSON, Answering, Piece, body_of, stream_of, text_of

TEXT = 'Grüße 🎉 "finish_reason": "stop"\tand data: [DONE]\n'
EVENTS = list(chat_events(TEXT))
WHOLE = b"".join(EVENTS)
ROLE, DONE = EVENTS[0], b"data: [DONE]\n\n"
HI, STOP = event(choice({"content": "hi"})), event(choice({}, "stop"))
USAGE = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}})
HI_1, STOP_1 = HI.replace(b'"index": 0', b'"index": 1'), STOP.replace(b'"index": 0', b'"index": 1')
NAN = float("nan")
BUSY = {"code": 429, "message": "slow down"}


async def read_into(got: list[str], response: httpx.Response) -> None:
    async for item in stream_of(response).events():
        got.append(text_of(item.data))  # noqa: PERF401 - what came before an error counts


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_a_whole_stream_comes_through_byte_by_byte(size: int) -> None:
    pieces = [WHOLE[at : at + size] for at in range(0, len(WHOLE), size)]
    host = Answering(*pieces)
    assert await host.raw() == WHOLE
    assert "".join(await host.texts()) == TEXT
    for hold in ("first", "whole"):
        assert await host.raw(hold=hold) == WHOLE
        assert "".join(await host.texts(hold=hold)) == TEXT
    assert (host.attempt.characters, host.attempt.malformed) == (len(TEXT), 0)
    assert host.attempt.usage == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert host.clock.pending == 0


EARLY = {
    "an event that is no JSON": ([ROLE, b'data: {"choices": [\n\n'], InvalidStreamError),
    "an event that is a list": ([ROLE, b"data: [1]\n\n"], InvalidStreamError),
    "no event at all": ([], StreamTruncatedError),
    "nothing but the end mark": ([DONE], StreamTruncatedError),
    "a role and the end mark": ([ROLE, DONE], StreamTruncatedError),
    "a role and a clean end": ([ROLE], StreamTruncatedError),
    "a role and half an event": ([ROLE, HI[:20]], StreamTruncatedError),
    "a lost connection": ([ROLE, httpx.ReadError("reset")], ReadFailedError),
    "an event that is too large": ([b"x" * (MAX_EVENT_BYTES + 1)], InvalidStreamError),
}


@pytest.mark.parametrize(("pieces", "error"), EARLY.values(), ids=EARLY.keys())
async def test_what_fails_before_the_first_content_fails_the_attempt(
    pieces: list[Piece], error: type[Exception]
) -> None:
    for hold in ("first", "whole"):
        host = Answering(*pieces)
        with pytest.raises(error):
            await host.send(hold=hold)
        assert host.body.is_closed
        assert host.attempt.first_token_at is None
        assert host.clock.pending == 0


REPORTS = {
    "as OpenAI does": ({"error": BUSY}, 429, Fault.THROTTLED),
    "as vLLM does": ({"object": "error", "message": "CUDA out of memory"}, 500, Fault.BROKEN),
    "by a name": ({"error": {"type": "overloaded_error"}}, 503, Fault.OVERLOADED),
    "in one word": ({"error": "boom"}, 500, Fault.BROKEN),
    "as FastAPI does": ({"detail": "CUDA out of memory"}, 500, Fault.BROKEN),
    "with a number that is none": ({"error": {"code": 503, "at": NAN}}, 503, Fault.OVERLOADED),
    "with a code without end": ({"error": {"code": "9" * 5000}}, 500, Fault.BROKEN),
    "with a finish reason": ({**choice({}, "error"), "error": BUSY}, 429, Fault.THROTTLED),
    "with a finish reason alone": (choice({}, "error"), 500, Fault.BROKEN),
}


@pytest.mark.parametrize(("report", "status", "fault"), REPORTS.values(), ids=REPORTS.keys())
async def test_an_error_before_the_first_content_becomes_the_status_it_should_have_had(
    report: Any, status: int, fault: Fault
) -> None:
    for pieces in ([ROLE, event(report), DONE], [ROLE + event(report)], [event(report)[:-1]]):
        host = Answering(*pieces)
        response = await host.send()
        assert (response.status_code, response.extensions[FAULT]) == (status, fault)
        assert "error" in response.json()
        assert await response.aread() == b"".join([piece async for piece in response.aiter_raw()])
        assert host.body.is_closed


async def test_an_error_with_half_a_character_is_passed_on_as_json() -> None:
    host = Answering(b'data: {"error": {"message": "\\ud83d"}}\n\n')
    response = await host.send()
    assert response.json() == {"error": {"message": "\ud83d"}}


async def test_an_error_after_the_first_content_breaks_the_stream_off_where_it_came() -> None:
    for late in (event({"error": BUSY}), event({**choice({}, "error"), "error": BUSY})):
        host = Answering(ROLE, HI, HI + late, DONE)
        got: list[str] = []
        with pytest.raises(InBandError, match="slow down") as caught:
            await read_into(got, await host.send())
        assert "".join(got) == "hihi"
        assert POOL.judge(caught.value) is Verdict.BUSY
        assert caught.value.host == "a"
        with pytest.raises(InBandError):
            await host.raw()
        assert host.body.is_closed


LATE = {
    "a clean end": ([ROLE, HI], StreamTruncatedError),
    "half an event": ([ROLE, HI, HI[:-9]], StreamTruncatedError),
    "a lost connection": ([ROLE, HI, httpx.ReadError("reset")], ReadFailedError),
    "an event that is no JSON": ([ROLE, HI, HI[:-4] + b"\n\n", HI, STOP], InvalidStreamError),
}


@pytest.mark.parametrize(("pieces", "error"), LATE.values(), ids=LATE.keys())
async def test_a_stream_cut_short_is_never_taken_for_a_whole_one(
    pieces: list[Piece], error: type[UpstreamError]
) -> None:
    host = Answering(*pieces)
    verdicts: list[Verdict] = []
    for how in (host.raw, host.texts):
        with pytest.raises(error):
            await how()
        with pytest.raises(error):  # of the attempt, then
            await host.send(hold="whole")
    response = POOL.watch(await host.send(), verdicts.append)
    got: list[str] = []
    with pytest.raises(error):
        await read_into(got, response)
    assert "".join(got) == "hi"
    assert verdicts == [Verdict.FAILED]
    assert host.attempt.fault is Fault.BROKEN
    assert error.__name__ in host.attempt.outcome
    with pytest.raises(error):  # and it does not look whole the second time
        await anext(aiter(body_of(response)))
    assert host.body.is_closed
    assert host.clock.pending == 0


async def test_a_finish_reason_without_an_end_mark_is_an_end_with_its_usage() -> None:
    for pieces in ([ROLE, HI, STOP, USAGE], [ROLE, HI, STOP, USAGE, httpx.ReadError("reset")]):
        host = Answering(*pieces)
        assert await host.texts() == ["", "hi", "", ""]
        assert host.attempt.usage == {"prompt_tokens": 3, "completion_tokens": 5}


async def test_half_an_event_after_the_finish_reason_changes_nothing() -> None:
    host = Answering(ROLE, HI, STOP, b'data: {"usa')
    assert await host.texts() == await host.texts(hold="whole") == ["", "hi", ""]


async def test_each_of_several_answers_has_to_finish() -> None:
    two = {"model": "m", "stream": True, "n": 2, "messages": []}
    with pytest.raises(StreamTruncatedError):
        await Answering(HI, STOP).texts(payload=two)
    assert await Answering(HI, STOP, HI_1, STOP_1).texts(payload=two) == ["hi", "", "hi", ""]
    with pytest.raises(StreamTruncatedError):  # the same one once more
        await Answering(HI, STOP, STOP, HI_1).texts(payload=two)
    assert await Answering(HI, DONE).texts(payload=two) == ["hi"]


async def test_an_empty_answer_is_one() -> None:
    host = Answering(ROLE, STOP, DONE)
    assert await host.texts() == ["", ""]
    assert (host.attempt.characters, host.attempt.first_token_at) == (0, None)


async def test_what_is_no_chunk_at_all_is_skipped_and_counted() -> None:
    host = Answering(ROLE, b"data: OK\n\n", HI, b"data: pong\n\n", STOP, DONE)
    assert await host.texts() == ["", "hi", ""]
    assert host.attempt.malformed == 2


async def test_who_reads_the_bytes_is_spared_what_is_no_chunk_at_all() -> None:
    with pytest.raises(InvalidStreamError, match="no JSON"):  # another host can take over
        await Answering(ROLE, b"data: OK\n\n", HI, STOP, DONE).raw()
    with pytest.raises(InvalidStreamError, match="no JSON"):
        await Answering(HI, b"data: OK\n\n", STOP, DONE).raw()
    assert await Answering(HI, b": ping\n\n", STOP, DONE).raw() == HI + b": ping\n\n" + STOP + DONE


async def test_a_stream_that_lingers_after_its_end_ends_all_the_same() -> None:
    for pieces, patience in (
        ([HI, STOP, DONE, 60.0], 0.11),
        ([HI, STOP, 60.0, DONE], 5.0),
        ([HI, STOP, USAGE, 60.0], 1.0),
        ([HI, STOP, *[0.9, STOP] * 20], 5.0),
        ([HI, STOP, *[0.9, USAGE] * 20], 1.9),
        ([HI, STOP, DONE, *[0.02, b": ping\n\n"] * 100], 0.13),
    ):
        host = Answering(*pieces)
        texts = await host.outcome(host.texts(), patience)
        assert "".join(texts) == "hi"
        assert host.body.is_closed
        assert host.clock.pending == 0


async def test_what_follows_the_finish_reason_is_waited_for() -> None:
    verdict = event(choice({}, "content_filter"))
    host = Answering(HI, STOP, 0.3, verdict, 1.3, USAGE, 60.0)
    assert await host.outcome(host.texts(), 2.6) == ["hi", "", "", ""]
    assert host.attempt.usage
    host = Answering(HI, STOP, 3.0, USAGE, DONE, idle=2.0)
    assert await host.outcome(host.texts(), 2.0) == ["hi", ""]


SAID = event(choice({"content": "hi"}, "stop"))


async def test_a_finish_reason_before_the_end_is_none() -> None:
    host = Answering(SAID, 4.0, SAID, 9.0, SAID, 9.0, DONE, idle=10.0)
    assert await host.outcome(host.texts(), 30.0) == ["hi"] * 3
    host = Answering(SAID, 1.0, SAID, 60.0, DONE, idle=10.0)
    assert isinstance(await host.outcome(host.texts(), 11.0), StreamIdleTimeoutError)
    with pytest.raises(StreamTruncatedError):
        await Answering(HI, STOP, HI).texts()
    assert await Answering(SAID, SAID).texts() == ["hi"] * 2


async def test_a_stream_that_goes_on_after_a_finish_reason_may_not_be_too_slow() -> None:
    host = Answering(SAID, *[1.0, HI] * 20, min_chars_per_second=4.0, slow_window=5.0)
    assert isinstance(await host.outcome(host.send(hold="whole"), 7.0), SlowStreamError)


async def test_what_is_missing_is_named_in_the_words_of_the_dialect() -> None:
    for path, words in (
        ("/v1/chat/completions", "neither finish_reason nor \\[DONE\\]"),
        ("/v1/messages", "neither stop_reason nor message_stop"),
        ("/v1/responses", "neither response.incomplete nor response.completed"),
    ):
        with pytest.raises(StreamTruncatedError, match=words):
            await Answering(b": ping\n\n").send(path=path)


async def test_a_second_iteration_goes_on_where_the_first_left_off() -> None:
    host = Answering(*EVENTS)
    stream = body_of(await host.send())
    async for piece in stream:
        if piece == DONE:
            break
    assert [piece async for piece in stream] == []
    await stream.aclose()
    assert [piece async for piece in stream] == []


async def test_an_event_of_8_mib_is_content_like_any_other() -> None:
    text = "ü" * 4 * 2**20
    big = event(choice({"content": text}))
    host = Answering(ROLE, *(big[at : at + 65536] for at in range(0, len(big), 65536)), STOP, DONE)
    assert await host.texts() == ["", text, ""]


async def test_what_is_held_back_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_MAX_HELD", {"first": 5000, "whole": 5000})
    for pieces, hold in (([ROLE] * 100, "first"), ([HI] * 100, "whole")):
        with pytest.raises(InvalidStreamError, match="more than 5000 bytes"):
            await Answering(*pieces).send(hold=hold)
    assert len(await Answering(*[HI] * 100, DONE).texts()) == 100


async def test_before_the_first_content_no_more_is_held_than_one_event_may_have() -> None:
    with pytest.raises(InvalidStreamError):
        await Answering(*[ROLE * 5000] * 25).send()
    assert await Answering(*[HI * 5000] * 25, DONE).raw(hold="whole")


@given(
    st.integers(0, len(WHOLE)),
    st.integers(1, 400),
    st.sampled_from(["first", "whole"]),
    st.booleans(),
)
def test_wherever_a_stream_is_cut_it_is_whole_or_an_error_and_a_prefix(
    cut: int, size: int, hold: Hold, is_reset: bool
) -> None:
    data = WHOLE[:cut]
    pieces: list[Piece] = [data[at : at + size] for at in range(0, cut, size)]
    host = Answering(*pieces, *[httpx.ReadError("reset")] * is_reset)
    got: list[str] = []

    async def read() -> None:
        await read_into(got, await host.send(hold=hold))

    # A clean end makes up for the blank line.
    if cut >= WHOLE.index(STOP) + len(STOP) - (0 if is_reset else 2):
        asyncio.run(read())
        assert "".join(got) == TEXT
    else:
        with pytest.raises(UpstreamError):
            asyncio.run(read())
        assert TEXT.startswith("".join(got))
        assert not got or hold == "first"
    assert host.body.is_closed


NO_STREAMS = {
    "HTML": (b"<html>", {"Content-Type": "text/html"}, InvalidResponseError),
    "JSON": (b'{"choices": [{"message": {}}]}', JSON, InvalidStreamError),
    "nothing": (b"", {}, InvalidResponseError),
    "a part of something": ([b"<ht", httpx.ReadError("reset")], {}, ReadFailedError),
    "2 MiB": (b"x" * 2**21, {"Content-Type": "text/html"}, InvalidResponseError),
}


@pytest.mark.parametrize(("body", "headers", "error"), NO_STREAMS.values(), ids=NO_STREAMS.keys())
async def test_what_comes_in_place_of_a_stream_is_no_answer(
    body: bytes | list[Piece], headers: dict[str, str], error: type[Exception]
) -> None:
    host = Answering(*([body] if isinstance(body, bytes) else body), headers=headers)
    with pytest.raises(error):
        await host.send()
    assert host.body.is_closed


async def test_an_error_as_json_in_place_of_a_stream_is_that_error() -> None:
    response = await Answering(b'{"error": {"code": 429}}', headers=JSON).send()
    assert (response.status_code, response.extensions[FAULT]) == (429, Fault.THROTTLED)


async def test_a_stream_read_as_a_whole_is_checked_to_its_end_first() -> None:
    host = Answering(*EVENTS)
    response = await host.send(buffered=True)
    assert host.body.is_closed
    assert response.content == await response.aread() == WHOLE
    assert [text_of(item.data) async for item in stream_of(response).events()][1] == TEXT[:2]
    with pytest.raises(StreamTruncatedError):
        await Answering(ROLE, HI).send(buffered=True)


async def test_a_body_that_came_with_its_head_is_checked_like_any_other() -> None:
    class Mock(httpx.MockTransport):
        pass

    host = Answering()
    host.handle_async_request = Mock(  # type: ignore[method-assign]
        lambda _: httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=WHOLE)
    ).handle_async_request
    assert await host.raw() == WHOLE
    assert PARSED not in (await host.send()).extensions


async def test_closing_early_closes_upstream_at_once_and_speaks_against_nobody() -> None:
    verdicts: list[Verdict] = []
    host = Answering(ROLE, HI, 5.0, STOP)
    response = POOL.watch(await host.send(), verdicts.append)
    await body_of(response).aclose()
    assert host.body.is_closed
    assert verdicts == [Verdict.OK]
    assert host.clock.pending == 0


async def test_a_cancelled_reader_closes_upstream_at_once() -> None:
    for how in ("raw", "texts"):
        host = Answering(ROLE, HI, 5.0, STOP)
        task = asyncio.ensure_future(getattr(host, how)())
        await host.clock.advance(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert host.body.is_closed
        assert not task.cancelling() - 1
        assert host.clock.pending <= 1  # that of the body


async def test_a_stream_that_is_dropped_unread_gives_back_what_is_held_for_it() -> None:
    verdicts: list[Verdict] = []
    host = Answering(ROLE, HI, STOP)
    response = POOL.watch(await host.send(), verdicts.append)
    del response
    gc.collect()
    await asyncio.sleep(0)
    assert verdicts == [Verdict.VOID]
