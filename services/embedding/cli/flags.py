"""The flags of the settings, in the groups that commands take them by."""

from __future__ import annotations

import argparse

from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.flags import Flags

_GROUPS = {
    "server": (
        "host",
        "port",
        "model_aliases",
        "reranker",
        "max_items",
        "max_request_tokens",
        "max_body_bytes",
        "header_timeout",
        "body_timeout",
        "drain_delay",
        "drain_timeout",
    ),
    "queue": ("max_queue_seconds", "max_bulk_seconds", "bulk_tokens", "request_timeout"),
    "cache": (
        "cache_size",
        "cache_bytes",
        "cache_policy",
        "cache_ttl",
        "cache_numerics",
        "cache_file",
        "cache_file_bytes",
        "cache_redis_timeout",
    ),
    "remote server": (
        "remote_url",
        "remote_api",
        "remote_max_items",
        "remote_max_tokens",
        "remote_hedging",
        "failure_threshold",
        "max_connections",
        "requests_per_second",
        "burst_size",
    ),
    "model": (
        "model_name",
        "backend",
        "device",
        "dtype",
        "threads",
        "workers",
        "isolation",
        "batch_size",
        "max_batch_tokens",
        "max_text_length",
        "model_root",
        "manifest",
        "cache_dir",
    ),
}

FLAGS = Flags(EmbeddingSettings, {"model_name": "model"})

settings_of = FLAGS.settings_of
name_flags = FLAGS.name_flags
flag = FLAGS.flag


def add_flags(parser: argparse.ArgumentParser, *groups: str) -> None:
    """Add the flags of some groups of settings: model, cache, remote server, queue, server."""
    for group in groups:
        FLAGS.add(parser.add_argument_group(group), _GROUPS[group])


def flagged() -> set[str]:
    """Return the settings that have a flag."""
    return {name for names in _GROUPS.values() for name in names}
