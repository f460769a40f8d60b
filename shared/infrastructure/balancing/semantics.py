"""How the layers of a pool read what became of a call, or of one exchange with a host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import httpx

from shared.infrastructure.balancing.call import (
    ATTEMPT,
    CALL,
    FAULT,
    Attempt,
    Call,
    RequestFacts,
    call_of,
)
from shared.infrastructure.balancing.classify import fault_of
from shared.infrastructure.balancing.errors import UpstreamStatusError
from shared.infrastructure.balancing.faults import RULES, Fault
from shared.infrastructure.balancing.patience import wait_asked
from shared.infrastructure.http import HTTPSemantics
from shared.infrastructure.http.semantics import HTTP, HTTPRequest, HTTPResponse, is_replayable
from shared.infrastructure.resilience import CallRefusedError, Semantics, Verdict

_OK = Verdict.OK

# Fields of a request that may have effects beyond an answer.
_EFFECTS = ("tools", "functions", "background", "store")
_RESPONSES = "openai.responses"
_READING = frozenset({"GET", "HEAD"})
# Ends of paths at which hosts compute answers in no dialect that we read.
_COMPUTED = frozenset(
    {
        *("transcriptions", "translations", "speech", "moderations", "rerank", "score"),
        *("generations", "edits", "variations", "tokenize", "detokenize"),
    }
)
# Errors that do not say that nothing was done.
_UNCLEAR = frozenset({Fault.BROKEN, Fault.OVERLOADED})


class PoolSemantics(HTTPSemantics):
    """Semantics of a call to a pool of equal hosts that compute answers.

    What an outcome says of its host is the rule of its fault. To compute an answer twice harms
    nobody: such a request may be repeated, POST or not, if its body can be sent again. One that may
    have other effects may only if it had none: it was not sent, or turned away.
    """

    def judge(self, outcome: HTTPResponse | BaseException) -> Verdict:
        if isinstance(outcome, BaseException):
            fault = fault_of(outcome)
        else:
            answer = cast("httpx.Response", outcome)
            if answer.status_code < 400 and FAULT not in answer.extensions:
                return _OK
            fault = fault_of(answer)
        return _OK if fault is None else RULES[fault].verdict

    def retry_after(self, outcome: HTTPResponse | BaseException) -> float | None:
        if isinstance(outcome, BaseException):
            return super().retry_after(outcome)
        answer = cast("httpx.Response", outcome)
        return wait_asked(answer, fault_of(answer))

    def repeatable(self, request: HTTPRequest, outcome: HTTPResponse | BaseException) -> bool:
        # Layers above the balancing see httpx requests that carry their call.
        return not call_of(request.extensions).is_spent and may_repeat(request, outcome)

    def describe(self, request: HTTPRequest, outcome: HTTPResponse | BaseException) -> str:
        host = host_of(outcome)
        if host is None and (call := cast("Call | None", request.extensions.get(CALL))):
            host = call.host
        words = super().describe(request, outcome)
        return f"{host}: {words}" if host else words


class WireSemantics(HTTPSemantics):
    """Semantics of one exchange with a host: what was not processed is sent again at once.

    So is what met a connection that had been closed meanwhile, unless it may have effects beyond an
    answer: the host may have read it just before.
    """

    def repeatable(self, request: HTTPRequest, outcome: HTTPResponse | BaseException) -> bool:
        call: Call | None = request.extensions.get(CALL)
        if call is None or not _only_answers(request, call.facts):
            return super().repeatable(request, outcome)
        return is_replayable(request)


POOL: Semantics[httpx.Request, httpx.Response] = PoolSemantics()
"""The semantics of a pool of LLM hosts."""


def host_of(outcome: object) -> str | None:
    """Return the host that an outcome is from, if it says: attempts of a race each do."""
    if isinstance(outcome, BaseException):
        return getattr(outcome, "host", None)
    extensions: Mapping[str, Any] = getattr(outcome, "extensions", {})
    attempt: Attempt | None = extensions.get(ATTEMPT)
    return attempt.host if attempt else None


def may_repeat(request: HTTPRequest, outcome: HTTPResponse | BaseException) -> bool:
    """Say whether a request may be sent again after an outcome, be it for another model."""
    facts = call_of(request.extensions).facts
    if not is_replayable(request):
        return False
    if isinstance(outcome, CallRefusedError) or _only_answers(request, facts):
        return True
    if isinstance(outcome, UpstreamStatusError) or not isinstance(outcome, BaseException):
        # What stores its answers does not store errors; of the rest we do not know.
        fault = fault_of(cast("httpx.Response | UpstreamStatusError", outcome))
        if facts.dialect is not None or fault not in _UNCLEAR:
            return True
    return HTTP.repeatable(request, outcome)


def is_hedgeable(request: httpx.Request) -> bool:
    """Say whether a request may be sent to two hosts at once.

    One that has tools may have effects at the host; one whose answer is stored, or is computed in
    the background, has; so may one of an API that we do not know. A body that is not at hand may
    have one reader at a time only.
    """
    facts = call_of(request.extensions).facts
    if not isinstance(request.stream, httpx.ByteStream) or not _only_answers(request, facts):
        return False
    payload = facts.payload
    return payload is None or not any(payload.get(name) for name in _EFFECTS)


def _only_answers(request: HTTPRequest, facts: RequestFacts) -> bool:
    """Say whether all that comes of a request is an answer: twice the same harms nobody."""
    if request.method in _READING:
        return True
    if facts.dialect is None:
        path = cast("httpx.Request", request).url.path
        return path.rpartition("/")[2] in _COMPUTED
    if facts.dialect.name != _RESPONSES:
        return True
    # The Responses API stores unless it is told not to.
    payload = facts.payload or {}
    return payload.get("store") is False and not payload.get("background")
