"""Prometheus metrics of the process, in a registry of their own; labels come from closed sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from services.embedding.service import ProductionEmbeddingService
from shared.infrastructure.resilience import MissingExtraError

try:
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Counter,
        Histogram,
        generate_latest,
    )
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as exc:
    raise MissingExtraError("the embedding process", "embedding") from exc

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """What the process counts itself, and what it reads from the service when it is asked.

    Args:
        service: Service whose counters are shown.
    """

    def __init__(self, service: ProductionEmbeddingService) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "emb_requests",
            "Requests by route and status",
            ["route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "emb_request_seconds",
            "Time from the head of a request to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        # Looking a labelled series up costs more than counting in it.
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._registry.register(_ServiceCollector(service))

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has been answered."""
        children = self._children.get((route, status))
        if children is None:
            children = self._requests.labels(route, str(status)), self._seconds.labels(route)
            self._children[route, status] = children
        requests, durations = children
        requests.inc()
        durations.observe(seconds)

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _ServiceCollector(Collector):
    """The service's own counters, read when Prometheus asks, so that counting stays cheap."""

    def __init__(self, service: ProductionEmbeddingService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        metrics = self._service.get_metrics()
        cache = metrics["cache"]
        fresh = metrics["token_count"] - metrics["cached_token_count"]
        yield _gauge("emb_ready", "Whether texts are embedded", float(self._service.is_ready))
        yield _counter("emb_items", "Texts by origin of their vector", "source", metrics["items"])
        yield _counter(
            "emb_tokens",
            "Tokens of the texts, by origin of their vector",
            "source",
            {"cached": metrics["cached_token_count"], "computed": fresh},
        )
        yield _gauge("emb_queue_texts", "Texts that wait for the model", metrics["queue_length"])
        yield _rows(metrics["batch_sizes"])
        yield _gauge("emb_cache_entries", "Vectors in the cache", cache["entries"])
        yield _gauge("emb_cache_bytes", "Bytes of the vectors in the cache", cache["bytes"])
        yield _counter(
            "emb_cache_lookups",
            "Lookups in the cache",
            "result",
            {"hit": cache["hits"], "miss": cache["misses"]},
        )
        yield CounterMetricFamily(
            "emb_cache_evictions", "Vectors that made room for others", value=cache["evictions"]
        )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _rows(sizes: Mapping[str, int]) -> Metric:
    counts = {int(size): count for size, count in sizes.items()}
    buckets = [
        (str(float(bound)), sum(count for size, count in counts.items() if size <= bound))
        for bound in _ROWS
    ]
    total = sum(size * count for size, count in counts.items())
    family = HistogramMetricFamily("emb_batch_rows", "Texts in a batch")
    family.add_metric([], [*buckets, ("+Inf", sum(counts.values()))], total)
    return family
