"""How many tokens a forward pass may have, learnt from those that ran out of memory."""

from __future__ import annotations

import threading

from shared.infrastructure.resilience.errors import ConfigurationError


class TokenBudget:
    """Tokens of a pass at most: falls by a factor when memory runs out, climbs back step by step.

    A failure lowers the budget to `decrease` times what the failed pass was allowed, unless it is
    lower already. So passes that were under way together lower it once, however many of them
    fail and in whatever order they say so. Any thread may call any method; none waits.

    Args:
        limit: Tokens while memory is ample; at least 1.
        floor: Tokens that are always allowed; 1; from 1 to `limit`.
        decrease: Factor of a failure; 0.7; between 0 and 1.
        increase: Share of the limit that a pass adds when it succeeds; 0.02; above 0.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    def __init__(
        self, limit: int, *, floor: int = 1, decrease: float = 0.7, increase: float = 0.02
    ) -> None:
        if not 1 <= floor <= limit:
            raise ConfigurationError(f"floor must be from 1 to the limit {limit}, not {floor}")
        if not 0 < decrease < 1:
            raise ConfigurationError(f"decrease must be between 0 and 1, not {decrease}")
        if not increase > 0:
            raise ConfigurationError(f"increase must be above 0, not {increase}")
        self.limit = limit
        self._floor = floor
        self._decrease = decrease
        self._step = increase * limit
        self._tokens = float(limit)
        self._lock = threading.Lock()

    @property
    def current(self) -> int:
        """Tokens a pass may have now, from the floor to the limit."""
        return int(self._tokens)

    def lower(self, allowed: int) -> None:
        """Take note that a pass ran out of memory.

        Args:
            allowed: What `current` was when the pass was cut, or fewer if it had fewer tokens.
        """
        with self._lock:
            self._tokens = min(self._tokens, max(self._floor, allowed * self._decrease))

    def on_success(self) -> None:
        """Take note that a pass went well."""
        if self._tokens < self.limit:
            with self._lock:
                self._tokens = min(self.limit, self._tokens + self._step)

    def relieve(self) -> None:
        """Lower the budget because memory is short, though no pass has failed."""
        self.lower(self.current)
