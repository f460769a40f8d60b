"""`python -m services.embedding`: serve embeddings over HTTP."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.local_embeddings import ModelBackend
from shared.infrastructure.resilience import ConfigurationError, ServiceError

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return 0, or 1 for a failure, or 2 for wrong settings."""
    options = vars(_parser().parse_args(arguments))
    logging.basicConfig(format=_LOG_FORMAT)
    logging.getLogger("services").setLevel(logging.INFO)
    try:
        settings = EmbeddingSettings.from_options(options)
        from services.embedding.server import serve  # noqa: PLC0415 - optional dependency

        serve(settings)
    except ServiceError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2 if isinstance(exc, ConfigurationError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.embedding",
        description="Serve embeddings over HTTP, in OpenAI's format.",
        epilog="Every setting is an environment variable, such as EMBEDDING_MODEL_NAME or "
        "EMBEDDING_API_KEYS; an option goes before its variable.",
        argument_default=argparse.SUPPRESS,
    )
    option = parser.add_argument
    option("--host", help="address to listen on (127.0.0.1)")
    option("--port", type=int, help="port to listen on; 0 takes a free one (8000)")
    option("--model", dest="model_name", help="hub name, directory or package:NAME")
    option("--backend", choices=[backend.value for backend in ModelBackend], help="(onnx)")
    option("--device", help="auto, cpu, cuda or cuda:N (auto)")
    option("--threads", type=int, help="CPU threads of one forward pass (all)")
    option("--batch-size", type=int, help="texts given to the model at once (32)")
    option("--cache-size", type=int, help="vectors kept; 0 keeps none (1000)")
    option("--remote-url", help="embed by this OpenAI-compatible server instead")
    option("--drain-delay", type=float, help="seconds of service after SIGTERM (5)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
