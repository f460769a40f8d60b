"""What `embed` and `warm` share: a service for one corpus, and how far it is."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from services.embedding.cli.flags import settings_of
from services.embedding.cli.progress import Advance
from services.embedding.options import EmbedOptions
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.local_embeddings import Progress, Truncation
from shared.infrastructure.local_embeddings.corpus import DEFAULT_WINDOW

# A corpus has the process for itself: nobody is kept waiting by it.
_UNBOUNDED = 1e9


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how texts are read."""
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--input-type", choices=("query", "document"), help="put the model's prompt for it before"
    )
    prompt.add_argument("--prompt-name", metavar="NAME", help="put this prompt of the model before")
    prompt.add_argument("--prompt", metavar="TEXT", help="put this text before each")
    parser.add_argument(
        "--truncate",
        type=Truncation,
        choices=list(Truncation),
        metavar="{end,start,none}",
        help="end of a text to drop if it is too long; none refuses it; default: the model's own",
    )
    parser.add_argument(
        "--window",
        type=int,
        default=DEFAULT_WINDOW,
        metavar="N",
        help=f"texts that are sorted, embedded and written at a time ({DEFAULT_WINDOW})",
    )


def reading_of(options: argparse.Namespace, dimensions: int | None = None) -> EmbedOptions:
    """Return how the arguments want texts to be read."""
    return EmbedOptions(
        input_type=options.input_type,
        prompt_name=options.prompt_name,
        prompt=options.prompt,
        truncation=options.truncate,
        dimensions=dimensions,
    )


def corpus_settings(options: argparse.Namespace) -> EmbeddingSettings:
    """Return the settings of a process that has one corpus to embed, however long it takes."""
    patient = {"max_bulk_seconds": _UNBOUNDED, "request_timeout": _UNBOUNDED}
    return settings_of(options).model_copy(update=patient)


def told(advance: Advance) -> Callable[[Progress], object]:
    """Return what shows how far a corpus is."""

    def tell(state: Progress) -> None:
        failed = f", {state.failed} failed" if state.failed else ""
        advance(state.texts, f"{state.tokens} tokens{failed}")

    return tell
