"""Whom to let in: the queue is bounded in seconds of work, and who is refused is told when to come.

A call is refused only for what goes before it, whatever its own size, and only the work that goes
before it counts: other tenants of its lane with as much as its own, other lanes by their weight.
While calls that were told to come back are awaited, newcomers find half of the queue closed, so
that there is room for those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any

from services.embedding.errors import QueueFullError
from services.embedding.options import Lane
from services.embedding.scheduling.config import SchedulerConfig
from services.embedding.scheduling.lanes import Lanes
from services.embedding.scheduling.promises import Promises
from services.embedding.scheduling.sizing import Sizing
from shared.infrastructure.resilience import DeadlineExceededError

_SOONEST = 0.05  # seconds until it makes sense to come back, at least
_RESERVED = 0.5  # of the queue, at most, for those who come back
# An estimate may be wrong, a refusal should not: a deadline is hopeless if even this share of the
# estimated time does not fit.
_SURE = 0.5
_HALF_FORGOTTEN = 0.25  # seconds until half of what was admitted and never came is forgotten
_MAX_ON_THEIR_WAY = 4096


class Admission:
    """Decides at the door, by what waits in the lanes.

    Args:
        config: Bounds of the queue.
        lanes: What waits.
        sizing: How long it takes.
    """

    def __init__(self, config: SchedulerConfig, lanes: Lanes, sizing: Sizing) -> None:
        self._config = config
        self._lanes = lanes
        self._sizing = sizing
        self._promises = {lane: Promises() for lane in Lane}
        self._on_their_way: dict[tuple[Lane, str], _OnTheirWay] = {}
        self.refused: Counter[str] = Counter()

    def admit(
        self,
        tokens: int,
        *,
        lane: Lane,
        tenant: str,
        deadline: float | None,
        call: Hashable,
        now: float,
        running: float,
    ) -> None:
        """Let a call in.

        Args:
            tokens: Tokens of the call.
            lane: Its lane.
            tenant: Whose it is.
            deadline: When nobody wants it any more.
            call: What is the same when the same call comes again; None if nothing is.
            now: Time of the clock.
            running: Seconds until a slot of the model comes free.

        Raises:
            QueueFullError: Too much is ahead of it; `retry_after` says when it will be let in.
            DeadlineExceededError: It cannot be done in time.
        """
        work = self._sizing.work(self._sizing.typical(tokens))
        in_lane, others = self._ahead(lane, tenant, work, now)
        pace = self._sizing.pace
        ahead = running + (in_lane + others) / pace
        if deadline is not None and now + _SURE * (ahead + work / pace) >= deadline:
            self.refused["deadline"] += 1
            raise DeadlineExceededError(
                f"the call has {max(0.0, deadline - now):.2f} s, and would be done in "
                f"{ahead + work / pace:.2f} s"
            )
        promises = self._promises[lane]
        known_by = (tenant, tokens) if call is None else (tenant, call)
        is_due = promises.is_due(known_by, now)
        limit = self._config.max_seconds(lane)
        room = limit if is_due else limit - min(_RESERVED * limit, promises.outstanding)
        if ahead > room:
            self.refused[str(lane)] += 1
            due = promises.make(
                known_by,
                work * (1 + others / (in_lane + work)) / pace,
                now + max(_SOONEST, ahead - _RESERVED * limit),
                now,
                distinct=call is not None,
            )
            raise QueueFullError(
                f"{ahead:.1f} s of work are ahead of the call in the lane {lane}",
                retry_after=due - now,
            )
        if is_due or call is not None:
            promises.redeem(known_by)
        self._coming(lane, tenant, now).tokens += tokens

    def arrived(self, lane: Lane, tenant: str, tokens: int, now: float) -> None:
        """Note that jobs of so many tokens, admitted before, are in their lane now."""
        coming = self._coming(lane, tenant, now)
        coming.tokens -= tokens
        if coming.tokens <= 0:
            del self._on_their_way[lane, tenant]

    def estimate(self, tokens: int, lane: Lane, tenant: str, now: float) -> float:
        """Return the seconds until a call has been done, after those until a slot comes free."""
        work = self._sizing.work(self._sizing.typical(tokens))
        fixed, _, _ = self._sizing.model.coefficients
        return fixed + (sum(self._ahead(lane, tenant, work, now)) + work) / self._sizing.pace

    def snapshot(self) -> dict[str, Any]:
        """Return counters as plain JSON types."""
        return {
            "refused_counts": dict(self.refused),
            "promises": sum(map(len, self._promises.values())),
            "promised_seconds": sum(each.outstanding for each in self._promises.values()),
        }

    def _ahead(self, lane: Lane, tenant: str, work: float, now: float) -> tuple[float, float]:
        sizing = self._sizing
        coming = 0.0
        if (lane, tenant) in self._on_their_way:
            coming = sizing.work(sizing.typical(self._coming(lane, tenant, now).tokens))
        return self._lanes.ahead(lane, tenant, coming, work, sizing.work)

    def _coming(self, lane: Lane, tenant: str, now: float) -> _OnTheirWay:
        coming = self._on_their_way.get((lane, tenant))
        if coming is None:
            if len(self._on_their_way) >= _MAX_ON_THEIR_WAY:
                self._on_their_way.clear()
            coming = self._on_their_way[lane, tenant] = _OnTheirWay(now)
        coming.fade(now)
        return coming


class _OnTheirWay:
    """Tokens of a tenant that were admitted and are still being prepared; some never come."""

    __slots__ = ("_since", "tokens")

    def __init__(self, now: float) -> None:
        self.tokens = 0.0
        self._since = now

    def fade(self, now: float) -> None:
        self.tokens *= 0.5 ** ((now - self._since) / _HALF_FORGOTTEN)
        self._since = now
