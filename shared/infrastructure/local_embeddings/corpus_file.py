"""Embed a corpus into a file, and go on where a crash left it.

`python -m shared.infrastructure.local_embeddings.corpus_file CORPUS OUT.npy` embeds each line of a
text file (`-` is standard input) or, with `--jsonl FIELD`, a field of each line of a JSON Lines
file. Run it again after a crash: it goes on, and the file is the same as without the crash.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path

from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig, ModelBackend
from shared.infrastructure.local_embeddings.corpus import DEFAULT_WINDOW, Progress
from shared.infrastructure.local_embeddings.model import LocalEmbeddingModel
from shared.infrastructure.local_embeddings.pool import LocalEmbeddingPool
from shared.infrastructure.local_embeddings.vector_file import VectorFile
from shared.infrastructure.resilience.errors import ConfigurationError, ServiceError


async def embed_file(
    model: LocalEmbeddingModel,
    texts: Iterable[str],
    path: Path,
    *,
    prompt: str | None = None,
    dimensions: int | None = None,
    window: int = DEFAULT_WINDOW,
    progress: Callable[[Progress], object] | None = None,
) -> VectorFile:
    """Write one vector a text to a `.npy` file, float32 of shape (n, dimensions), in order.

    The rows of a finished window outlive a crash. If the file is there, it is gone on with: the
    texts must begin with those whose rows it has. Texts that fail have rows of NaN, and are in the
    returned `failures`.

    Args:
        model: The model.
        texts: The corpus, from its beginning.
        path: The file; a small one, `path` + `.progress.json`, is written beside it.
        prompt: As in `LocalEmbeddingModel.embed`.
        dimensions: As in `LocalEmbeddingModel.embed`.
        window: As in `LocalEmbeddingModel.embed_iter`.
        progress: As in `LocalEmbeddingModel.embed_iter`.

    Raises:
        ConfigurationError: The file was begun with another model, other texts or other options.
        ServiceError: As `LocalEmbeddingModel.embed_iter` does; what was written stays.
    """
    await model.load()
    info = model.get_info()
    dimensions = dimensions or int(info["dimensions"] or info["embedding_dimension"])
    identity = {
        "fingerprint": info["fingerprint"],
        "normalize": model.config.normalize,
        "prompt": prompt,
    }
    with VectorFile(path, dimensions, identity) as file:
        corpus = ResumedCorpus(texts, file)
        chunks = model.embed_iter(
            corpus,
            prompt=prompt,
            dimensions=dimensions,
            window=window,
            start=file.rows,
            progress=progress,
        )
        async for chunk in chunks:
            failures = {row: str(error) for row, error in chunk.failures.items()}
            file.append(corpus.forget(len(chunk)), chunk.vectors, failures)
        # A corpus may have ended before the rows of the file did.
        file.check_skipped()
    return file


class ResumedCorpus(Iterator[str]):
    """Yields the texts; compares those that are in the file, and keeps the others until they are.

    Args:
        texts: The corpus, from its beginning.
        file: What has rows of the first of them.
    """

    def __init__(self, texts: Iterable[str], file: VectorFile) -> None:
        self._texts = iter(texts)
        self._file = file
        self._to_skip = file.rows
        self._kept: list[str] = []

    def __next__(self) -> str:
        text = next(self._texts)
        if self._to_skip:
            self._to_skip -= 1
            self._file.skip((text,))
            if not self._to_skip:
                self._file.check_skipped()
        else:
            self._kept.append(text)
        return text

    def forget(self, count: int) -> Sequence[str]:
        """Return the oldest texts, and keep them no longer."""
        texts, self._kept = self._kept[:count], self._kept[count:]
        return texts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    options = _parser().parse_args(arguments)
    config = LocalEmbeddingConfig(
        model_name=options.model, backend=options.backend, device=options.device
    )
    try:
        with _lines(options.corpus) as lines:
            file = asyncio.run(_run(config, options, _texts(lines, options.jsonl)))
    except (ServiceError, OSError, UnicodeError) as exc:
        sys.stderr.write(f"corpus_file: {exc}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ncorpus_file: interrupted; run it again to go on\n")
        return 130
    for row, reason in file.failures.items():
        sys.stderr.write(f"corpus_file: text {row} has no vector: {reason}\n")
    sys.stdout.write(f"{options.out}: {file.rows} vectors\n")
    return 0


async def _run(
    config: LocalEmbeddingConfig, options: argparse.Namespace, texts: Iterable[str]
) -> VectorFile:
    def show(state: Progress) -> None:
        sys.stderr.write(f"\r{state.texts} texts, {state.tokens} tokens")

    is_watched = sys.stderr.isatty()
    workers = options.workers
    model = LocalEmbeddingPool(config, workers) if workers else LocalEmbeddingModel(config)
    async with model:
        try:
            return await embed_file(
                model,
                texts,
                options.out,
                dimensions=options.dimensions,
                window=options.window,
                progress=show if is_watched else None,
            )
        finally:
            if is_watched:
                sys.stderr.write("\n")


@contextlib.contextmanager
def _lines(corpus: str) -> Generator[Iterator[str]]:
    if corpus == "-":
        yield iter(sys.stdin)
        return
    with Path(corpus).open(encoding="utf-8", newline="\n") as file:
        yield iter(file)


def _texts(lines: Iterable[str], field: str | None) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if field is None:
            yield line.rstrip("\r\n")
            continue
        try:
            text = json.loads(line)[field]
        except (ValueError, LookupError, TypeError) as exc:
            raise ConfigurationError(f"line {number} has no field {field!r}: {exc!r}") from exc
        yield text


def _parser() -> argparse.ArgumentParser:
    default = LocalEmbeddingConfig()
    parser = argparse.ArgumentParser(description="Embed a corpus into a .npy file; resumable.")
    parser.add_argument("corpus", help="text file, one text a line; - is standard input")
    parser.add_argument("out", type=Path, help=".npy file to write, or to go on with")
    parser.add_argument("--jsonl", metavar="FIELD", help="lines are JSON; embed this field")
    parser.add_argument("--model", default=default.model_name, help="directory or hub name")
    parser.add_argument(
        "--backend", type=ModelBackend, choices=list(ModelBackend), default=ModelBackend.ONNX
    )
    parser.add_argument("--device", default=default.device, help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dimensions", type=int, help="first numbers of a vector to keep")
    parser.add_argument("--workers", type=int, help="passes at the same time, sharing the CPUs")
    parser.add_argument(
        "--window", type=int, default=DEFAULT_WINDOW, help="texts that are written at a time"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
