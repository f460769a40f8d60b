"""`bench`: how fast this machine embeds short texts, and how big its passes should be."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from services.embedding.backends.local import local_config
from services.embedding.cli.flags import add_flags, settings_of
from services.embedding.cli.output import tell
from services.embedding.cli.progress import Advance, progress
from services.embedding.options import CacheUse, EmbedOptions
from services.embedding.service import ProductionEmbeddingService
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.local_embeddings.calibrate import calibrate
from shared.infrastructure.local_embeddings.devices import usable_cpus
from shared.infrastructure.resilience import ConfigurationError, ServiceError

SUMMARY = "measure how fast this machine embeds short texts"
DESCRIPTION = (
    "Embed short texts, each another one, in this process and without HTTP, and print texts and "
    "tokens a second, the time a text takes, and how many shared a pass. With --calibrate, find "
    "out instead how many tokens a pass should hold on this machine, and remember it."
)
_TOPICS = ("rivers", "glass", "bridges", "bees", "tides", "clocks", "maps", "salt", "kites", "ink")
_TOLD = ("backend", "device", "dtype", "workers", "max_batch_tokens")
# Rounds of all callers before the clock starts.
_WARM_ROUNDS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the load, and the flags of the model."""
    parser.add_argument("--texts", type=_positive, default=1000, metavar="N", help="texts (1000)")
    parser.add_argument(
        "--concurrency", type=_positive, default=64, metavar="N", help="callers at once (64)"
    )
    parser.add_argument("--calibrate", action="store_true", help="find the best size of a pass")
    add_flags(parser, "model", "queue", "remote server")


def run(options: argparse.Namespace) -> int:
    """Measure, or calibrate."""
    settings = settings_of(options)
    if options.calibrate:
        return _calibrate(settings, as_json=options.json)
    with progress("texts", lambda: options.texts) as advance:
        result = asyncio.run(_measure(settings, options.texts, options.concurrency, advance))
    tell(result, _lines(result), as_json=options.json)
    return 0


async def _measure(
    settings: EmbeddingSettings, count: int, concurrency: int, advance: Advance
) -> dict[str, Any]:
    async with ProductionEmbeddingService(settings) as service:
        await _embed_all(service, _texts("warm", _WARM_ROUNDS * concurrency), concurrency)
        before = service.get_metrics()
        started = time.perf_counter()
        seconds = await _embed_all(service, _texts("text", count), concurrency, advance)
        elapsed = time.perf_counter() - started
        after, facts = service.get_metrics(), service.facts
    tokens = after["token_count"] - before["token_count"]
    batches, rows = (
        after["scheduler"][name] - before["scheduler"][name]
        for name in ("batch_count", "row_count")
    )
    p50, p99 = (float(value) * 1000 for value in np.percentile(seconds, (50, 99)))
    return {
        "model": facts.model_name,
        "fingerprint": facts.fingerprint,
        **{name: facts.details.get(name) for name in _TOLD},
        "cpus": usable_cpus(),
        "texts": count,
        "concurrency": concurrency,
        "seconds": elapsed,
        "texts_per_second": count / elapsed,
        "tokens_per_second": tokens / elapsed,
        "latency_ms": {"p50": p50, "p99": p99},
        "batches": batches,
        "texts_per_batch": rows / batches if batches else 0.0,
    }


async def _embed_all(
    service: ProductionEmbeddingService,
    texts: Iterator[str],
    concurrency: int,
    advance: Advance | None = None,
) -> list[float]:
    """Embed each text in a call of its own, so many at once; return the seconds of each."""
    seconds: list[float] = []
    options = EmbedOptions(cache=CacheUse.BYPASS)

    async def call() -> None:
        for text in texts:
            began = time.perf_counter()
            await service.embed_batch([text], options)
            seconds.append(time.perf_counter() - began)
            if advance is not None:
                advance(len(seconds), "")

    try:
        async with asyncio.TaskGroup() as callers:
            for _ in range(concurrency):
                callers.create_task(call())
    except ExceptionGroup as failed:
        raise (failed.subgroup(ServiceError) or failed).exceptions[0] from None
    return seconds


def _texts(name: str, count: int) -> Iterator[str]:
    """Yield different texts of some fifteen tokens."""
    for number in range(count):
        one, other = _TOPICS[number % 10], _TOPICS[number // 10 % 10]
        yield f"{name} number {number} says what {one} and {other} have in common"


def _lines(result: dict[str, Any]) -> str:
    return (
        f"{result['model']} on {result['cpus']} CPUs\n"
        f"{result['texts']} texts, {result['concurrency']} at once, {result['seconds']:.1f} s\n"
        f"{result['texts_per_second']:,.0f} texts/s, {result['tokens_per_second']:,.0f} tokens/s\n"
        f"p50 {result['latency_ms']['p50']:.1f} ms, p99 {result['latency_ms']['p99']:.1f} ms\n"
        f"{result['batches']} batches of {result['texts_per_batch']:.1f} texts\n"
    )


def _calibrate(settings: EmbeddingSettings, *, as_json: bool) -> int:
    if settings.remote_url is not None:
        raise ConfigurationError("only a local model can be calibrated: leave --remote-url out")
    found = calibrate(local_config(settings), settings.workers or 1)
    result = {
        "tokens_per_pass": found.chosen.batch_tokens,
        "kept_in": str(found.path),
        "is_noisy": found.is_noisy,
        "tokens_per_second": {str(speed.batch_tokens): speed.median for speed in found.speeds},
    }
    tell(result, found.report(), as_json=as_json)
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
