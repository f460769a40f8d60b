"""How a real process begins and ends."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.embedding_process import PATIENCE, ROOT, Process, process


@pytest.fixture
def doomed() -> Iterator[Process]:
    with process("--drain-delay", "0.5") as running:
        running.wait_ready()
        yield running


def test_a_second_process_on_a_busy_port_says_so(doomed: Process) -> None:
    port = httpx.URL(doomed.url).port
    second = subprocess.run(
        [sys.executable, "-m", "services.embedding", "--port", str(port)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert second.returncode == 2
    assert "Address already in use" in second.stderr
    assert "Traceback" not in second.stderr


def test_an_address_others_reach_is_not_listened_on_without_keys() -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "services.embedding", "--port", "0", "--host", "0.0.0.0"],  # noqa: S104
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert refused.returncode == 2
    assert "EMBEDDING_API_KEYS" in refused.stderr


async def _load(url: str, number: int) -> tuple[int, int]:
    """Send one text after another until the server closes; return requests sent and answered."""
    sent = answered = 0
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        while True:
            sent += 1
            text = f"client {number} says {sent}"
            reply = await client.post("/v1/embeddings", json={"input": text})
            answered += reply.status_code == 200 and len(reply.json()["data"]) == 1
            if reply.headers.get("connection") == "close":
                return sent, answered


async def test_sigterm_under_load_drops_no_request(doomed: Process) -> None:
    async with httpx.AsyncClient(base_url=doomed.url) as client:
        clients = [asyncio.create_task(_load(doomed.url, number)) for number in range(16)]
        await asyncio.sleep(0.2)
        doomed.child.send_signal(signal.SIGTERM)
        ready = await client.get("/health/ready")
        while ready.status_code == 200:
            ready = await client.get("/health/ready")
        assert ready.json() == {"status": "draining"}
        assert (await client.get("/health/live")).status_code == 200
        late = await client.post("/v1/embeddings", json={"input": "while draining"})
        assert late.status_code == 200
    counts = await asyncio.gather(*clients)
    assert all(sent == answered for sent, answered in counts)
    status, errors = await asyncio.to_thread(doomed.finish)
    assert (status, "Traceback" in errors) == (0, False)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", httpx.URL(doomed.url).port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_model_loads_ends_the_process_in_order(number: signal.Signals) -> None:
    with process() as running:
        assert httpx.get(f"{running.url}/health/live").status_code == 200
        running.child.send_signal(number)
        status, errors = running.finish()
    assert (status, "Traceback" in errors) == (0, False)


def test_a_second_signal_skips_the_delay() -> None:
    with process("--drain-delay", "1000") as running:
        running.wait_ready()
        running.child.send_signal(signal.SIGTERM)
        while httpx.get(f"{running.url}/health/ready").status_code == 200:
            time.sleep(0.01)
        running.child.send_signal(signal.SIGTERM)
        status, errors = running.finish()
    assert (status, "Traceback" in errors) == (0, False)


def test_a_model_that_is_not_there_ends_the_process_with_its_name() -> None:
    with process("--model", "package:no_such_model") as running:
        status, errors = running.finish()
    assert status != 0
    assert "no_such_model" in errors
    assert "Traceback" not in errors
