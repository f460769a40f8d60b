"""Prometheus metrics of the process, read when they are asked for; labels are of closed sets."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate

from services.embedding.process.families import counter, families
from services.embedding.process.replies import ReplyCache
from services.embedding.service import ProductionEmbeddingService
from shared.infrastructure.resilience import MissingExtraError

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as exc:
    raise MissingExtraError("the embedding process", "embedding") from exc

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
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


class _Histogram:
    """Counts of numbers by buckets; a tenth of the cost of a client library's."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        names = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        family.add_metric(labels, buckets, self._sum)


class Metrics:
    """What the process counts itself, and what it reads from the service when it is asked.

    Args:
        service: Service whose counters are shown.
        replies: Whose hits are shown beside them.
    """

    def __init__(self, service: ProductionEmbeddingService, replies: ReplyCache) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: dict[str, _Histogram] = {}
        self._lag = _Histogram(_LAGS)
        self._timer: asyncio.TimerHandle | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(self._own, partial(families, service, replies)))

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has been answered."""
        self._requests[route, status] += 1
        durations = self._seconds.get(route)
        if durations is None:
            durations = self._seconds[route] = _Histogram(_SECONDS)
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
        requests = CounterMetricFamily(
            "emb_requests", "Requests by route and status", labels=["route", "status"]
        )
        rejected: Counter[str] = Counter()
        for (route, status), count in self._requests.items():
            requests.add_metric([route, str(status)], count)
            if status in _REJECTIONS:
                rejected[_REJECTIONS[status]] += count
        yield requests
        yield counter("emb_rejected", "Requests turned away", "reason", rejected)
        seconds = HistogramMetricFamily(
            "emb_request_seconds", "Time from the head of a request to its answer", labels=["route"]
        )
        for route, histogram in self._seconds.items():
            histogram.add_to(seconds, [route])
        yield seconds
        lag = HistogramMetricFamily("emb_event_loop_lag_seconds", "How late the event loop is")
        self._lag.add_to(lag, [])
        yield lag
