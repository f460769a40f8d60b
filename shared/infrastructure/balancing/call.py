"""What the attempts of one call share: what is asked, who was tried, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from shared.infrastructure.balancing.faults import RULES, Fault

if TYPE_CHECKING:
    from shared.infrastructure.balancing.dialects import Dialect

CALL = "call"
"""Request and response extension: the `Call`."""

ATTEMPT = "attempt"
"""Response extension: the `Attempt` that gave it."""

FAULT = "fault"
"""Response extension: the `Fault` that an error status stands for."""

PARSED = "parsed"
"""Response extension: the JSON of an answer that was read whole."""

JSONObject = dict[str, Any]

Hold = Literal["first", "whole"]
"""How much of a stream has to be there before it is handed up: its first content, or all of it."""

_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What is asked, as far as the way of the call depends on it.

    Attributes:
        dialect: The API that is spoken; None if it is none we know.
        model: Model asked for, after aliases; None if the request names none.
        streamed: Whether a stream of events is asked for.
        payload: The body, if it is a JSON object.
        needs: Capabilities a host must have.
        affinity: What calls that belong together have in common: a session, a user.
    """

    dialect: Dialect | None = None
    model: str | None = None
    streamed: bool = False
    payload: JSONObject | None = field(default=None, repr=False)
    needs: frozenset[str] = _NOTHING
    affinity: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What a caller may say about one call beside what is asked.

    Attributes:
        session: Calls that belong together go to the same host, with a strategy that heeds it;
            None (default) is the user, or the like, that the request names.
        fallbacks: Models to try after the one asked for, in place of the pool's own; None
            (default) is the pool's.
        tenant: On whose behalf: what is remembered for one is not told to another.
        cache: Whether an answer may come out of the answer cache; True.
    """

    session: str | None = None
    fallbacks: Sequence[str] | None = None
    tenant: str | None = None
    cache: bool = True


_OPTIONS = CallOptions()


class Outlook(NamedTuple):
    """When some host may take another attempt of a call.

    Attributes:
        seconds: Until then; 0.0 is now, or as soon as there is room.
        is_fresh: Whether that host had no attempt yet, so that nothing speaks for a pause.
    """

    seconds: float
    is_fresh: bool


@dataclass(slots=True, eq=False)
class Attempt:
    """One request sent to one host.

    Attributes:
        host: Its name.
        began: Instant it was sent, on the pool's clock.
        model: Model asked for, by the host's own name of it.
        is_hedge: Whether another attempt of the call was under way.
        first_token_at: Instant of the first content; None until then.
        ended_at: Instant it was over; None until then.
        fault: Why it gave no answer; None while it may, or if it did.
        outcome: What became of it, in a few words.
        usage: Tokens it cost, as the host counted them; None if the host did not say.
        characters: Characters of content that came, for an estimate where `usage` is missing.
        malformed: Events that were skipped since they were no chunks at all.
    """

    host: str
    began: float
    model: str | None = None
    is_hedge: bool = False
    first_token_at: float | None = None
    ended_at: float | None = None
    fault: Fault | None = None
    outcome: str = ""
    usage: JSONObject | None = None
    characters: int = 0
    malformed: int = 0


@dataclass(slots=True, eq=False)
class Call:
    """One call to the pool.

    Attributes:
        facts: What is asked.
        max_attempts: Attempts it may take in all, restarts of its stream included.
        began: Instant it began, on the pool's clock.
        hold: When a stream is handed up.
        options: What the caller said about it.
        deadline: Instant by which its stream must have ended too; None is none.
        attempts: Attempts sent so far, oldest first.
        left: By host that had an attempt, how many more it may have.
        busy: Hosts with an attempt under way.
        answered_by: Attempt whose answer the caller has; None until there is one.
        prepaid: What went wrong before an attempt that is paid for, and is yet to be sent.
        stand_in: The same call as one for a fallback model, once that has answered in its place: a
            restart begins there. None if none has.
    """

    facts: RequestFacts
    max_attempts: int
    began: float = 0.0
    hold: Hold = "first"
    options: CallOptions = _OPTIONS
    deadline: float | None = None
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    left: dict[str, int] = field(default_factory=dict[str, int])
    busy: set[str] = field(default_factory=set[str])
    answered_by: Attempt | None = None
    prepaid: list[Fault] = field(default_factory=list[Fault])
    stand_in: Call | None = None

    @property
    def is_spent(self) -> bool:
        """Whether no attempt is left."""
        return len(self.attempts) >= self.max_attempts

    @property
    def host(self) -> str | None:
        """Host of the latest attempt."""
        return self.attempts[-1].host if self.attempts else None

    def depart(self, host: str, now: float, model: str | None = None) -> Attempt:
        """Take note that an attempt goes to `host`."""
        attempt = Attempt(host, now, model, is_hedge=bool(self.busy))
        self.attempts.append(attempt)
        self.busy.add(host)
        return attempt

    def withdraw(self, attempt: Attempt) -> None:
        """Undo `depart`: nothing was sent."""
        self.attempts.remove(attempt)
        self.busy.discard(attempt.host)

    def end(self, attempt: Attempt, now: float, fault: Fault | None, outcome: str) -> None:
        """Take note of what became of an attempt."""
        attempt.ended_at, attempt.fault, attempt.outcome = now, fault, outcome
        host = attempt.host
        self.busy.discard(host)
        if fault is Fault.OURS:  # says nothing of the host: it may have what it might before
            return
        rest = 0 if fault is None else RULES[fault].same_host
        before = self.left.get(host)
        self.left[host] = rest if before is None else min(before - 1, rest)

    def may_try(self, host: str) -> bool:
        """Say whether `host` may have an attempt, or another one."""
        return host not in self.busy and self.left.get(host, 1) > 0

    def is_fresh(self, host: str) -> bool:
        """Say whether no attempt has told anything of `host` yet."""
        return host not in self.left and host not in self.busy


def call_of(extensions: Mapping[str, Any]) -> Call:
    """Return the call that a request, or a response, belongs to."""
    return cast("Call", extensions[CALL])
