"""What the scheduler queues: one item, who wants it, and until when."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from services.embedding.backends.protocol import Prepared
from services.embedding.options import Lane
from services.embedding.outcome import Outcome

if TYPE_CHECKING:
    from services.embedding.scheduling.lanes import TenantQueue


class Load:
    """How much some jobs are, summed up.

    Attributes:
        rows: Jobs.
        tokens: Their tokens.
        squares: Their tokens, each squared: what attention costs.
    """

    __slots__ = ("rows", "squares", "tokens")

    def __init__(self, rows: float = 0, tokens: float = 0, squares: float = 0) -> None:
        self.rows = rows
        self.tokens = tokens
        self.squares = squares

    def add(self, tokens: int) -> None:
        """Count a job of so many tokens."""
        self.rows += 1
        self.tokens += tokens
        self.squares += tokens * tokens

    def remove(self, tokens: int) -> None:
        """Take a job of so many tokens out again."""
        self.rows -= 1
        self.tokens -= tokens
        self.squares -= tokens * tokens


class Job:
    """An item on its way through a scheduler.

    Args:
        prepared: What the backend made of it.
        on_outcome: Told once what came of it, on the event loop, unless the job is cancelled.
        lane: How urgent it is.
        tenant: On whose behalf.
        deadline: Time of the scheduler's clock from which on nobody wants it; None is never.

    Attributes:
        tokens: Tokens of `prepared`, at least 1.
        since: When it was submitted.
        queue: Where it waits; None before, and once it is in a batch or settled.
    """

    __slots__ = (
        *("deadline", "lane", "on_outcome", "prepared"),
        *("queue", "since", "tenant", "tokens"),
    )

    def __init__(
        self,
        prepared: Prepared,
        on_outcome: Callable[[Outcome], object],
        *,
        lane: Lane,
        tenant: str = "",
        deadline: float | None = None,
    ) -> None:
        self.prepared = prepared
        self.on_outcome = on_outcome
        self.lane = lane
        self.tenant = tenant
        self.deadline = deadline
        self.tokens = max(1, prepared.tokens)
        self.since = 0.0
        self.queue: TenantQueue | None = None
