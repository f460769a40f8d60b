"""The service's own counters as Prometheus' families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from services.embedding.process.replies import ReplyCache
from services.embedding.service import ProductionEmbeddingService
from shared.infrastructure.resilience import MissingExtraError
from shared.infrastructure.server.metrics import counter, gauge

try:
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        Metric,
        SummaryMetricFamily,
    )
except ImportError as exc:
    raise MissingExtraError("the embedding process", "embedding") from exc

Json = Mapping[str, Any]


def families(service: ProductionEmbeddingService, replies: ReplyCache) -> Iterator[Metric]:
    """Yield what a service, and the answers kept above it, have to show."""
    metrics, kept = service.get_metrics(), replies.snapshot()
    scheduler: Json = metrics["scheduler"]
    cached = metrics["cached_token_count"]
    yield GaugeMetricFamily(
        "emb_ready", "Whether texts are embedded", value=float(service.is_ready)
    )
    yield counter(
        "emb_items",
        "Items by origin of their vector",
        "source",
        {**metrics["items"], "reply": kept["items"]},
    )
    yield counter(
        "emb_tokens",
        "Tokens by kind: of items, by origin; and of batches, with and without padding",
        "kind",
        {
            "cached": cached + kept["tokens"],
            "computed": metrics["token_count"] - cached,
            "real": scheduler["token_count"],
            "padded": scheduler["padded_token_count"],
        },
    )
    yield CounterMetricFamily(
        "emb_truncated_items", "Items that were cut", value=metrics["truncated_count"]
    )
    yield CounterMetricFamily(
        "emb_singleflight_joined",
        "Items that waited for another call's computation",
        value=metrics["joined_count"],
    )
    yield from _scheduler(scheduler)
    yield from _cache(metrics["cache"]["tiers"], kept)


def _scheduler(scheduler: Json) -> Iterator[Metric]:
    lanes: Mapping[str, Json] = scheduler["lanes"]
    for key, unit in (("tokens", "Tokens"), ("seconds", "Seconds of work")):
        values = {lane: each[f"queued_{key}"] for lane, each in lanes.items()}
        yield gauge(f"emb_queue_{key}", f"{unit} that wait for the model", "lane", values)
    waits = SummaryMetricFamily(
        "emb_queue_wait_seconds", "Time from arrival to the batch", labels=["lane"]
    )
    for lane, each in lanes.items():
        waits.add_metric([lane], each["waited_count"], each["waited_seconds"])
    yield waits
    batches = scheduler["batch_count"]
    for key, name in (("row", "rows"), ("token", "tokens")):
        family = SummaryMetricFamily(f"emb_batch_{name}", f"Batches, and the {name} in them")
        family.add_metric([], batches, scheduler[f"{key}_count"])
        yield family
    yield GaugeMetricFamily(
        "emb_batch_waste_ratio",
        "Tokens with padding, over those without",
        value=scheduler["waste_ratio"],
    )
    yield counter(
        "emb_batch_close", "Batches by what closed them", "why", scheduler["closed_counts"]
    )
    yield counter(
        "emb_dropped_jobs",
        "Items that nobody wanted any more before they were in a batch",
        "reason",
        {"deadline": scheduler["expired_count"], "cancelled": scheduler["cancelled_count"]},
    )


def _cache(tiers: Mapping[str, Json], kept: Json) -> Iterator[Metric]:
    sizes = {**tiers, "reply": kept}
    for key, text in (("entries", "Entries in a tier"), ("bytes", "Bytes in a tier")):
        known = {tier: each[key] for tier, each in sizes.items() if key in each}
        yield gauge(f"emb_cache_{key}", text, "tier", known)
    for key, text in (
        ("hits", "Entries found in a tier"),
        ("misses", "Entries looked for and not found in a tier"),
        ("evictions", "Entries that made room for others in a tier"),
    ):
        known = {tier: each[key] for tier, each in tiers.items() if key in each}
        yield counter(f"emb_cache_{key}", text, "tier", known)
