"""`RouteInfo`: what the attempts of a call say about how its answer came about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

import httpx

from shared.infrastructure.balancing.accounting.answer_cache_layer import CACHED
from shared.infrastructure.balancing.accounting.bill import BillItem, bill_of
from shared.infrastructure.balancing.accounting.prices import PriceTable
from shared.infrastructure.balancing.accounting.usage import TokenUsage
from shared.infrastructure.balancing.call import (
    ATTEMPT,
    Attempt,
    Call,
    JSONObject,
    RequestFacts,
    call_of,
)
from shared.infrastructure.balancing.dialects import Dialect
from shared.infrastructure.balancing.fallback import FALLBACK_FROM
from shared.models import (
    AttemptInfo,
    CompletionTokensDetails,
    PromptTokensDetails,
    RouteInfo,
    Usage,
)

_FREE = Decimal(0)
_NO_TOKENS = TokenUsage()


def route_info(
    call: Call,
    attempt: Attempt | None,
    prices: PriceTable | None = None,
    *,
    served_model: str | None = None,
    fallback_from: str | None = None,
    recovered: bool = False,
    cached: bool = False,
    first_token_at: float | None = None,
) -> RouteInfo:
    """Tell how the answer of a call came about.

    Args:
        call: The call.
        attempt: Which of its attempts gave the answer; None if none did.
        prices: What tokens cost; None leaves it unknown.
        served_model: Model that answered, as its host names it.
        fallback_from: Model that was asked for, if another one answered in its place.
        recovered: Whether the answer broke off, and was begun anew or continued.
        cached: Whether it came out of the answer cache.
        first_token_at: Instant of the first content that the caller saw; None is that of `attempt`.
    """
    bill = bill_of(call, prices)
    began = call.began
    first = attempt.first_token_at if attempt and first_token_at is None else first_token_at
    ended = attempt.ended_at if attempt else None
    return RouteInfo(
        host=attempt.host if attempt else None,
        served_model=served_model or (attempt.model if attempt else None),
        attempts=tuple(map(partial(_attempt_info, call), call.attempts, bill.items)),
        time_to_first_token=None if first is None else first - began,
        duration=None if ended is None else ended - began,
        cost=bill.total,
        cost_estimated=bill.estimated,
        hedged=any(one.is_hedge for one in call.attempts),
        recovered=recovered,
        cached=cached,
        fallback_from=fallback_from,
        malformed_events=sum(one.malformed for one in call.attempts),
    )


def route_of_answer(
    response: httpx.Response, prices: PriceTable | None, served_model: Any
) -> Callable[[], RouteInfo]:
    """Return what tells how an answer came about; most callers never ask.

    Args:
        response: The answer, read.
        prices: What tokens cost; None leaves it unknown.
        served_model: Model that answered, as its host names it.
    """
    served = call_of(response.extensions)
    facts, attempts = served.facts, served.attempts
    # An answer that is kept must not keep the question: it may be long.
    is_counted = None not in [attempt.usage for attempt in attempts]
    payload = None if is_counted else facts.payload
    return partial(
        _past_route,
        (facts.dialect, facts.model, facts.streamed, payload),
        served.began,
        served.answered_by,
        attempts,
        response.extensions.get(ATTEMPT),
        prices,
        served_model=served_model if isinstance(served_model, str) else None,
        fallback_from=response.extensions.get(FALLBACK_FROM),
        cached=CACHED in response.extensions,
    )


def _past_route(
    asked: tuple[Dialect | None, str | None, bool, JSONObject | None],
    began: float,
    answered_by: Attempt | None,
    attempts: list[Attempt],
    *about: Any,
    **further: Any,
) -> RouteInfo:
    past = Call(RequestFacts(*asked), 0, began, attempts=attempts, answered_by=answered_by)
    return route_info(past, *about, **further)


def joined_route(routes: Sequence[RouteInfo]) -> RouteInfo:
    """Return the route of an answer that took several calls, the last of which gave it."""
    *earlier, last = routes
    if not earlier:
        return last
    return last.model_copy(
        update={
            "attempts": tuple(attempt for route in routes for attempt in route.attempts),
            "cost": _sum([route.cost for route in routes]),
            "cost_estimated": any(route.cost_estimated for route in routes),
            "hedged": any(route.hedged for route in routes),
            "recovered": any(route.recovered for route in routes),
        }
    )


def as_usage(tokens: TokenUsage) -> Usage:
    """Return tokens in the terms of the OpenAI API."""
    return Usage(
        prompt_tokens=tokens.input,
        completion_tokens=tokens.output,
        total_tokens=tokens.input + tokens.output,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=tokens.cached_read, cache_write_tokens=tokens.cache_write
        ),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=tokens.reasoning),
    )


def _attempt_info(call: Call, attempt: Attempt, item: BillItem) -> AttemptInfo:
    first, ended, tokens = attempt.first_token_at, attempt.ended_at, item.usage
    cost_nothing = tokens == _NO_TOKENS and attempt.usage is None
    return AttemptInfo(
        host=attempt.host,
        model=attempt.model,
        outcome=attempt.outcome,
        fault=None if attempt.fault is None else attempt.fault.value,
        began=attempt.began - call.began,
        duration=None if ended is None else ended - attempt.began,
        time_to_first_token=None if first is None else first - attempt.began,
        is_hedge=attempt.is_hedge,
        usage=None if cost_nothing else as_usage(tokens),
        usage_estimated=tokens.estimated,
        cost=item.cost,
    )


def _sum(costs: Sequence[Decimal | None]) -> Decimal | None:
    known = [cost for cost in costs if cost is not None]
    return sum(known, _FREE) if len(known) == len(costs) else None
