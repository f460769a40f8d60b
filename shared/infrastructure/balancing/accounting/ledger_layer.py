"""The layer that keeps calls within their budgets, and books what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal

import httpx

from shared.infrastructure.balancing.accounting.bill import bill_of, cost_at
from shared.infrastructure.balancing.accounting.estimate import TokenEstimator
from shared.infrastructure.balancing.accounting.ledger import BudgetReservation, Ledger
from shared.infrastructure.balancing.accounting.prices import PriceTable
from shared.infrastructure.balancing.accounting.usage import TokenUsage
from shared.infrastructure.balancing.call import Call, call_of
from shared.infrastructure.resilience import Verdict
from shared.infrastructure.resilience.layer import Inner

ServedBy = Callable[[str], Iterable[tuple[str, str]]]
_Inner = Inner[httpx.Request, httpx.Response]


class LedgerLayer:
    """Reserve what a call will probably cost, and book what all its attempts did cost.

    Position: below the answer cache, for a kept answer costs nothing; above fallbacks and failover,
    so that every attempt is on one bill. Whoever is cancelled, or fails, pays for what was used.

    Args:
        ledger: Where it is booked, under the tenant of the call; "" if it has none.
        prices: What tokens cost.
        estimator: Says what a call will probably cost; that of the hosts knows most.
        served_by: Returns the hosts that may serve a model, and what each calls it: the dearest of
            them is reckoned with. None (default) reckons with the model's price alone.
    """

    def __init__(
        self,
        ledger: Ledger,
        prices: PriceTable,
        estimator: TokenEstimator | None = None,
        served_by: ServedBy | None = None,
    ) -> None:
        self._served_by = served_by
        self._ledger = ledger
        self._prices = prices
        self._estimator = estimator or TokenEstimator()

    async def __call__(self, request: httpx.Request, inner: _Inner) -> httpx.Response:
        call = call_of(request.extensions)
        reservation = self._ledger.reserve(call.options.tenant or "", self._estimate(call))
        try:
            response = await inner.send(request)
        except BaseException:
            self._close(call, reservation)
            raise

        def over(_verdict: Verdict) -> None:
            self._close(call, reservation)

        return inner.semantics.watch(response, over)

    def _estimate(self, call: Call) -> Decimal | None:
        facts = call.facts
        if facts.dialect is None or facts.payload is None or facts.model is None:
            return None
        tokens = self._estimator.estimate(facts.dialect, facts.payload, facts.model)
        usage = TokenUsage(tokens.input, tokens.output)
        costs = [self._prices.cost(facts.model, usage)]
        if self._served_by is not None:
            hosts = self._served_by(facts.model)
            costs = [cost_at(host, (own, facts.model), usage, self._prices) for host, own in hosts]
        return max((cost for cost in costs if cost is not None), default=None)

    def _close(self, call: Call, reservation: BudgetReservation) -> None:
        bill = bill_of(call, self._prices, self._estimator)
        reservation.settle(bill.known)
        self._ledger.book(call.options.tenant or "", bill)
