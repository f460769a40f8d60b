"""What one call cost, attempt by attempt: also those whose answer nobody got."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from typing import Any

from shared.infrastructure.balancing.accounting.estimate import TokenEstimator
from shared.infrastructure.balancing.accounting.prices import PriceTable
from shared.infrastructure.balancing.accounting.usage import TokenUsage
from shared.infrastructure.balancing.call import Attempt, Call
from shared.infrastructure.balancing.faults import Fault

_ESTIMATOR = TokenEstimator()
_CHARACTERS_PER_TOKEN = 4
# Cut off by us, the host may have worked all the same; any other failure without a word is free.
_CUT_OFF = frozenset({Fault.SILENT, Fault.OURS})


@dataclass(frozen=True, slots=True)
class BillItem:
    """What one attempt cost.

    Attributes:
        host: Which was asked.
        model: By the host's own name.
        usage: Tokens; `usage.estimated` says whose count it is.
        cost: None if the price is not known.
        is_hedge: Whether another attempt of the call was under way when it was sent.
        is_waste: Whether the caller has another attempt's answer, or none.
    """

    host: str
    model: str | None
    usage: TokenUsage
    cost: Decimal | None
    is_hedge: bool
    is_waste: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the item as plain JSON types, money as text."""
        return {
            "host": self.host,
            "model": self.model,
            "input": self.usage.input,
            "output": self.usage.output,
            "estimated": self.usage.estimated,
            "cost": None if self.cost is None else str(self.cost),
            "is_hedge": self.is_hedge,
            "is_waste": self.is_waste,
        }


@dataclass(frozen=True, slots=True)
class Bill:
    """What one call cost.

    Attributes:
        items: One for each attempt, oldest first.
    """

    items: tuple[BillItem, ...]

    @property
    def total(self) -> Decimal | None:
        """What all attempts cost; None if the price of one is not known."""
        return _sum(item.cost for item in self.items)

    @property
    def known(self) -> Decimal:
        """What those attempts cost whose price is known."""
        return sum((item.cost for item in self.items if item.cost is not None), Decimal(0))

    @property
    def waste(self) -> Decimal | None:
        """What was paid for answers that the caller did not get: hedges that lost, failures."""
        return _sum(item.cost for item in self.items if item.is_waste)

    @property
    def estimated(self) -> bool:
        """Whether a part of it is our guess, as a host did not say."""
        return any(item.usage.estimated for item in self.items)


def bill_of(call: Call, prices: PriceTable | None, estimator: TokenEstimator = _ESTIMATOR) -> Bill:
    """Return what a call cost so far; call it when its attempts are over."""
    return Bill(tuple(_item(attempt, call, prices, estimator) for attempt in call.attempts))


def usage_of(attempt: Attempt, call: Call, estimator: TokenEstimator = _ESTIMATOR) -> TokenUsage:
    """Return the tokens of one attempt: as the host counted them, or else our guess.

    A failure without any content is taken to be free, unless we cut it off ourselves.
    """
    counted = TokenUsage.of(attempt.usage)
    if counted is not None:
        return counted
    is_free = attempt.fault is not None and attempt.fault not in _CUT_OFF
    if is_free and not attempt.characters:
        return TokenUsage()
    facts = call.facts
    read = 0
    if facts.dialect is not None and facts.payload is not None:
        read = estimator.estimate(facts.dialect, facts.payload, facts.model).input
    written = math.ceil(attempt.characters / _CHARACTERS_PER_TOKEN)
    return TokenUsage(read, written, estimated=True)


def tokens_of(call: Call, estimator: TokenEstimator = _ESTIMATOR) -> TokenUsage:
    """Return the tokens of all attempts of a call so far, be they over or not, cut off or lost.

    It is nothing only if nothing went to a host, or if all failed without a word of content.
    """
    usages = [usage_of(attempt, call, estimator) for attempt in call.attempts]
    return TokenUsage(
        sum(usage.input for usage in usages),
        sum(usage.output for usage in usages),
        sum(usage.cached_read for usage in usages),
        sum(usage.cache_write for usage in usages),
        sum(usage.reasoning for usage in usages),
        any(usage.estimated for usage in usages),
    )


def cost_at(
    host: str, models: Iterable[str | None], usage: TokenUsage, prices: PriceTable
) -> Decimal | None:
    """Return what so many tokens cost at a host, by the first name of the model with a price."""
    for model in models:
        if model is not None:
            cost = prices.cost(f"{host}/{model}", usage)
            if cost is not None:
                return cost
    return None


def _item(
    attempt: Attempt, call: Call, prices: PriceTable | None, estimator: TokenEstimator
) -> BillItem:
    usage = usage_of(attempt, call, estimator)
    model = attempt.model or call.facts.model
    return BillItem(
        attempt.host,
        model,
        usage,
        _cost(attempt, call, usage, prices),
        attempt.is_hedge,
        attempt is not call.answered_by,
    )


def _cost(
    attempt: Attempt, call: Call, usage: TokenUsage, prices: PriceTable | None
) -> Decimal | None:
    if usage == _NOTHING and attempt.usage is None:  # not answered, so not even a request
        return Decimal(0)
    if prices is None:
        return None
    return cost_at(attempt.host, (attempt.model, call.facts.model), usage, prices)


def _sum(costs: Iterable[Decimal | None]) -> Decimal | None:
    zero: Decimal | None = Decimal(0)
    return reduce(_plus, costs, zero)


def _plus(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return None if one is None or other is None else one + other


_NOTHING = TokenUsage()
