"""What has been spent, by model, host and key, and what may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from shared.infrastructure.balancing.accounting.bill import Bill, BillItem
from shared.infrastructure.balancing.accounting.errors import BudgetExceededError

Window = Literal["hour", "day", "month", "total"]

OTHERS = "(others)"
"""Where those are booked together that come when there is no room for more names."""

_ZERO = Decimal(0)


class Budget(BaseModel, frozen=True, extra="forbid"):
    """What may be spent.

    Attributes:
        limit: In the currency of the prices; above 0; required.
        window: Over which hour, day or month of the calendar, in UTC; "total" never renews.
    """

    limit: Annotated[Decimal, Field(gt=0, allow_inf_nan=False)]
    window: Window = "month"

    def renews_at(self, now: datetime) -> datetime | None:
        """Return the instant at which the next window begins; None if there is none."""
        hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        match self.window:
            case "hour":
                return hour + timedelta(hours=1)
            case "day":
                return hour.replace(hour=0) + timedelta(days=1)
            case "month":
                return (hour.replace(day=1, hour=0) + timedelta(days=32)).replace(day=1)
            case "total":
                return None


class BudgetReservation:
    """What a call may cost, set apart in every budget it counts for; settled or cancelled once."""

    __slots__ = ("_accounts", "amount")

    def __init__(self, accounts: Sequence[_Account], amount: Decimal) -> None:
        self._accounts = accounts
        self.amount = amount

    def settle(self, cost: Decimal | None) -> None:
        """Book what it cost, in the window in which it was reserved; None is not known: nothing."""
        accounts, self._accounts = self._accounts, ()
        for account in accounts:
            account.reserved -= self.amount
            account.spent += cost or _ZERO

    def cancel(self) -> None:
        """Give everything back."""
        self.settle(_ZERO)


class Ledger:
    """Totals and budgets; all is synchronous, so that what is looked at is what is taken.

    The number of models, hosts and keys is bounded: who comes later is booked under `(others)`,
    and shares one budget with all of them, so that a flood of new keys gets no money of its own.

    Args:
        budgets: By key, say a tenant.
        each: Budgets of every key that has none of its own.
        together: Budgets of all keys together.
        max_names: Names kept of each kind.
        now: Source of the date; budgets follow the calendar.
    """

    def __init__(
        self,
        budgets: Mapping[str, Sequence[Budget]] | None = None,
        *,
        each: Sequence[Budget] = (),
        together: Sequence[Budget] = (),
        max_names: int = 10_000,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self._budgets = dict(budgets or {})
        self._each = tuple(each)
        self._together = tuple(together)
        self._max_names = max_names
        self._now = now or _utc_now
        self._accounts: dict[tuple[str, int], _Account] = {}
        self._purge_at: datetime | None = None
        self._all = _Totals()
        self._by: dict[str, dict[str, _Totals]] = {"models": {}, "hosts": {}, "keys": {}}

    def reserve(self, key: str, estimate: Decimal | None) -> BudgetReservation:
        """Set apart what a call of `key` will probably cost.

        Args:
            key: Whose call it is.
            estimate: None if the price is not known: then a budget only must not be used up.

        Raises:
            BudgetExceededError: It is more than what is left of a budget.
        """
        amount = _ZERO if estimate is None else estimate
        now = self._now()
        accounts = [*self._of_key(key, now), *self._opened("", self._together, now)]
        for account in accounts:
            account.check(amount, now)
        for account in accounts:
            account.reserved += amount
        return BudgetReservation(accounts, amount)

    def book(self, key: str, bill: Bill) -> None:
        """Add a bill to the totals; `BudgetReservation.settle` is for the budgets."""
        for item in bill.items:
            self._all.add(item)
            self._totals("models", item.model or "").add(item)
            self._totals("hosts", item.host).add(item)
            self._totals("keys", key).add(item)

    def snapshot(self) -> dict[str, Any]:
        """Return `total`, and by name `models`, `hosts`, `keys` and `budgets`; money is text.

        Of each: `attempts`, tokens of `input` and `output`, `cost`, the part of it that is `waste`
        or `estimated`, and how many attempts are `unpriced`, whose cost is in none of these.
        """
        kinds = {
            kind: {name: totals.snapshot() for name, totals in names.items()}
            for kind, names in self._by.items()
        }
        now = self._now()
        budgets = [
            account.snapshot() for account in self._accounts.values() if not account.is_over(now)
        ]
        return {"total": self._all.snapshot(), **kinds, "budgets": budgets}

    def _of_key(self, key: str, now: datetime) -> list[_Account]:
        own = self._budgets.get(key)
        if own is not None:
            return self._opened(key, own, now)
        if self._each and (key, 0) not in self._accounts and self._is_full(now):
            key = OTHERS
        return self._opened(key, self._each, now)

    def _opened(self, key: str, budgets: Sequence[Budget], now: datetime) -> list[_Account]:
        """Return the accounts of a key, new ones where the window is over."""
        accounts: list[_Account] = []
        for index, budget in enumerate(budgets):
            account = self._accounts.get((key, index))
            if account is None or account.is_over(now):
                account = self._accounts[key, index] = _Account(key, budget, now)
            accounts.append(account)
        return accounts

    def _is_full(self, now: datetime) -> bool:
        if len(self._accounts) < self._max_names:
            return False
        if self._purge_at is None or now >= self._purge_at:
            self._accounts = {
                name: account
                for name, account in self._accounts.items()
                if not account.is_over(now)
            }
            ends = [a.renews_at for a in self._accounts.values() if a.renews_at is not None]
            self._purge_at = min(ends, default=datetime.max.replace(tzinfo=UTC))
        return len(self._accounts) >= self._max_names

    def _totals(self, kind: str, name: str) -> _Totals:
        names = self._by[kind]
        totals = names.get(name)
        if totals is None:
            if len(names) >= self._max_names:
                name = OTHERS
            totals = names.setdefault(name, _Totals())
        return totals


class _Account:
    """One window of one budget."""

    __slots__ = ("_budget", "key", "renews_at", "reserved", "spent")

    def __init__(self, key: str, budget: Budget, now: datetime) -> None:
        self.key = key
        self.spent = _ZERO
        self.reserved = _ZERO
        self.renews_at = budget.renews_at(now)
        self._budget = budget

    def is_over(self, now: datetime) -> bool:
        return self.renews_at is not None and now >= self.renews_at

    def check(self, amount: Decimal, now: datetime) -> None:
        left = self._budget.limit - self.spent - self.reserved
        if left > 0 and amount <= left:
            return
        renews_at = self.renews_at
        raise BudgetExceededError(
            self.key or "all",
            self._budget.limit,
            max(_ZERO, left),
            renews_at=renews_at,
            retry_after=None if renews_at is None else (renews_at - now).total_seconds(),
        )

    def snapshot(self) -> dict[str, Any]:
        return {
            "key": self.key or "all",
            "window": self._budget.window,
            "limit": str(self._budget.limit),
            "spent": str(self.spent),
            "reserved": str(self.reserved),
            "renews_at": self.renews_at.isoformat() if self.renews_at else None,
        }


class _Totals:
    """What was spent on one model, at one host or by one key."""

    __slots__ = ("attempts", "cost", "estimated", "input", "output", "unpriced", "waste")

    def __init__(self) -> None:
        self.attempts = self.input = self.output = self.unpriced = 0
        self.cost = self.waste = self.estimated = _ZERO

    def add(self, item: BillItem) -> None:
        self.attempts += 1
        self.input += item.usage.input
        self.output += item.usage.output
        if item.cost is None:
            self.unpriced += 1
            return
        self.cost += item.cost
        if item.is_waste:
            self.waste += item.cost
        if item.usage.estimated:
            self.estimated += item.cost

    def snapshot(self) -> dict[str, Any]:
        return {
            "attempts": self.attempts,
            "input": self.input,
            "output": self.output,
            "cost": str(self.cost),
            "waste": str(self.waste),
            "estimated": str(self.estimated),
            "unpriced": self.unpriced,
        }


def _utc_now() -> datetime:
    return datetime.now(UTC)
