"""The worker process: loads a backend, and answers what it is asked until its user is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any, cast

import numpy as np

from shared.infrastructure.local_embeddings.backends.protocol import EmbeddingBackend
from shared.infrastructure.local_embeddings.errors import InferenceError, ModelLoadError
from shared.infrastructure.local_embeddings.worker.channel import Channel, ChannelClosedError, pack
from shared.infrastructure.local_embeddings.worker.messages import Failure, Request, Start


def main(passes_fd: int, aside_fd: int, user: int) -> None:
    """Serve one user; the process ends with it.

    Args:
        passes_fd: Socket of the requests that run one after another.
        aside_fd: Socket of those that run beside them.
        user: Process id of who holds the other ends.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not SIG_IGN, which processes that the backend starts would inherit.
        signal.signal(number, _leave_it_to_the_user)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    threading.Thread(target=_follow, args=(user,), daemon=True).start()
    passes, aside = _adopt(passes_fd), _adopt(aside_fd)
    with contextlib.suppress(ChannelClosedError):
        _work(passes, aside)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of native libraries do not always survive the end of the interpreter.
    os._exit(0)


def _leave_it_to_the_user(number: int, frame: FrameType | None) -> None:
    """Go on: the signal went to the whole group, and this process ends with its user."""


def _follow(user: int) -> None:
    """End this process soon after its user.

    The end of the channels is not seen in a pass that never ends, nor while a process that the user
    forked holds them, too.
    """
    while os.getppid() == user:
        time.sleep(1.0)
    os._exit(1)


def _adopt(fd: int) -> Channel:
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    return Channel(sock)


def _work(passes: Channel, aside: Channel) -> None:
    start: Start | None = None
    try:
        start = cast("Start", passes.receive())
        backend = start.open(start.config)
        if start.warm_up:
            backend.warm_up()
        facts = pack(backend.spec)
    except Exception as exc:
        name = repr(start.config.model_name) if start else "the model"
        passes.send(pack(Failure.of(exc, ModelLoadError, f"cannot load {name}")))
        return
    try:
        passes.send(facts)
        threading.Thread(target=_serve, args=(aside, backend), daemon=True).start()
        _serve(passes, backend)
    finally:
        backend.close()


def _serve(channel: Channel, backend: EmbeddingBackend) -> None:
    try:
        while True:
            request: Request = channel.receive()
            channel.send(pack(_run(backend, request)))
    except ChannelClosedError:
        return


def _run(backend: EmbeddingBackend, request: Request) -> Any:
    try:
        if request.method != "forward":
            return getattr(backend, request.method)(*request.arguments)
        (batch,) = request.arguments
        vectors = np.empty((len(batch), backend.spec.dimension), np.float32)
        backend.forward(batch, vectors)
    except BaseException as exc:  # libraries in Rust panic with errors that are no Exception
        error = exc if isinstance(exc, Exception) else RuntimeError(repr(exc))
        return Failure.of(error, InferenceError, "inference failed")
    return vectors
