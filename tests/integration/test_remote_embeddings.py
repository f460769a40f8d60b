"""The remote backend against a server in a process of its own, on real sockets."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.embedding_client_server import text_of, vectors_of
from services.embedding import EmbeddingSettings, RemoteBackend
from services.embedding.options import Reading

ROOT = Path(__file__).resolve().parents[2]
TEXTS, DIMENSION = 3_000, 48


@contextmanager
def serving(failing: float) -> Iterator[str]:
    numbers = {"dimension": DIMENSION, "texts": TEXTS, "failing": failing}
    options = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    core = str(min(os.sched_getaffinity(0)))
    command = [sys.executable, "-m", "benchmarks.embedding_client_server", *options, "--core", core]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.terminate()


def backend_of(url: str) -> RemoteBackend:
    settings = EmbeddingSettings(
        remote_url=url,
        model_name="fake-embedding",
        remote_max_items=20,
        requests_per_second=1e6,
        burst_size=1_000_000,
        # No run of bad luck is to open the breaker.
        failure_threshold=50,
    )
    return RemoteBackend(settings)


async def test_a_corpus_survives_a_server_that_fails_one_request_in_twenty() -> None:
    texts = [text_of(number) for number in range(TEXTS)]
    with serving(failing=0.05) as url:
        backend = backend_of(url)
        await backend.start()
        corpus = await backend.embed_corpus(texts)
        await backend.stop()
    assert not corpus.failures
    assert np.array_equal(corpus.vectors, vectors_of(range(TEXTS), DIMENSION))


async def test_a_batch_of_the_service_comes_over_a_real_connection() -> None:
    with serving(failing=0.0) as url:
        backend = backend_of(url)
        await backend.start()
        prepared = await backend.prepare([text_of(5), text_of(3)], Reading())
        first, second = await backend.embed(prepared)
        await backend.stop()
    assert np.array_equal(np.stack([first.vector, second.vector]), vectors_of([5, 3], DIMENSION))
