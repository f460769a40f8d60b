"""`warm`: fill the cache before anybody asks."""

from __future__ import annotations

import argparse

from services.embedding.cli.bulk import add_reading, corpus_settings, reading_of, told
from services.embedding.cli.flags import add_flags
from services.embedding.cli.output import tell, warn
from services.embedding.cli.progress import progress
from services.embedding.cli.texts import add_source, count_lines, texts_of
from services.embedding.settings import EmbeddingSettings
from services.embedding.sync import SyncEmbeddingService
from shared.infrastructure.resilience import ConfigurationError

SUMMARY = "fill the cache on disk or in Redis with the vectors of a file's texts"
DESCRIPTION = (
    "Embed the texts of a file, so that their vectors are in the cache on disk (--cache-file) or "
    "in Redis (EMBEDDING_CACHE_REDIS_URL) before anybody asks. What is there costs nothing: run it "
    "again after a crash. A text that fails does not stop the others; the exit status is then 1."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the source, and the flags of model and cache."""
    add_source(parser)
    add_reading(parser)
    add_flags(parser, "model", "cache", "remote server")


def run(options: argparse.Namespace) -> int:
    """Warm; return 1 if a text has no vector."""
    settings = corpus_settings(options)
    _check_cache(settings)
    texts_count = token_count = 0
    failures: dict[int, str] = {}
    with (
        texts_of(options.file, options.field) as texts,
        SyncEmbeddingService(settings) as service,
        progress("texts", lambda: count_lines(options.file)) as advance,
    ):
        for chunk in service.embed_iter(
            texts, reading_of(options), window=options.window, progress=told(advance)
        ):
            texts_count += len(chunk)
            token_count += sum(chunk.token_counts)
            failures |= {row: str(error) for row, error in chunk.failures.items()}
        cached = service.get_metrics()["items"]["cached"]
    for row, reason in failures.items():
        warn(f"text {row} has no vector: {reason}")
    result = {
        "texts": texts_count,
        "tokens": token_count,
        "were_cached": cached,
        "failures": {str(row): reason for row, reason in failures.items()},
    }
    line = f"{texts_count} texts, {token_count} tokens; {cached} were in the cache already"
    tell(result, line, as_json=options.json)
    return 1 if failures else 0


def _check_cache(settings: EmbeddingSettings) -> None:
    if settings.cache_file is None and settings.cache_redis_url is None:
        raise ConfigurationError(
            "the cache in memory ends with this command: set --cache-file, or "
            "EMBEDDING_CACHE_REDIS_URL"
        )
