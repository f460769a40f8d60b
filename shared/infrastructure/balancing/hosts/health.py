"""Active checks of a host: what they alone say, whatever its traffic does."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from shared.infrastructure.resilience import ConfigurationError, HealthMonitor, HealthStatus


class HostHealth(HealthMonitor):
    """A monitor that also tells whether a host is down by its active checks alone.

    Traffic is about one model, and has a circuit breaker for that; a check is about the host. One
    that is down stays so while checks go on; where nobody checks any more, that is forgotten.

    Attributes:
        is_down: Whether `unhealthy_after` checks in a row failed, and not `healthy_after` in a row
            were good since.
        on_change: Called when that changes.
    """

    is_down = False
    on_change: Callable[[], None] | None = None
    _bad_checks = _good_checks = 0

    @property
    def down_until(self) -> float:
        """Instant until which it is down, if nothing happens: the next check would be due then."""
        is_watched = self._task is not None and not self._task.done()
        return math.inf if is_watched else self._checked_at + self.config.interval

    def start(self) -> None:
        self._forget()
        super().start()

    async def stop(self) -> None:
        task = self._task
        if task and not task.done() and task.get_loop() is not asyncio.get_running_loop():
            raise ConfigurationError(
                f"the health checks of {self.name} run on another event loop: stop them there"
            )
        await super().stop()

    async def check(self) -> HealthStatus:
        self._forget()
        status = await super().check()
        is_good = self._last_error is None
        self._bad_checks = 0 if is_good else self._bad_checks + 1
        self._good_checks = self._good_checks + 1 if is_good else 0
        threshold = self.config.healthy_after if self.is_down else self.config.unhealthy_after
        if (self._good_checks if self.is_down else self._bad_checks) >= threshold:
            self.is_down = not self.is_down
            if self.on_change is not None:
                self.on_change()
        return status

    def _forget(self) -> None:
        """Begin anew if the last check is so long ago that it says nothing any more."""
        if self.is_down and self._clock.now() >= self.down_until:
            self.is_down = False
            self._bad_checks = 0
