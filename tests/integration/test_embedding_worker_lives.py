"""Worker processes: how they begin, and that they end with nothing left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.infrastructure.local_embeddings import (
    InferenceError,
    LocalEmbeddingConfig,
    ModelLoadError,
    ModelNotFoundError,
)
from shared.infrastructure.local_embeddings.devices import usable_cpus
from shared.infrastructure.local_embeddings.errors import WorkerCrashedError
from shared.infrastructure.local_embeddings.worker import ProcessBackend
from shared.infrastructure.resilience.errors import ConfigurationError
from tests import worker_backends
from tests.worker_backends import open_obedient
from tests.workers import (
    Open,
    answer,
    ask,
    descriptors,
    is_alive,
    resources,
    traces,
    wait_until,
    waiting,
)

ROOT = Path(__file__).parents[2]


def _unfindable() -> Callable[[LocalEmbeddingConfig], worker_backends.ObedientBackend]:
    def open_nested(config: LocalEmbeddingConfig) -> worker_backends.ObedientBackend:
        return open_obedient(config)

    return open_nested


@pytest.mark.parametrize(
    ("load", "error", "message"),
    [
        (worker_backends.open_missing, ModelNotFoundError, "nothing is called m"),
        (worker_backends.open_broken, ModelLoadError, "cannot load 'm': LookupError: no such"),
        (worker_backends.open_dying, ModelLoadError, "cannot load 'm': .* exit status 7"),
        (worker_backends.open_each_another, ModelLoadError, "have changed since"),
        (_unfindable(), ConfigurationError, "cannot import what opens its backend"),
    ],
    ids=["not found", "broken", "dying", "each another", "no name"],
)
def test_what_cannot_be_loaded_says_why_and_leaves_nothing_behind(
    load: Callable[[LocalEmbeddingConfig], worker_backends.ObedientBackend],
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    before = resources()
    with pytest.raises(error, match=message):
        ProcessBackend(LocalEmbeddingConfig(model_name="m", cache_dir=tmp_path), 2, load)
    assert resources() == before


def test_what_opens_a_backend_cannot_be_of_the_main_script() -> None:
    script = (
        "from shared.infrastructure.local_embeddings import LocalEmbeddingConfig\n"
        "from shared.infrastructure.local_embeddings.worker import ProcessBackend\n"
        "def open_it(config): ...\n"
        "ProcessBackend(LocalEmbeddingConfig(), 1, open_it)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("move it out of the main script")


def test_a_worker_that_never_loads_is_given_up() -> None:
    before = resources()
    with pytest.raises(ModelLoadError, match=r"cannot load 'm': .* no answer for 0.1 s"):
        ProcessBackend(
            LocalEmbeddingConfig(model_name="m"), 2, worker_backends.open_never, load_timeout=0.1
        )
    assert resources() == before


def test_a_crew_of_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 1 worker, not 0"):
        ProcessBackend(LocalEmbeddingConfig(), 0)


def test_a_worker_gets_the_threads_it_is_given_or_its_share(open_: Open, tmp_path: Path) -> None:
    assert open_().spec.token_bytes == 3
    config = LocalEmbeddingConfig(cache_dir=tmp_path)
    sharing = ProcessBackend(config, 2, open_obedient)
    try:
        assert sharing.spec.token_bytes == max(1, usable_cpus() // 2)
    finally:
        sharing.close()


def test_all_workers_are_warmed_up_trimmed_and_closed(
    open_: Open, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    backend = open_(size=2)
    assert ask(backend, "die once") == answer("die once")
    backend.warm_up()  # while the successor may still load
    assert traces(tmp_path, "warmed up") == 2
    running = threads.submit(ask, backend, "wait go")
    wait_until(lambda: waiting(tmp_path))
    backend.trim()
    assert traces(tmp_path, "trimmed") == 2
    assert not running.done()
    os.kill(*waiting(tmp_path), signal.SIGKILL)
    (tmp_path / "go").touch()
    assert running.result() == answer("wait go")
    wait_until(lambda: traces(tmp_path, "warmed up") == 3)
    assert ask(backend, "good") == answer("good")
    backend.close()
    assert traces(tmp_path, "closed") == 2


def test_closing_ends_a_worker_that_hangs_and_tells_who_waits_for_it(
    open_: Open, tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.infrastructure.local_embeddings.worker.backend._GRACE", 0.05)
    backend = open_(timeout=None)
    hanging = threads.submit(ask, backend, "wait forever")
    wait_until(lambda: waiting(tmp_path))
    backend.close()
    backend.close()
    assert not any(map(is_alive, waiting(tmp_path)))
    with pytest.raises(InferenceError, match="the workers were closed"):
        hanging.result()
    with pytest.raises(InferenceError, match="the workers were closed"):
        ask(backend, "anybody there?")


def test_twenty_lives_leave_no_process_descriptor_or_thread(open_: Open) -> None:
    open_().close()
    before = resources()
    for _ in range(20):
        backend = open_()
        assert ask(backend, "good") == answer("good")
        backend.close()
    assert resources() == before


def test_a_crash_leaves_no_zombie_and_no_descriptor(open_: Open) -> None:
    others, _, _ = resources()
    backend = open_()
    _, descriptors, threads = resources()
    with pytest.raises(WorkerCrashedError):
        ask(backend, "exit 3")
    assert ask(backend, "good") == answer("good")
    assert resources() == (others | {*backend.workers["pids"]}, descriptors, threads)


def test_a_worker_hears_neither_ctrl_c_nor_sigterm_and_does_not_pollute_the_output(
    open_: Open, capfd: pytest.CaptureFixture[str]
) -> None:
    backend = open_()
    (pid,) = backend.workers["pids"]
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert ask(backend, "print") == answer("print")
    assert backend.workers["pids"] == [pid]
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err == "polluted\n"


def test_a_worker_holds_nothing_that_its_user_has_open(open_: Open, tmp_path: Path) -> None:
    with (tmp_path / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        (pid,) = open_().workers["pids"]
        held = descriptors(pid)
    assert str(tmp_path / "ours") not in held
    assert sum(name.startswith("socket:") for name in held) == 2


USER = """
import os, signal, sys
from pathlib import Path
from shared.infrastructure.local_embeddings import LocalEmbeddingConfig, TokenizeOptions
from shared.infrastructure.local_embeddings.worker import ProcessBackend
from tests.worker_backends import open_obedient
import numpy as np

backend = ProcessBackend(LocalEmbeddingConfig(cache_dir=Path(sys.argv[1])), 2, open_obedient)
forked = os.fork()  # it holds what the workers could see the end of
if forked == 0:
    signal.pause()
print(forked, *backend.workers["pids"], flush=True)
tokens = backend.tokenize(["wait forever"], TokenizeOptions())
backend.forward(tokens, np.empty((1, 2), np.float32))
"""


def test_workers_end_with_a_user_that_is_killed(tmp_path: Path) -> None:
    user = subprocess.Popen(
        [sys.executable, "-c", USER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with user:
        assert user.stdout is not None
        forked, *workers = map(int, user.stdout.readline().split())
        try:
            wait_until(lambda: waiting(tmp_path))
            assert all(map(is_alive, workers))
            user.kill()
            wait_until(lambda: not any(map(is_alive, workers)))
        finally:
            user.kill()
            os.kill(forked, signal.SIGKILL)
