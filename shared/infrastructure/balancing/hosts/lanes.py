"""The lanes of one host: one for each model, as many as fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shared.infrastructure.balancing.hosts.lane import Lane
from shared.infrastructure.balancing.hosts.standing import BADNESS, HostState
from shared.infrastructure.resilience import Keyed

_MAX_LANES = 64


class Lanes:
    """Lanes by model, built when first used; that least recently used goes when there are too many.

    Args:
        make: Builds the lane of a model.
        now: Reads the clock.
    """

    __slots__ = ("_lanes", "get")

    def __init__(self, make: Callable[[str | None], Lane], now: Callable[[], float]) -> None:
        self._lanes = Keyed[Lane](
            make, max_keys=_MAX_LANES, keep=lambda lane: lane.is_worth_keeping(now())
        )
        self.get = self._lanes.get

    def peek(self, model: str | None) -> Lane | None:
        """Return the lane of a model; None before its first call."""
        return self._lanes.get(model) if model in self._lanes else None

    @property
    def models(self) -> list[str | None]:
        """Models that have a lane."""
        return [None if model is None else str(model) for model in self._lanes.entries()]

    def invite_probes(self) -> None:
        """Let every circuit that is open be probed."""
        for lane in self._lanes.entries().values():
            if lane.breaker is not None:
                lane.breaker.invite_probe()

    def worst(self, now: float) -> Lane | None:
        """Return the lane whose circuit is in the worst state; None before the first call."""
        lanes = self._lanes.entries().values()
        return max(lanes, key=lambda lane: BADNESS[lane.circuit(now).state], default=None)

    def closed(self, now: float) -> int:
        """Return how many lanes have a circuit that lets everybody through."""
        lanes = self._lanes.entries().values()
        return sum(lane.circuit(now).state is HostState.READY for lane in lanes)

    def snapshot(self, now: float) -> dict[str, dict[str, Any]]:
        """Return the snapshot of each lane; that of requests which name no model under ""."""
        lanes = self._lanes.entries()
        return {"" if model is None else str(model): lanes[model].snapshot(now) for model in lanes}
