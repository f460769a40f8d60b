"""`embed`: the vectors of texts, as JSON lines or as a `.npy` file."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from services.embedding.cli.bulk import add_reading, corpus_settings, reading_of, told
from services.embedding.cli.flags import add_flags
from services.embedding.cli.output import tell, warn
from services.embedding.cli.progress import progress
from services.embedding.cli.texts import add_source, count_lines, texts_of
from services.embedding.options import EmbedOptions
from services.embedding.results import VectorForm
from services.embedding.sync import SyncEmbeddingService
from shared.infrastructure.local_embeddings import EmbeddedChunk, Progress
from shared.infrastructure.local_embeddings.corpus_file import ResumedCorpus
from shared.infrastructure.local_embeddings.vector_file import VectorFile
from shared.infrastructure.resilience import ConfigurationError

SUMMARY = "embed texts of a file, of standard input, or given as arguments"
DESCRIPTION = (
    "Embed texts, and write one JSON object a text to standard output, in their order; or, with "
    "--out, a .npy file that survives a crash: run the same command again, and it goes on. A text "
    "that fails does not stop the others; the exit status is then 1."
)
_Chunks = Callable[[Iterable[str], int], Iterator[EmbeddedChunk]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the source, the form and the flags of the model."""
    add_source(parser, nargs="?")
    parser.add_argument("--text", action="append", metavar="TEXT", help="a text; may be repeated")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.npy", help="write a file, or go on with it"
    )
    parser.add_argument(
        "--dimensions", type=int, metavar="N", help="first numbers of each vector to keep"
    )
    add_reading(parser)
    add_flags(parser, "model", "cache", "remote server")


def run(options: argparse.Namespace) -> int:
    """Embed; return 1 if a text has no vector."""
    settings, wanted = corpus_settings(options), reading_of(options, options.dimensions)
    with _texts(options) as texts, SyncEmbeddingService(settings) as service, _bar(options) as show:

        def chunks(corpus: Iterable[str], start: int = 0) -> Iterator[EmbeddedChunk]:
            return service.embed_iter(
                corpus, wanted, window=options.window, start=start, progress=show
            )

        if options.out is None:
            failures = _write_lines(chunks(texts))
        else:
            service.count_tokens([""], wanted)  # refuses a prompt before there is a file
            width = VectorForm(service.facts.dimension, wanted).width
            with VectorFile(options.out, width, _identity(service, wanted)) as file:
                _write_rows(file, texts, chunks)
            failures = file.failures
            _tell_file(options, file, width)
    for row, reason in failures.items():
        warn(f"text {row} has no vector: {reason}")
    return 1 if failures else 0


def _write_lines(chunks: Iterable[EmbeddedChunk]) -> Mapping[int, str]:
    """Write what came of each text as a line of JSON; return why some have no vector."""
    failures: dict[int, str] = {}
    for chunk in chunks:
        failures |= {row: str(error) for row, error in chunk.failures.items()}
        for row in range(len(chunk)):
            sys.stdout.write(json.dumps(_line(chunk, row)) + "\n")
        sys.stdout.flush()
    return failures


def _line(chunk: EmbeddedChunk, row: int) -> dict[str, Any]:
    index = chunk.start + row
    if (failure := chunk.failures.get(index)) is not None:
        return {"index": index, "error": {"code": failure.code, "message": str(failure)}}
    return {
        "index": index,
        "embedding": chunk.vectors[row].tolist(),
        "token_count": chunk.token_counts[row],
        "truncated": chunk.truncated[row],
    }


def _write_rows(file: VectorFile, texts: Iterable[str], chunks: _Chunks) -> None:
    """Write a row a text, those left out that the file has already."""
    corpus = ResumedCorpus(texts, file)
    try:
        for chunk in chunks(corpus, file.rows):
            reasons = {row: str(error) for row, error in chunk.failures.items()}
            file.append(corpus.forget(len(chunk)), chunk.vectors, reasons)
        file.check_skipped()
    except KeyboardInterrupt:
        warn(f"\n{file.rows} rows are safe: run the same command again to go on")
        raise


def _identity(service: SyncEmbeddingService, wanted: EmbedOptions) -> dict[str, Any]:
    """Return all that the rows of a file depend on beside its texts."""
    facts = service.facts
    return {
        "fingerprint": facts.fingerprint,
        "normalize": wanted.normalize,
        "prompts": {**facts.prompts, "": facts.default_prompt},
        "input_type": wanted.input_type,
        "prompt_name": wanted.prompt_name,
        "prompt": wanted.prompt,
        "truncation": wanted.truncation,
        "max_text_length": service.settings.max_text_length,
    }


def _tell_file(options: argparse.Namespace, file: VectorFile, width: int) -> None:
    result = {
        "out": str(options.out),
        "rows": file.rows,
        "dimensions": width,
        "failures": {str(row): reason for row, reason in file.failures.items()},
    }
    tell(result, f"{options.out}: {file.rows} vectors", as_json=options.json)


@contextlib.contextmanager
def _texts(options: argparse.Namespace) -> Generator[Iterator[str]]:
    if (options.file is None) == (options.text is None):
        raise ConfigurationError("give either a FILE (- is standard input) or --text")
    if options.text is not None:
        yield iter(options.text)
        return
    with texts_of(options.file, options.field) as texts:
        yield texts


@contextlib.contextmanager
def _bar(options: argparse.Namespace) -> Generator[Callable[[Progress], object]]:
    def total() -> int | None:
        return len(options.text) if options.text else count_lines(options.file)

    # Lines that scroll by are progress enough.
    quiet = options.out is None and sys.stdout.isatty()
    with progress("texts", total, quiet=quiet) as advance:
        yield told(advance)
