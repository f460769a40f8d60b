"""Keep the process below its memory limits: who can give memory back is asked to, in order."""

from __future__ import annotations

import enum
import inspect
import itertools
import logging
import math
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, Field, model_validator

from shared.infrastructure.local_embeddings.errors import MemoryPressureError
from shared.infrastructure.local_embeddings.memory.readings import (
    Gauge,
    MemoryReading,
    read_memory,
)
from shared.infrastructure.resilience.clock import MONOTONIC, Clock

_log = logging.getLogger(__name__)

Relief = Callable[[], bool | None]
"""Gives memory back; returns True if it could give more when asked again."""

# A pass that takes more than this part of the room at the last look makes for a new look.
_SMALL = 0.25


class Stage(enum.IntEnum):
    """How far relief has gone; each includes those before it."""

    CALM = 0
    TRIM = 1
    """Arenas give back what they keep for speed."""
    BUDGET = 2
    """Passes get smaller."""
    CACHE = 3
    """Cached bytes are dropped."""
    MODELS = 4
    """Idle models are unloaded, the least recently used first."""
    REFUSE = 5
    """Bulk work is refused."""


class MemoryConfig(BaseModel, frozen=True, extra="forbid"):
    """When memory counts as short.

    What the process needs at rest belongs below `low`: between `low` and `high` nothing changes,
    and bulk work that is refused stays so.

    Attributes:
        limit_bytes: Resident memory this process and its workers may take; None (default) is no
            bound but those of its container and the machine.
        high: Part of any bound from which memory is short; 0.85; above `low`, at most 1.
        low: Part of every bound below which it is no longer; 0.75; above 0.
        interval: Seconds between two looks, and so between two stages; 0.25; above 0.
    """

    limit_bytes: int | None = Field(default=None, ge=1)
    high: float = Field(default=0.85, gt=0, le=1)
    low: float = Field(default=0.75, gt=0, le=1)
    interval: float = Field(default=0.25, gt=0)

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high {self.high}, not {self.low}")
        return self


class MemoryGovernor:
    """Watches memory on behalf of those who use it, and calls for relief when it runs short.

    It has no thread: whoever is about to take memory calls `check`, which looks once an interval.
    While memory is short each look goes one stage further, and calls on all that is registered up
    to there; while it is ample again each look goes one stage back. The machine's memory and that
    of each GPU have stages of their own. Any thread may call any method; none waits for another.

    Args:
        config: When memory counts as short.
        read: Reads memory; `functools.partial(read_memory, pids)` counts workers, too.
        clock: Source of monotonic time.
    """

    def __init__(
        self,
        config: MemoryConfig | None = None,
        *,
        read: Callable[[], MemoryReading] = read_memory,
        clock: Clock = MONOTONIC,
    ) -> None:
        self.config = config or MemoryConfig()
        self._read = read
        self._clock = clock
        self._looking = threading.Lock()
        # When the next look is due, of those that relieve and of those that do not: who only asks
        # must not take the turn of one who would relieve.
        self._due = dict.fromkeys((True, False), clock.now())
        self._reading: MemoryReading | None = None
        self._ladders: dict[str, _Ladder] = {}
        self._reliefs: dict[int, _Registered] = {}
        self._keys = itertools.count()
        self._relief_count = self._relief_error_count = self._refused_count = 0

    def register(self, stage: Stage, relieve: Relief, *, device: str = "cpu") -> Callable[[], None]:
        """Call on `relieve` when relief on `device` reaches `stage`; return what ends that.

        It is called on the thread that looks, and must not wait. If it returns True the next stage
        waits until it has no more to give. A method does not keep its object alive: it is
        forgotten with it.
        """
        key = next(self._keys)
        reliefs = self._reliefs

        def unregister(_: object = None) -> None:
            reliefs.pop(key, None)

        reliefs[key] = _Registered(stage, device, _reference(relieve, unregister))
        return unregister

    def check(self) -> None:
        """Look if it is time to, and call for relief if memory is short."""
        self._look(relieve=True)

    def admits(self, size_bytes: int, *, device: str = "cpu") -> bool:
        """Whether so much more memory leaves every bound below `high`; True if none is known.

        What a pass takes can only be estimated: the part above `high` is for what it takes beyond.
        """
        reading = self._reading
        if reading is None or size_bytes > _SMALL * self._room(reading, device):
            reading = self._reading = self._take_reading()
        return size_bytes <= self._room(reading, device)

    def admit_bulk(self, *, device: str = "cpu") -> None:
        """Do nothing unless memory is so short that bulk work has to wait.

        Quick enough for an event loop: it may look, but calls for no relief.

        Raises:
            MemoryPressureError: It is.
        """
        if not self._refuses(device):
            return
        self._look(relieve=False)
        if self._refuses(device):
            self._refused_count += 1
            raise MemoryPressureError(
                "memory is short: bulk work has to wait", retry_after=self.config.interval
            )

    def snapshot(self) -> dict[str, Any]:
        """Return stages, the reading they are based on and counters as plain JSON types."""
        reading = self._reading or MemoryReading()
        tightest = _tightest(reading)
        return {
            "rss_bytes": reading.rss_bytes,
            "devices": {
                device: {
                    "stage": self._stage(device).name.lower(),
                    "used_bytes": gauge.used_bytes,
                    "limit_bytes": gauge.limit_bytes,
                }
                for device, gauge in tightest.items()
            },
            "registered": len(self._reliefs),
            "relief_count": self._relief_count,
            "relief_error_count": self._relief_error_count,
            "refused_count": self._refused_count,
        }

    def _look(self, *, relieve: bool) -> None:
        now = self._clock.now()
        # A thread that finds another one looking goes on with its work.
        if now < self._due[relieve] or not self._looking.acquire(blocking=False):
            return
        try:
            if now >= self._due[relieve]:
                self._due[relieve] = now + self.config.interval
                self._reading = self._take_reading()
                # A GPU that is no longer in use has no gauge.
                shares = dict.fromkeys(self._ladders, 0.0) | {
                    device: gauge.share for device, gauge in _tightest(self._reading).items()
                }
                for device, share in shares.items():
                    self._step(device, share, relieve=relieve)
        finally:
            self._looking.release()

    def _take_reading(self) -> MemoryReading:
        reading = self._read()
        limit = self.config.limit_bytes
        if limit is None or reading.rss_bytes is None:
            return reading
        own = Gauge("cpu", reading.rss_bytes, limit)
        return reading._replace(gauges=(own, *reading.gauges))

    def _step(self, device: str, share: float, *, relieve: bool) -> None:
        ladder = self._ladders.setdefault(device, _Ladder())
        if share < self.config.low:
            ladder.stage = Stage(max(Stage.CALM, ladder.stage - 1))
            ladder.has_more = False
        elif share >= self.config.high and relieve:
            if not ladder.has_more:
                ladder.stage = Stage(min(Stage.REFUSE, ladder.stage + 1))
            ladder.has_more = self._relieve(device, ladder.stage)

    def _relieve(self, device: str, stage: Stage) -> bool:
        """Call for relief up to a stage; return whether the stage itself has more to give."""
        has_more = False
        # A copy, since what is called may register and unregister.
        registered = sorted(self._reliefs.copy().values(), key=lambda relief: relief.stage)
        for relief in registered:
            if relief.stage > stage or relief.device != device or not (call := relief.reference()):
                continue
            self._relief_count += 1
            try:
                more = call()
            except Exception:
                self._relief_error_count += 1
                _log.warning("memory relief %r failed", call, exc_info=True)
            else:
                has_more |= more is True and relief.stage is stage
        return has_more

    def _room(self, reading: MemoryReading, device: str) -> float:
        """Return how much more may be used before memory counts as short."""
        return min(
            (
                self.config.high * gauge.limit_bytes - gauge.used_bytes
                for gauge in reading.gauges
                if gauge.device == device
            ),
            default=math.inf,
        )

    def _refuses(self, device: str) -> bool:
        return Stage.REFUSE in {self._stage("cpu"), self._stage(device)}

    def _stage(self, device: str) -> Stage:
        ladder = self._ladders.get(device)
        return ladder.stage if ladder else Stage.CALM


class _Ladder:
    """How far relief has gone on one device."""

    def __init__(self) -> None:
        self.stage = Stage.CALM
        self.has_more = False


class _Registered(NamedTuple):
    """A relief that may be gone."""

    stage: Stage
    device: str
    reference: Callable[[], Relief | None]


def _reference(relieve: Relief, gone: Callable[[object], None]) -> Callable[[], Relief | None]:
    if inspect.ismethod(relieve):
        return weakref.WeakMethod(relieve, gone)
    return lambda: relieve


def _tightest(reading: MemoryReading) -> dict[str, Gauge]:
    """Return, by device, the gauge of which the largest part is used."""
    return {gauge.device: gauge for gauge in sorted(reading.gauges, key=lambda gauge: gauge.share)}
