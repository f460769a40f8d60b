"""`serve`: embeddings over HTTP."""

from __future__ import annotations

import argparse
import logging

from services.embedding.cli.flags import add_flags, settings_of
from services.embedding.cli.output import tell
from shared.infrastructure.resilience import MissingExtraError

SUMMARY = "serve embeddings over HTTP (the default)"
DESCRIPTION = (
    "Serve embeddings over HTTP, in the formats of OpenAI, TEI and Cohere, until SIGTERM or "
    "Ctrl-C; what is in flight is finished."
)
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the process."""
    add_flags(parser, "server", "model", "queue", "cache", "remote server")


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    logging.basicConfig(format=_LOG_FORMAT)
    for name in ("services", "shared.infrastructure.server"):
        logging.getLogger(name).setLevel(logging.INFO)
    settings = settings_of(options)
    try:
        from services.embedding.process.server import serve  # noqa: PLC0415 - an extra's libraries
    except ImportError as exc:
        raise MissingExtraError("the embedding process", "embedding") from exc
    if options.json:
        serve(settings, announce=_as_json)
    else:
        serve(settings)
    return 0


def _as_json(url: str, model: str) -> None:
    tell({"url": url, "model": model}, "", as_json=True)
