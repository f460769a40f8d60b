"""How an answer came about: which hosts were asked, how long it took, what it cost."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from pydantic import BaseModel

from shared.models.usage import Usage


class AttemptInfo(BaseModel, frozen=True):
    """One request to one host.

    Attributes:
        host: Its name.
        model: Model asked for, by the host's own name of it.
        outcome: What became of it, in a few words.
        fault: Why it gave no answer; None if it did, or if nobody waited for it any more.
        began: Seconds from the beginning of the call.
        duration: Seconds until it was over; None while it is not.
        time_to_first_token: Seconds until its first content; None if there was none.
        is_hedge: Whether another attempt was under way.
        usage: Tokens it cost, estimated where the host did not say; None if there were none.
        usage_estimated: Whether they are an estimate.
        cost: Price of them; None if it is unknown.
    """

    host: str
    model: str | None = None
    outcome: str = ""
    fault: str | None = None
    began: float = 0.0
    duration: float | None = None
    time_to_first_token: float | None = None
    is_hedge: bool = False
    usage: Usage | None = None
    usage_estimated: bool = False
    cost: Decimal | None = None


class RouteInfo(BaseModel, frozen=True):
    """The way of a call; it stands beside the answer, and is no part of its JSON.

    Attributes:
        host: Host that answered.
        served_model: Model that answered, as its host names it.
        attempts: Requests sent, oldest first.
        time_to_first_token: Seconds from the beginning of the call to the first content.
        duration: Seconds from the beginning of the call to the end of the answer; None while it
            is still coming.
        cost: Price of all attempts together; None if that of one is unknown.
        cost_estimated: Whether tokens were estimated for it, since a host did not count them.
        hedged: Whether two attempts were under way at once.
        recovered: Whether the answer broke off, and was begun anew or continued.
        cached: Whether it came out of the answer cache.
        fallback_from: Model that was asked for, if another one answered in its place.
        malformed_events: Events that were skipped since they were no chunks at all.
    """

    host: str | None = None
    served_model: str | None = None
    attempts: tuple[AttemptInfo, ...] = ()
    time_to_first_token: float | None = None
    duration: float | None = None
    cost: Decimal | None = None
    cost_estimated: bool = False
    hedged: bool = False
    recovered: bool = False
    cached: bool = False
    fallback_from: str | None = None
    malformed_events: int = 0


Route = RouteInfo | Callable[[], RouteInfo]
"""The way of a call, or what tells it when somebody asks."""
