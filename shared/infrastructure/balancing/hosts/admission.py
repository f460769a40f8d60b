"""An admission: what one attempt holds of a host, from the pick until its answer is over."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import httpx

from shared.infrastructure.balancing.accounting import Estimate, TokenReservation, TokenUsage
from shared.infrastructure.balancing.call import ATTEMPT, CALL, Call
from shared.infrastructure.balancing.classify import fault_of
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.balancing.semantics import POOL
from shared.infrastructure.resilience import Verdict
from shared.infrastructure.resilience.layer import summary

if TYPE_CHECKING:
    from shared.infrastructure.balancing.hosts.host import Host
    from shared.infrastructure.balancing.hosts.lane import Lane

ADMISSION = "admission"
"""Request extension: the `Admission` of the attempt."""

_CHARACTERS_PER_TOKEN = 4
# What a missing model is called, where the error does not repeat its name.
_NO_SUCH_MODEL = ("model_not_found", "deploymentnotfound")
# What is known of an answer that broke off after its head: only what its end says.
_FAULTS = {
    Verdict.OK: None,
    Verdict.FAILED: Fault.BROKEN,
    Verdict.BUSY: Fault.THROTTLED,
    Verdict.VOID: Fault.OURS,
}
_OUTCOMES = {
    Verdict.OK: "answered",
    Verdict.FAILED: "broke off",
    Verdict.BUSY: "broke off",
    Verdict.VOID: "abandoned",
}


class Admission:
    """A place among the calls in flight at a host, and its share of the token limits.

    It ends in exactly one way: `withdraw`, if nothing was sent; `fail`; or `answer`, and then
    `over` once the body is. Whatever comes after that changes nothing.

    Attributes:
        host: Where the attempt goes.
        lane: Its model there.
        call: What it is an attempt of.
        attempt: What is known of it.
        is_sent: Whether anything went to the wire.
        is_model_named: Whether it failed by an error that names its model, or says it is missing.
        is_direct: Whether this very host was wanted, for something other hosts cannot answer.
    """

    __slots__ = (
        *("_estimate", "_holds", "_ignores_circuit", "_reservation"),
        *("attempt", "call", "host", "is_direct", "is_model_named", "is_sent", "lane"),
    )

    def __init__(
        self,
        host: Host,
        lane: Lane,
        call: Call,
        now: float,
        *,
        ignores_circuit: bool = False,
        is_direct: bool = False,
    ) -> None:
        self.host = host
        self.lane = lane
        self.call = call
        self.attempt = call.depart(host.name, now, host.config.own_name(call.facts.model))
        self.is_direct = is_direct
        self.is_sent = self.is_model_named = False
        self._holds = True
        self._ignores_circuit = ignores_circuit
        self._reservation: TokenReservation | None = None
        self._estimate: Estimate | None = None

    def reserve(self, reservation: TokenReservation, estimate: Estimate) -> None:
        """Hold a share of the token limits, too."""
        self._reservation, self._estimate = reservation, estimate

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request that is addressed to the host through the stack of its lane."""
        lane = self.lane
        if self._ignores_circuit:
            response = await lane.send_anyway(request)
            if lane.breaker is not None and POOL.judge(response) is Verdict.OK:
                lane.breaker.invite_probe()
                self.host.keeper.changed()
            return response
        return await lane.send(request)

    def depart(self) -> None:
        """Take note that the request goes to the wire."""
        self.is_sent = True
        self.attempt.began = self.host.now()

    def withdraw(self) -> None:
        """Give everything back, for nothing was sent."""
        if self._holds:
            self.call.withdraw(self.attempt)
            if self._reservation is not None:
                self._reservation.cancel()
            self._leave()

    def fail(self, error: BaseException) -> None:
        """Take note of an error in place of an answer."""
        fault = fault_of(error) or Fault.OURS
        if fault is Fault.OURS and not self.is_sent:
            self.host.note_unsent(error)
            self.withdraw()
        elif self._holds:
            retry_after = POOL.retry_after(error) if isinstance(error, Exception) else None
            self._heed_names(fault, str(error))
            self._end(fault, summary(error), retry_after)
            is_unsent = not self.is_sent or bool(getattr(error, "unsent", False))
            self._settle_tokens(nothing_done=is_unsent)
            self._leave()

    def answer(self, response: httpx.Response) -> httpx.Response:
        """Take note of the head of an answer, and watch for its end."""
        attempt = self.attempt
        response.extensions = {**response.extensions, CALL: self.call, ATTEMPT: attempt}
        self.host.observe_headers(response.headers)
        fault = fault_of(response)
        if fault is None:
            self.host.note_answer(self.lane, attempt)
        else:
            self._heed_names(fault, _text(response))
            self._end(fault, str(response.status_code), POOL.retry_after(response))
        return POOL.watch(response, self.over)

    def over(self, verdict: Verdict) -> None:
        """Take note of the end of an answer."""
        if not self._holds:
            return
        attempt = self.attempt
        is_error = attempt.ended_at is not None
        if not is_error:
            fault = attempt.fault or _FAULTS[verdict]
            outcome = "answered" if fault is None else attempt.outcome or _OUTCOMES[verdict]
            self._end(fault, outcome, None)
        self._settle_tokens(nothing_done=is_error)
        self._leave()

    def _heed_names(self, fault: Fault, said: str) -> None:
        """Tell a model that is missing from a path that is."""
        if fault is Fault.NO_MODEL:
            names = {*_NO_SUCH_MODEL, self.attempt.model, self.call.facts.model} - {None, ""}
            words = "|".join(re.escape(str(name)) for name in names)
            found = re.search(rf"(?<!\w)(?:{words})(?!\w)", said, re.IGNORECASE)
            self.is_model_named = found is not None and self.call.facts.model is not None

    def _end(self, fault: Fault | None, outcome: str, retry_after: float | None) -> None:
        now = self.host.now()
        self.call.end(self.attempt, now, fault, outcome)
        self.host.note_end(self, now, retry_after)

    def _settle_tokens(self, *, nothing_done: bool) -> None:
        reservation, estimate, attempt = self._reservation, self._estimate, self.attempt
        if reservation is None or estimate is None:
            return
        usage = TokenUsage.of(attempt.usage)
        if usage is not None:
            reservation.settle(usage.input, usage.output)
            if attempt.fault is None:
                self.host.keeper.learn(self.call.facts.model, estimate, usage)
        elif nothing_done:
            reservation.cancel()
        else:
            written = math.ceil(attempt.characters / _CHARACTERS_PER_TOKEN)
            # What was never told may still be written, and be charged for.
            reservation.settle(estimate.input, written or estimate.output)

    def _leave(self) -> None:
        self._holds = False
        self.host.leave()


def _text(response: httpx.Response) -> str:
    try:
        return response.text
    except httpx.ResponseNotRead:
        return ""
