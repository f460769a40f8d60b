"""What accounting may refuse.

::

    ServiceError
    └── CallRefusedError
        └── BudgetExceededError         the call would cost more than is left of a budget
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from shared.infrastructure.resilience import CallRefusedError


class BudgetExceededError(CallRefusedError):
    """The call would probably cost more than is left of a budget.

    `retry_after` is the seconds until the budget renews; None if it never does.

    Attributes:
        key: Whose budget it is.
        limit: What may be spent in each window.
        left: What is left of it, what is reserved taken off; at least 0.
        renews_at: Instant at which the next window begins; None if there is none.
    """

    code = "budget_exceeded"

    def __init__(
        self,
        key: str,
        limit: Decimal,
        left: Decimal,
        *,
        renews_at: datetime | None = None,
        retry_after: float | None = None,
    ) -> None:
        when = "never renews" if renews_at is None else f"renews at {renews_at.isoformat()}"
        super().__init__(
            f"the budget of {key!r} has {left} left of {limit}, and {when}",
            retry_after=retry_after,
        )
        self.key = key
        self.limit = limit
        self.left = left
        self.renews_at = renews_at

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "key": self.key,
            "limit": str(self.limit),
            "left": str(self.left),
            "renews_at": self.renews_at.isoformat() if self.renews_at else None,
        }
