"""How much each client may ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from services.llm.settings import ClientKey, LLMProcessSettings
from shared.infrastructure.balancing import HostLimits
from shared.infrastructure.balancing.accounting import (
    TokenLimits,
    TokenReservation,
    estimate_tokens,
    usage_of,
)
from shared.infrastructure.balancing.call import Call, RequestFacts
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.resilience import MONOTONIC, Clock, TokenBucket
from shared.infrastructure.server import HTTPError, Request, retry_after
from shared.infrastructure.server.keys import tenant_of

# Under way, or cut off by us: for him who went, or who had no more time.
_HIS_OWN = frozenset({None, Fault.OURS})


class ClientLimits(NamedTuple):
    """The limits on one client.

    Attributes:
        requests: Limits the requests; None does not.
        tokens: Limits the tokens, read and written; None does not.
    """

    requests: TokenBucket | None = None
    tokens: TokenLimits | None = None


_NO_LIMITS = ClientLimits()


class Limits:
    """The limits on all clients.

    Args:
        settings: Say who may how much.
        clock: Source of monotonic time.
    """

    def __init__(self, settings: LLMProcessSettings, *, clock: Clock = MONOTONIC) -> None:
        rate = settings.requests_per_second
        is_given = "requests_per_second" in settings.model_fields_set
        self._now = clock.now
        self._all = TokenBucket(rate, settings.burst_size, clock=clock) if is_given else None
        self._by_tenant = {
            tenant_of(key.key): _limits_of(key, settings, clock) for key in settings.api_keys
        }

    def admit(self, request: Request, facts: RequestFacts) -> TokenReservation | None:
        """Take what a request will probably cost, or refuse it; None: tokens are not counted.

        What is refused by one limit takes nothing from the others.

        Raises:
            HTTPError: It is too much now (429).
        """
        requests, tokens = self._by_tenant.get(request.tenant, _NO_LIMITS)
        now = self._now()
        buckets = {"requests a second": requests, "requests a second of all": self._all}
        delays = {
            what: bucket.delay(1.0, now) for what, bucket in buckets.items() if bucket is not None
        }
        estimate = None
        if tokens is not None and facts.dialect is not None and facts.payload is not None:
            estimate = estimate_tokens(facts.dialect, facts.payload)
            delays["tokens a minute"] = tokens.delay(estimate)
        if delays:
            what = max(delays, key=delays.__getitem__)
            if delays[what] > 0.0:
                raise _too_much(what, delays[what])
        for bucket in buckets.values():
            if bucket is not None:
                bucket.charge(1.0, now)
        return None if tokens is None or estimate is None else tokens.reserve(estimate)


def settle(reservation: TokenReservation, call: Call) -> None:
    """Charge a client for what his request cost: his own answer, and no host's failures.

    An answer that he did not wait for is his own, too: what was read for it and written so far.
    """
    attempt = call.answered_by or next(
        (each for each in reversed(call.attempts) if each.fault in _HIS_OWN), None
    )
    if attempt is None:
        reservation.cancel()
        return
    usage = usage_of(attempt, call)
    reservation.settle(usage.input, usage.output)


def names_of(keys: Sequence[ClientKey]) -> Mapping[str, str]:
    """Return what the metrics call the client of each key."""
    return {tenant_of(key.key): key.name or "default" for key in keys}


def _limits_of(key: ClientKey, settings: LLMProcessSettings, clock: Clock) -> ClientLimits:
    rate = key.requests_per_second or settings.key_requests_per_second
    burst = key.burst_size or settings.key_burst_size
    tokens = key.tokens_per_minute or settings.key_tokens_per_minute
    return ClientLimits(
        TokenBucket(rate, burst, clock=clock) if rate else None,
        TokenLimits(HostLimits(tokens_per_minute=tokens), clock=clock) if tokens else None,
    )


def _too_much(what: str, delay: float) -> HTTPError:
    return HTTPError(
        429,
        f"the limit on {what} is reached: come back later",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers=retry_after(delay),
    )
