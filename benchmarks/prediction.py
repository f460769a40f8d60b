"""Measure whether opening early helps: `python -m benchmarks.prediction`.

A breaker guards a simulated service, in virtual time. Calls come at random, at the same instants
and with the same outcomes whatever the breaker does, so what it refuses is known as well.
"""

# ruff: noqa: S311 - simulated chance is no secret

import heapq
import math
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.report import publish, table
from shared.infrastructure.resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    CircuitStateChanged,
    Event,
    Listeners,
    Permit,
    SystemClock,
    Verdict,
)
from shared.infrastructure.resilience.trend import TrendConfig

# Others than those the defaults were chosen by.
SEEDS = range(100, 120)
LENGTH, BEGINS = 480.0, 120.0
HANGS = 10.0  # seconds after which an attempt is given up
MEDIAN, SPREAD = 0.1, 0.5  # of the log-normal latency of the service when it is well

Answer = tuple[float, bool]
"""Seconds until the call is over, and whether it succeeded."""
Service = Callable[[float, float, float], Answer]
"""From seconds since the trouble began, a usual latency, and a number drawn from 0 to 1."""


def hang_if(bad: bool, latency: float) -> Answer:
    return (HANGS, False) if bad else (latency, True)


RAMPS: dict[str, Service] = {
    "dies at once, refuses": lambda t, latency, _: (0.005, False) if t >= 0 else (latency, True),
    "dies at once, hangs": lambda t, latency, _: hang_if(t >= 0, latency),
    "errors rise to 100 % in 60 s": lambda t, latency, draw: (latency, draw >= t / 60),
    "errors rise to 100 % in 180 s": lambda t, latency, draw: (latency, draw >= t / 180),
    "time-outs rise to 100 % in 60 s": lambda t, latency, draw: hang_if(draw < t / 60, latency),
    "latency tenfold in 60 s, then hangs": lambda t, latency, _: hang_if(
        t >= 60, latency * (1 + 9 * min(max(t, 0), 60) / 60)
    ),
}
HARMLESS: dict[str, Service] = {
    "half fails for 1 s": lambda t, latency, draw: (latency, draw >= 0.5 * (0 <= t < 1)),
    "half fails for 2 s": lambda t, latency, draw: (latency, draw >= 0.5 * (0 <= t < 2)),
    "pause of 1.5 s": lambda t, latency, _: (latency + max(1.5 - t, 0) * (t >= 0), True),
    "load peak: latency tenfold within 20 s": lambda t, latency, _: (
        latency * (1 + 9 * max(0, 1 - abs(t - 20) / 20)),
        True,
    ),
    "load step: latency eightfold for 30 s": lambda t, latency, _: (
        latency * (8 if 0 <= t < 30 else 1),
        True,
    ),
    "5 % fail, always": lambda _, latency, draw: (latency, draw >= 0.05),
    "10 % fail, always": lambda _, latency, draw: (latency, draw >= 0.1),
    "latency drifts to threefold and back": lambda t, latency, _: (
        latency * (2 - math.cos(2 * math.pi * t / LENGTH)),
        True,
    ),
}
LOST: dict[str, Service] = {
    "pause of 5 s": lambda t, latency, _: (latency + max(5 - t, 0) * (t >= 0), True),
    "answers take 4 s more for good": lambda t, latency, _: (latency + 4 * (t >= 0), True),
    "25 % fail from then on": lambda t, latency, draw: (latency, draw >= 0.25 * (t >= 0)),
}


class Moment(SystemClock):
    """A clock that is put where the simulation is."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 1_000.0
        self.now = lambda: self.at


@dataclass
class Ledger:
    """What a run cost.

    Attributes:
        failed: Calls that were let through and failed.
        lost: Seconds their callers waited for nothing.
        refused: Calls refused that would have been answered.
        openings: Refused calls of each opening: all, and those that would have been answered.
    """

    failed: int = 0
    lost: float = 0.0
    refused: int = 0
    openings: list[list[int]] = field(default_factory=list)

    @property
    def false_openings(self) -> int:
        return sum(2 * good > every for every, good in self.openings)


class LatencyTrend:
    """What was tried and left out: open when latency has risen, whether or not calls fail."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        self._usual = self._score = 0.0
        self._seen = 0

    def record(self, latency: float) -> None:
        self._seen += 1
        off = math.log(latency) - self._usual
        self._usual += off * max(0.001, 1 / self._seen)
        self._score = max(0.0, self._score + off - math.log(3)) if self._seen > 200 else 0.0
        if self._score > 10:
            self._score = 0.0
            self._breaker.open_for(self._breaker.config.timeout)


class Run:
    """One breaker before one service."""

    def __init__(self, config: CircuitBreakerConfig, seed: int, by_latency: bool) -> None:
        self.ledger = Ledger()
        self._clock = Moment()
        self._rng = random.Random(seed)
        self._breaker = CircuitBreaker(
            config=config,
            clock=self._clock,
            rng=random.Random(seed),
            listeners=Listeners([self._listen]),
        )
        self._trend = LatencyTrend(self._breaker) if by_latency else None
        self._is_open = False
        self._under_way: list[tuple[float, int, Permit, Answer]] = []

    def play(self, service: Service, rate: float) -> Ledger:
        began, number, rng = self._clock.at, 0, self._rng
        now = began
        while now < began + LENGTH:
            now += rng.expovariate(rate)
            latency = MEDIAN * math.exp(rng.gauss(0, SPREAD))
            answer = service(now - began - BEGINS, latency, rng.random())
            self._end_until(now)
            self._clock.at = now
            number += 1
            permit = self._ask(good=answer[1])
            if permit is not None:
                heapq.heappush(self._under_way, (now + answer[0], number, permit, answer))
        self._end_until(math.inf)
        return self.ledger

    def _ask(self, *, good: bool) -> Permit | None:
        try:
            return self._breaker.admit()
        except CircuitOpenError:
            self.ledger.refused += good
            if self._is_open:
                self.ledger.openings[-1][0] += 1
                self.ledger.openings[-1][1] += good
            return None

    def _end_until(self, now: float) -> None:
        while self._under_way and self._under_way[0][0] <= now:
            at, _, permit, (seconds, good) = heapq.heappop(self._under_way)
            self._clock.at = at
            permit.settle(Verdict.OK if good else Verdict.FAILED)
            if not good:
                self.ledger.failed += 1
                self.ledger.lost += seconds
            elif self._trend is not None:
                self._trend.record(seconds)

    def _listen(self, event: Event) -> None:
        if isinstance(event, CircuitStateChanged):
            if event.old == "closed":
                self.ledger.openings.append([0, 0])
            self._is_open = event.new != "closed"


def measure(
    service: Service, rate: float, config: CircuitBreakerConfig, *, by_latency: bool = False
) -> list[float]:
    """Return the means over the seeds: failed, seconds lost, refused, false openings."""
    ledgers = [Run(config, seed, by_latency).play(service, rate) for seed in SEEDS]
    return [
        statistics.fmean(ledger.failed for ledger in ledgers),
        statistics.fmean(ledger.lost for ledger in ledgers),
        statistics.fmean(ledger.refused for ledger in ledgers),
        statistics.fmean(ledger.false_openings for ledger in ledgers),
    ]


RULES = CircuitBreakerConfig()
PREDICTION = CircuitBreakerConfig(prediction=TrendConfig())
SLOW_CALLS = CircuitBreakerConfig(slow_call_duration=1.0)
HEADER = ["", "failed", "seconds lost", "good calls refused", "false openings"]


def compared(before: list[float], after: list[float]) -> list[str]:
    return [
        f"{old:,.{digits}f} → {new:,.{digits}f}"
        for old, new, digits in zip(before, after, (0, 0, 0, 1), strict=True)
    ]


def main() -> int:
    parts, broken = [INTRODUCTION], []
    for rate in (20, 2):
        for title, services in (("Failures", RAMPS), ("Harmless", HARMLESS), ("Losses", LOST)):
            rows = []
            for name, service in services.items():
                before, after = (measure(service, rate, each) for each in (RULES, PREDICTION))
                rows.append([name, *compared(before, after)])
                if (services is RAMPS and after[0] > before[0]) or (
                    services is HARMLESS and after[3] > before[3]
                ):
                    broken.append(f"{name} at {rate} calls/s")
            parts.append(f"## {title}, {rate} calls/s\n\n{table(HEADER, rows)}")
    rows = [
        [name, *compared(measure(service, 20, RULES), after)]
        for name, service, after in (
            *(
                (f"slow calls: {n}", s, measure(s, 20, SLOW_CALLS))
                for n, s in RAMPS.items()
                if "hangs" in n
            ),
            *(
                (f"latency: {n}", s, measure(s, 20, RULES, by_latency=True))
                for n, s in (RAMPS | HARMLESS).items()
                if "latency" in n or "pause" in n
            ),
        )
    ]
    parts.append(f"## Other ways, 20 calls/s\n\n{OTHERS}\n{table(HEADER, rows)}")
    parts.append("Every claim holds.\n" if not broken else f"Broken: {', '.join(broken)}.\n")
    publish("prediction", "Opening early", "\n".join(parts))
    return bool(broken)


INTRODUCTION = f"""\
Without `prediction` → with it, else the defaults of `CircuitBreakerConfig`; means of
{len(SEEDS)} runs of {LENGTH:g} s. What the row says begins after {BEGINS:g} s. The service answers
in {MEDIAN:g} s (median, log-normal), a call that hangs is given up after {HANGS:g} s. *Good calls
refused* would have been answered. An opening is *false* if most of what it refused would have been.
"""
OTHERS = """\
The slow-call rule at 1 s instead; and a rule that opens when latency is three times the usual,
which is why there is none: it takes every peak of load for a failure.
"""

if __name__ == "__main__":
    sys.exit(main())
