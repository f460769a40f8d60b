"""Prometheus metrics of a server, read when they are asked for; labels are of closed sets."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from shared.infrastructure.resilience import MissingExtraError

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as exc:
    raise MissingExtraError("the HTTP server", "server") from exc

CONTENT_TYPE = CONTENT_TYPE_LATEST

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds of a histogram of durations."""

_LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_LAG_INTERVAL = 0.25

# Statuses by which requests are turned away, and what the metric calls the reason.
_REJECTIONS = {
    401: "unauthorized",
    408: "too_slow",
    413: "too_large",
    422: "not_processable",
    429: "overloaded",
    503: "unavailable",
    504: "deadline",
}


class _Collector(Collector):
    """What is shown, read when Prometheus asks, so that counting stays cheap."""

    def __init__(self, *sources: Callable[[], Iterator[Metric]]) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        for source in self._sources:
            yield from source()


class Histogram:
    """Counts of numbers by buckets; a tenth of the cost of a client library's.

    Args:
        bounds: Upper ends of the buckets, ascending; one more takes the rest.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a number."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Show the counts under these labels."""
        names = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        family.add_metric(labels, buckets, self._sum)


class RequestMetrics:
    """What a server counts itself, and what others have to show beside it.

    Args:
        prefix: Of every name, such as "emb".
        sources: Asked for further families whenever Prometheus asks.
        bounds: Of the histogram of durations.
    """

    def __init__(
        self,
        prefix: str,
        *sources: Callable[[], Iterator[Metric]],
        bounds: Sequence[float] = SECONDS,
    ) -> None:
        self._bounds = bounds
        self._prefix = prefix
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: dict[str, Histogram] = {}
        self._lag = Histogram(_LAGS)
        self._timer: asyncio.TimerHandle | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(self._own, *sources))

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has been answered."""
        self._requests[route, status] += 1
        durations = self._seconds.get(route)
        if durations is None:
            durations = self._seconds[route] = Histogram(self._bounds)
        durations.observe(seconds)

    def start(self) -> None:
        """Begin to measure how late the event loop is."""
        loop = asyncio.get_running_loop()
        due = loop.time() + _LAG_INTERVAL

        def tick() -> None:
            nonlocal due
            now = loop.time()
            self._lag.observe(max(0.0, now - due))
            due = now + _LAG_INTERVAL
            self._timer = loop.call_at(due, tick)

        self._timer = loop.call_at(due, tick)

    def stop(self) -> None:
        """Leave the event loop alone."""
        if self._timer is not None:
            self._timer.cancel()

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def _own(self) -> Iterator[Metric]:
        prefix = self._prefix
        requests = CounterMetricFamily(
            f"{prefix}_requests", "Requests by route and status", labels=["route", "status"]
        )
        rejected: Counter[str] = Counter()
        for (route, status), count in self._requests.items():
            requests.add_metric([route, str(status)], count)
            if status in _REJECTIONS:
                rejected[_REJECTIONS[status]] += count
        yield requests
        yield counter(f"{prefix}_rejected", "Requests turned away", "reason", rejected)
        seconds = HistogramMetricFamily(
            f"{prefix}_request_seconds",
            "Time from the head of a request to its answer",
            labels=["route"],
        )
        for route, histogram in self._seconds.items():
            histogram.add_to(seconds, [route])
        yield seconds
        lag = HistogramMetricFamily(
            f"{prefix}_event_loop_lag_seconds", "How late the event loop is"
        )
        self._lag.add_to(lag, [])
        yield lag


def counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """Return a counter with one label."""
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """Return a gauge with one label."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family
