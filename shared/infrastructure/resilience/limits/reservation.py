"""A permit whose cost is known only afterwards, such as the tokens of an LLM's answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

from shared.infrastructure.resilience.errors import ConfigurationError


class Reservation:
    """A permit taken for an estimated cost, settled exactly once: the first settlement counts.

    As a context manager it is cancelled by whatever exception leaves the block, cancellation
    included, and otherwise commits its estimate if the block did not commit.

    Args:
        cost: Estimate that was taken, in permits.
        settle: Told what the permit cost in the end.
    """

    __slots__ = ("_settle", "cost")

    def __init__(self, cost: float, settle: Callable[[float], None]) -> None:
        self.cost = cost
        self._settle: Callable[[float], None] | None = settle

    def commit(self, actual: float | None = None) -> None:
        """Charge `actual` permits, by default the estimate; what was taken too much goes back.

        More than the estimate is charged as debt, which those who come next wait off.

        Raises:
            ConfigurationError: `actual` is negative or not a number; the reservation stays open.
        """
        cost = self.cost if actual is None else actual
        if not 0.0 <= cost < math.inf:
            raise ConfigurationError(f"a permit costs 0 or more, not {actual}")
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(cost)

    def cancel(self) -> None:
        """Give everything back."""
        self.commit(0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.cancel()
