"""The scenarios of failover: what hosts do, and the least that has to come of it.

S01 to S16 restate the faults of the public FailoverBench catalogue (MIT) for several hosts that
serve the same model; the others are ours.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from shared.infrastructure.balancing.errors import ContentFilterError, ContextWindowError
from tests.wall.llm_faults import (
    SERVER_ERROR,
    VLLM_ERROR,
    big_token,
    breaks_off,
    by_form,
    error_after,
    extra_event,
    no_done,
    no_prefill,
    only_events,
    other_body,
    part_of_the_body,
    pings,
    reset,
    silence,
    slow_tokens,
    status,
)
from tests.wall.llm_hosts import Fault, Turn, Where, erroneous, in_band, well

DONE = b"data: [DONE]\n\n"
OVERLOADED = erroneous("overloaded", "overloaded_error")
THROTTLED = erroneous("rate_limit_exceeded", "rate_limit_error")
TOO_LONG = erroneous("context_length_exceeded")
FORBIDDEN = erroneous("content_filter")


class Mark(enum.IntEnum):
    """What came of a call, the worst first.

    FAIL: late, unclean, or a text that no attempt gave. SAFE: a typed error, and what was delivered
    is the beginning of one attempt. PARTIAL: the whole text of one attempt, but not as it should
    have come. PASS: all is well.
    """

    FAIL = 0
    SAFE = 1
    PARTIAL = 2
    PASS = 3


@dataclass(frozen=True)
class Scenario:
    """What hosts do to the attempts of a call.

    Attributes:
        name: Its number in the catalogue, and what it is.
        fault: What is done.
        where: To which attempts.
        others: What is done to the others.
        plain: The least that has to come of an answer that is not streamed.
        live: The same of a stream that is delivered as it comes.
        restarted: The same where it may begin anew.
        relayed: The same where another library reads the bytes, as they come from the host.
        raises: The error that has to come of it, at once.
        never: What no error may speak of.
        at_primary: The most attempts of one call at the host with the fault.
        gap: Seconds between two attempts of one call at one host, at least.
        limits: Deadline, in times the limit on the first token.
        crowd: Calls at the same time.
    """

    name: str
    fault: Fault
    where: Where = "primary"
    others: Fault = well
    plain: Mark = Mark.PASS
    live: Mark = Mark.PASS
    restarted: Mark = Mark.PASS
    relayed: Mark = Mark.PASS
    raises: type[Exception] | None = None
    never: str | None = None
    at_primary: int = 2
    gap: float = 0.0
    limits: float = 15.0
    crowd: int = 50

    def breach(self, turns: Sequence[Turn], primary: int | None) -> str | None:
        """Say what is wrong about the attempts of a call, if anything is."""
        if self.raises and len(turns) > 1:
            return f"{len(turns)} attempts at what nobody can answer"
        if self.where == "primary" and sum(t.host == primary for t in turns) > self.at_primary:
            return "too many attempts at the host with the fault"
        for host in {turn.host for turn in turns}:
            times = [turn.at for turn in turns if turn.host == host]
            if any(later - sooner < self.gap for sooner, later in pairwise(times)):
                return "asked again too early"
        return None


def at_form(name: str, stream: Fault, plain: Fault, **more: object) -> Scenario:
    return Scenario(name, by_form(stream=stream, plain=plain), **more)  # type: ignore[arg-type]


SCENARIOS = [
    Scenario(
        "S01 one 429 that says when",
        status(429, THROTTLED, retry_after_ms="300"),
        "first",
        gap=0.3,
    ),
    Scenario("S02 nothing but 429", status(429, THROTTLED), at_primary=4),
    Scenario("S03 one 500", status(500), "first"),
    Scenario("S04 nothing but 503", status(503)),
    Scenario("S05 one reset", reset, "first"),
    Scenario("S06 silence", silence, at_primary=1),
    at_form("S07 head, then silence", breaks_off("stall", 0), silence, at_primary=1),
    at_form(
        "S08 stream cut, short body",
        breaks_off("cut"),
        part_of_the_body(0.6, "close"),
        live=Mark.SAFE,
    ),
    at_form(
        "S08 stream reset, empty body",
        breaks_off("reset"),
        part_of_the_body(0.0, "close"),
        live=Mark.SAFE,
    ),
    at_form(
        "S09 stall in mid-stream, or after the head",
        breaks_off("stall"),
        part_of_the_body(0.0, "stall"),
        live=Mark.SAFE,
        at_primary=1,
    ),
    at_form(
        "S10 an event or a body that is no JSON",
        extra_event(b"data: upstream warning\n\n", b"event: x\ndata:\n\n", at=5),
        other_body(b"upstream warning"),
        relayed=Mark.SAFE,
    ),
    at_form(
        # It may have been a token: to go on without it would be to leave out a part of the answer.
        "S10 an event or a body that is half of one",
        extra_event(b'data: {"choices": [{"delta": {"content": "wro\n\n', at=5),
        other_body(b'{"choices": [{"index": 0, "mess'),
        live=Mark.SAFE,
    ),
    at_form("S11 no [DONE]", no_done, well, where="all"),
    Scenario("S12 context too long", status(400, TOO_LONG), "all", raises=ContextWindowError),
    Scenario("S13 policy", status(400, FORBIDDEN), "all", raises=ContentFilterError),
    at_form(
        "S14 stream cut, and nobody goes on with it",
        breaks_off("cut"),
        part_of_the_body(0.6, "close"),
        others=no_prefill,
        live=Mark.SAFE,
        never="invalid_prefill",
    ),
    Scenario("S16 whose model and usage", status(503, OVERLOADED)),
    at_form(
        "S17 clean end, but no end of the answer",
        breaks_off("whole"),
        other_body(b""),
        live=Mark.SAFE,
    ),
    at_form(
        "S17 end of file, but no end of the answer",
        breaks_off("fin"),
        other_body(b" \n "),
        live=Mark.SAFE,
    ),
    at_form(
        "S17 a role and [DONE], or no choice",
        only_events(DONE),
        other_body(b'{"object": "chat.completion", "choices": []}'),
    ),
    at_form(
        "S18 an error as the only event, or as the body",
        only_events(in_band(VLLM_ERROR), DONE),
        other_body(b'{"object": "error", "message": "no", "type": "InternalServerError"}'),
    ),
    at_form(
        "S18 an error inside 200 that nobody can better",
        only_events(in_band(TOO_LONG), DONE),
        status(200, TOO_LONG),
        where="all",
        raises=ContextWindowError,
    ),
    at_form(
        "S19 an error as the first event",
        only_events(in_band(SERVER_ERROR), DONE),
        status(200, SERVER_ERROR),
    ),
    at_form(
        "S19 an error in mid-stream",
        error_after(9, SERVER_ERROR),
        status(200, OVERLOADED),
        live=Mark.SAFE,
    ),
    Scenario("S20 nothing but pings", pings, at_primary=1),
    Scenario(
        "S21 one token after another, slowly",
        slow_tokens,
        plain=Mark.SAFE,
        live=Mark.SAFE,
        restarted=Mark.SAFE,
        at_primary=1,
        limits=3.0,
    ),
    Scenario("S22 HTML", other_body(b"<html>Sorry</html>", content_type="text/html")),
    Scenario("S23 not gzip at all", other_body(b"\x01garbage" * 20, content_encoding="gzip")),
    Scenario("S25 an event of 8 MiB", big_token(8 * 2**20), "all", crowd=0, limits=40.0),
    Scenario("S25 events of 128 KiB", big_token(2**17), "all", limits=40.0),
    Scenario(
        "S26 429 for an hour",
        status(429, THROTTLED, retry_after="3600"),
        at_primary=1,
    ),
]
