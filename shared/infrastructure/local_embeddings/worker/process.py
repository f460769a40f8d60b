"""One worker process, as its user sees it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

from shared.infrastructure.local_embeddings.backends.protocol import BackendSpec
from shared.infrastructure.local_embeddings.vectors import Vectors
from shared.infrastructure.local_embeddings.worker.channel import Channel, ChannelClosedError, pack
from shared.infrastructure.local_embeddings.worker.messages import Failure, Request, Start

# With our own search path for modules: what the backend is opened by may come from anywhere on it.
_MAIN = """\
import json, sys
sys.path[:] = json.loads(sys.argv.pop())
from shared.infrastructure.local_embeddings.worker.child import main
main(*map(int, sys.argv[1:]))
"""
_TO_THE_GROUP = (signal.SIGINT, signal.SIGTERM)
_REAP = 5.0  # seconds that the system may take to end a process


class WorkerDeath(Exception):  # noqa: N818 - whether it is an error is for the user to say
    """A worker is gone, or was killed; the message says how it ended.

    Attributes:
        was_killed: Whether somebody else killed it.
        was_silent: Whether we killed it, since it did not answer in time.
    """

    was_killed = False
    was_silent = False


class Worker:
    """A process that loads a backend from the moment it is made, while its user goes on.

    It runs one request at a time, and beside it one that comes aside.

    Args:
        start: What it loads.

    Raises:
        OSError: The system starts no more processes.
    """

    def __init__(self, start: Start) -> None:
        self._loaded: BackendSpec | Exception | None = None
        self._killed_for = ""
        (mine, theirs), (my_aside, their_aside) = socket.socketpair(), socket.socketpair()
        self._passes, self._aside = Channel(mine), Channel(my_aside)
        try:
            self._process = _spawn([theirs.fileno(), their_aside.fileno()])
        except BaseException:
            self._passes.close()
            self._aside.close()
            raise
        finally:
            theirs.close()
            their_aside.close()
        # It lies in the socket's buffer until the process reads it. If it has died, that shows.
        with contextlib.suppress(ChannelClosedError):
            self._passes.send(pack(start))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_known(self) -> bool:
        """Whether `spec` has answered, or failed."""
        return self._loaded is not None

    @property
    def has_loaded(self) -> bool:
        """Whether `spec` answers, or fails, at once."""
        return self.is_known or self._passes.has_news

    @property
    def has_died(self) -> bool:
        """Whether it is gone, after it had loaded the model."""
        return self.is_known and self._process.poll() is not None

    @property
    def is_busy_aside(self) -> bool:
        """Whether `run_aside` would wait for another one."""
        return self._aside.lock.locked()

    def spec(self, timeout: float | None) -> BackendSpec:
        """Wait until the model is loaded.

        Raises:
            WorkerDeath: The process ended instead, or took longer than `timeout` seconds.
            ServiceError: The model cannot be loaded.
        """
        loaded = self._loaded
        if loaded is None:
            with self._passes.lock:
                loaded = self._loaded or self._converse(self._passes, None, timeout)
                self._loaded = loaded
        return cast("BackendSpec", _raised(loaded))

    def run(
        self, request: Request, timeout: float | None = None, into: Vectors | None = None
    ) -> Any:
        """Return the answer of the loaded backend; vectors are put `into` an array.

        Raises:
            WorkerDeath: The process ended instead, or took longer than `timeout` seconds.
            Exception: What the backend raised.
        """
        with self._passes.lock:
            return _raised(self._converse(self._passes, request, timeout, into))

    def run_aside(self, request: Request, timeout: float | None = None) -> Any:
        """Return what `run` would, while that runs something else.

        Raises:
            Exception: As `run` does.
        """
        with self._aside.lock:
            return _raised(self._converse(self._aside, request, timeout))

    def hang_up(self) -> None:
        """Ask the process to end; a thread that waits for an answer is told of its death."""
        self._passes.hang_up()
        self._aside.hang_up()

    def end(self, grace: float) -> None:
        """End the process within `grace` seconds, or by force; give everything back."""
        self.hang_up()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._kill("it did not end when it was asked to")
        self._passes.close()
        self._aside.close()

    def _converse(
        self,
        channel: Channel,
        request: Request | None,
        timeout: float | None,
        into: Vectors | None = None,
    ) -> Any:
        """Return an answer, or the error that was one; the caller holds the channel's lock."""
        deadline = None if timeout is None else time.monotonic() + timeout
        message = pack(request) if request else []
        try:
            channel.send(message, deadline)
            answer = channel.receive(deadline, into)
        except TimeoutError:
            self._kill(f"no answer for {timeout:g} s")
            death = WorkerDeath(self._ending())
            death.was_silent = True
            raise death from None
        except ChannelClosedError:
            death = WorkerDeath(self._ending())
            death.was_killed = not self._killed_for and self._process.returncode == -signal.SIGKILL
            raise death from None
        except BaseException:
            # The next request would be given this one's answer.
            self._kill("its answer was not read")
            raise
        return answer.error() if isinstance(answer, Failure) else answer

    def _kill(self, reason: str) -> None:
        self._killed_for = self._killed_for or reason
        self._process.kill()
        # A process that waits for a device may not even end then.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP)

    def _ending(self) -> str:
        try:
            status = self._process.wait(_REAP)
        except subprocess.TimeoutExpired:
            self._kill("it closed its channel")
            status = 0
        if self._killed_for:
            return self._killed_for
        if status >= 0:
            return f"exit status {status}"
        hint = ", as when memory runs out" if status == -signal.SIGKILL else ""
        return f"signal {-status} ({signal.strsignal(-status)}){hint}"


def _raised(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _spawn(ends: Sequence[int]) -> subprocess.Popen[bytes]:
    # The shell's Ctrl-C and the supervisor's SIGTERM go to the whole group. A worker ends with its
    # user; until it can say so itself, it inherits that it does not hear them.
    numbers = map(str, (*ends, os.getpid()))
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_THE_GROUP)
    try:
        return subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-P", "-c", _MAIN, *numbers, json.dumps(sys.path)],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a library prints there is not our output
            pass_fds=ends,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
