"""One contender of `embedding_client` in a process of its own, which is told when it is its turn.

It answers each line with a `Turn`, as a line of JSON; the first comes unasked, for a few inputs. An
`error` is the last line: what comes after one shows nothing.
"""

# ruff: noqa: PLC0415 - no process holds a library that another contender needs

import asyncio
import base64
import gc
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.embedding_client_server import text_of, vectors_of
from benchmarks.embedding_worker import busy_seconds

_CHECKED = 10_000
_MODEL = "fake-embedding"
_FEW = 2_000


class Task(NamedTuple):
    """What all contenders have to do.

    Attributes:
        url: Where the server is.
        inputs: Texts in a turn.
        dimension: Numbers in a vector.
        batch: Texts in a request.
        concurrency: Requests at the same time at most.
        core: Processor to run on.
    """

    url: str
    inputs: int
    dimension: int
    batch: int
    concurrency: int
    core: int


class Turn(NamedTuple):
    """One turn of a contender.

    Attributes:
        inputs: How many it was given.
        seconds: How long it took.
        cpu: Processor seconds of its process.
        others: Share of its processor's time that others used meanwhile, 0 to 1.
        lost: Inputs without a vector.
        wrong: Inputs with a vector that is another's, or nobody's.
    """

    inputs: int
    seconds: float
    cpu: float
    others: float
    lost: int
    wrong: int


Vectors = Sequence[Any]
"""A vector for each input, None for one that is lost: rows of an array, or lists of numbers."""
Embed = Callable[[list[str]], Vectors]


def _ours(task: Task) -> Embed:
    from services.embedding import EmbeddingSettings, RemoteBackend

    settings = EmbeddingSettings(
        remote_url=f"{task.url}/v1",
        model_name=_MODEL,
        remote_max_items=task.batch,
        max_connections=task.concurrency,
        # A limit that never makes a call wait.
        requests_per_second=1e6,
        burst_size=1_000_000,
    )
    backend, loop = RemoteBackend(settings), asyncio.Runner()
    loop.run(backend.start())

    def embed(texts: list[str]) -> Vectors:
        corpus = loop.run(backend.embed_corpus(texts))
        if not corpus.failures:
            return corpus.vectors
        return [None if at in corpus.failures else row for at, row in enumerate(corpus.vectors)]

    return embed


def _baseten(task: Task, *, as_base64: bool = False) -> Embed:
    from baseten_performance_client import PerformanceClient, RequestProcessingPreference

    client = PerformanceClient(base_url=task.url, api_key="none")
    preference = RequestProcessingPreference(
        batch_size=task.batch,
        max_concurrent_requests=task.concurrency,
        max_chars_per_request=1_048_576,  # its most; or it would make smaller requests
    )

    def embed(texts: list[str]) -> Vectors:
        if not as_base64:
            return client.embed(texts, _MODEL, preference=preference).numpy()
        reply = client.embed(texts, _MODEL, encoding_format="base64", preference=preference)
        rows = [np.frombuffer(base64.b64decode(item.embedding), "<f4") for item in reply.data]
        return np.stack(rows)

    return _or_lost(embed)


def _or_lost(embed: Embed) -> Embed:
    """Return an `embed` that gives all or nothing as one that tells what is lost."""

    def tried(texts: list[str]) -> Vectors:
        try:
            return embed(texts)
        except Exception as error:  # whatever it is, all is lost
            logging.getLogger(__name__).warning("%s", error)
            return [None] * len(texts)

    return tried


def _openai(task: Task) -> Embed:
    """Open it as its users do: a task for each batch, and a semaphore."""
    from openai import AsyncOpenAI

    loop = asyncio.Runner()
    client = AsyncOpenAI(base_url=f"{task.url}/v1", api_key="none")

    async def gathered(texts: list[str]) -> Vectors:
        semaphore = asyncio.Semaphore(task.concurrency)

        async def one(batch: list[str]) -> Vectors:
            async with semaphore:
                try:
                    reply = await client.embeddings.create(model=_MODEL, input=batch)
                except Exception as error:  # these are lost, the others go on
                    logging.getLogger(__name__).warning("%s", error)
                    return [None] * len(batch)
            return [item.embedding for item in reply.data]

        batches = [texts[at : at + task.batch] for at in range(0, len(texts), task.batch)]
        parts = await asyncio.gather(*map(one, batches))
        return [vector for part in parts for vector in part]

    return lambda texts: loop.run(gathered(texts))


ARMS: dict[str, Callable[[Task], Embed]] = {
    "ours": _ours,
    "baseten-performance-client": _baseten,
    "baseten-performance-client, base64": lambda task: _baseten(task, as_base64=True),
    "AsyncOpenAI": _openai,
}


def lost_and_wrong(vectors: Vectors, dimension: int) -> tuple[int, int]:
    """Return how many inputs have no vector, and how many not their own."""
    lost = wrong = 0
    for start in range(0, len(vectors), _CHECKED):
        part = vectors[start : start + _CHECKED]
        here = [at for at, vector in enumerate(part) if vector is not None]
        lost += len(part) - len(here)
        if here:
            found = np.asarray([part[at] for at in here], np.float32)
            wanted = vectors_of(np.array(here) + start, dimension)
            same = found.shape == wanted.shape and np.all(found == wanted, axis=1)
            wrong += len(here) - int(np.sum(same))
    return lost, wrong


def take_turn(embed: Embed, texts: list[str], task: Task) -> Turn:
    gc.collect()
    stat = Path("/proc/stat")
    busy = busy_seconds(stat.read_text(), [task.core])
    cpu, began = time.process_time(), time.perf_counter()
    vectors = embed(texts)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    busy = busy_seconds(stat.read_text(), [task.core]) - busy
    lost, wrong = lost_and_wrong(vectors, task.dimension)
    lost += len(texts) - len(vectors)
    return Turn(len(texts), seconds, cpu, max(0.0, busy - cpu) / seconds, lost, wrong)


def main(arm: str, task: Task) -> None:
    # What a library prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.sched_setaffinity(0, {task.core})
    texts = [text_of(number) for number in range(task.inputs)]
    try:
        embed = ARMS[arm](task)
        print(json.dumps(take_turn(embed, texts[:_FEW], task)._asdict()), file=answers)
        for _ in sys.stdin:
            print(json.dumps(take_turn(embed, texts, task)._asdict()), file=answers)
    except Exception as error:  # whatever it is, it is this contender's result
        text = str(error).partition("\n")[0]
        print(json.dumps({"error": f"{type(error).__name__}: {text}"}), file=answers)


if __name__ == "__main__":
    main(sys.argv[1], Task(**json.loads(sys.argv[2])))
    # Nothing is closed: a contender's way of closing down is not what is measured.
    os._exit(0)
