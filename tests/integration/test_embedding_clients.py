"""Clients that know nothing of us, unchanged, against a real process."""

from collections.abc import Iterator

import httpx2
import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from langchain_openai import OpenAIEmbeddings
from openai import AsyncOpenAI, AuthenticationError, NotFoundError, OpenAI, UnprocessableEntityError

from tests.embedding_process import Process, process

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = ["Hello world", "cat", "kitten", "Ünïcödé, 日本語 🚀"]


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with process() as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def vectors(server: Process) -> np.ndarray:
    with OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        answer = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    return np.asarray([item.embedding for item in answer.data], np.float32)


def test_openais_client_gets_the_same_vectors_in_both_formats(
    server: Process, vectors: np.ndarray
) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        answer = client.embeddings.create(model=MODEL, input=TEXTS)
        short = client.embeddings.create(model=MODEL, input="cat", dimensions=64)
        listed = [entry.id for entry in client.models.list()]
    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    assert np.array_equal(np.asarray([item.embedding for item in answer.data]), vectors)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)
    assert len(short.data[0].embedding) == 64
    assert listed == [MODEL]


async def test_openais_async_client_gets_them_too(server: Process, vectors: np.ndarray) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        answer = await client.embeddings.create(
            model=MODEL, input=TEXTS, extra_body={"input_type": "document", "cache": "bypass"}
        )
    found = np.asarray([item.embedding for item in answer.data])
    assert np.allclose(found, vectors, atol=1e-6)


def test_openais_client_knows_our_errors(server: Process) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(NotFoundError, match="no-model"):
            client.embeddings.create(model="no-model", input="a")
        with pytest.raises(UnprocessableEntityError) as refused:
            client.embeddings.create(model=MODEL, input="a", dimensions=1000)
    assert (refused.value.code, refused.value.param) == ("invalid_dimensions", "dimensions")


def test_openais_client_is_refused_without_the_key() -> None:
    with process(api_keys="old, secret") as running:
        running.wait_ready()
        with (
            OpenAI(base_url=f"{running.url}/v1", api_key="wrong") as client,
            pytest.raises(AuthenticationError),
        ):
            client.embeddings.create(model=MODEL, input="a")
        with OpenAI(base_url=f"{running.url}/v1", api_key="secret") as client:
            assert client.embeddings.create(model=MODEL, input="a").data


async def test_langchain_gets_the_same_vectors(server: Process, vectors: np.ndarray) -> None:
    with httpx2.Client() as client:
        async with httpx2.AsyncClient() as async_client:
            embeddings = OpenAIEmbeddings(
                model=MODEL,
                base_url=f"{server.url}/v1",
                api_key="x",
                # Otherwise it sends the token ids of OpenAI's own models.
                check_embedding_ctx_length=False,
                http_client=client,
                http_async_client=async_client,
            )
            assert np.allclose(embeddings.embed_documents(TEXTS), vectors, atol=1e-6)
            assert np.allclose(await embeddings.aembed_query(TEXTS[1]), vectors[1], atol=1e-6)


async def test_hugging_faces_client_gets_the_same_vectors(
    server: Process, vectors: np.ndarray
) -> None:
    client = InferenceClient(model=f"{server.url}/embed")
    found = client.feature_extraction("cat", normalize=True)
    assert found.dtype == np.float32
    assert np.allclose(found, [vectors[1]], atol=1e-6)
    cut = client.feature_extraction("a " * 999, truncate=True, truncation_direction="right")
    assert cut.shape == (1, vectors.shape[1])
    async with AsyncInferenceClient(model=f"{server.url}/embed") as later:
        assert np.allclose(await later.feature_extraction("kitten"), [vectors[2]], atol=1e-6)
