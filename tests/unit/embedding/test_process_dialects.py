import base64
import json
from typing import Any

import numpy as np
import pytest
from process_client import EMBED, process
from process_service import DIMENSION, vector_of

from services.embedding import EmbeddingSettings
from services.embedding.options import CacheUse, Lane
from shared.infrastructure.local_embeddings import Truncation


def unit(item: str | tuple[int, ...], width: int = DIMENSION) -> np.ndarray:
    vector = vector_of(item)[:width]
    return vector / np.linalg.norm(vector)


async def test_openais_answer_has_the_vectors_in_order_and_says_what_was_read() -> None:
    async with process() as running:
        reply = await running.post({"input": ["cached", "a " * 9], "model": "model", "user": "me"})
    body = reply.json()
    assert (body["object"], body["model"], body["fingerprint"]) == ("list", "model", "space-1")
    assert body["usage"] == {"prompt_tokens": 11, "total_tokens": 11, "cached_tokens": 3}
    for index, text in enumerate(["cached", "a " * 9]):
        item = body["data"][index]
        assert (item["object"], item["index"]) == ("embedding", index)
        assert (item["token_count"], item["truncated"]) == ((3, False), (8, True))[index]
        assert np.allclose(item["embedding"], unit(text), atol=1e-6)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-embedding-fingerprint"] == "space-1"
    assert reply.headers["x-embedding-tokens"] == "11"
    assert reply.headers["x-embedding-truncated"] == "1"


@pytest.mark.parametrize(
    ("given", "items"),
    [
        ("a", ["a"]),
        (["a", ""], ["a", ""]),
        ([1, 2, 3], [(1, 2, 3)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
async def test_openais_input_is_a_text_or_token_ids_or_many_of_either(
    given: object, items: list[Any]
) -> None:
    async with process() as running:
        reply = await running.post({"input": given})
        assert list(running.service.calls[0][0]) == items
    assert len(reply.json()["data"]) == len(items)


async def test_one_list_of_token_ids_may_be_longer_than_a_request_may_have_items() -> None:
    async with process(max_items=2) as running:
        assert (await running.post({"input": [1, 2, 3]})).status_code == 200


async def test_the_extension_fields_are_understood_on_openais_route() -> None:
    async with process(api_keys="secret") as running:
        await running.post(
            {
                "input": "a",
                "input_type": "search_query",
                "truncate": "START",
                "normalize": False,
                "priority": "interactive",
                "deadline_ms": 1500,
                "cache": "refresh",
                "dimensions": 3,
                "unknown": {"is": "ignored"},
            },
            headers={"authorization": "Bearer secret"},
        )
        options = running.service.calls[0][1]
    assert (options.input_type, options.truncation) == ("query", Truncation.START)
    assert (options.normalize, options.lane, options.timeout) == (False, Lane.INTERACTIVE, 1.5)
    assert (options.cache, options.dimensions) == (CacheUse.REFRESH, 3)
    assert options.tenant
    assert "secret" not in options.tenant


@pytest.mark.parametrize("path", EMBED)
async def test_a_request_that_names_no_deadline_has_that_of_the_settings(path: str) -> None:
    async with process(request_timeout=7) as running:
        await running.post(EMBED[path], path)
        assert running.service.calls[0][1].timeout == 7


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"),
    [
        ("float32", "<f4"),
        ("float16", "<f2"),
        ("int8", "i1"),
        ("uint8", "u1"),
        ("binary", "i1"),
        ("ubinary", "u1"),
    ],
)
async def test_numbers_base64_and_raw_rows_are_the_same_vector(
    dtype: str, numpy_dtype: str
) -> None:
    async with process() as running:
        body = {"input": ["a", "b"], "embed_dtype": dtype}
        plain = (await running.post(body)).json()
        coded = (await running.post({**body, "encoding_format": "base64"})).json()
        raw = await running.post(body, headers={"accept": "application/octet-stream"})
    shape = [int(part) for part in raw.headers["x-embedding-shape"].split(",")]
    rows = np.frombuffer(raw.content, numpy_dtype).reshape(shape)
    assert raw.headers["x-embedding-dtype"] == dtype
    assert raw.headers["x-embedding-fingerprint"] == "space-1"
    assert raw.headers["x-embedding-token-counts"] == "3,3"
    assert raw.headers["x-embedding-truncated"] == "none"
    assert json.loads(raw.headers["x-embedding-usage"])["prompt_tokens"] == 6
    for row, listed, text in zip(rows, plain["data"], coded["data"], strict=True):
        assert np.array_equal(np.frombuffer(base64.b64decode(text["embedding"]), numpy_dtype), row)
        assert np.array_equal(np.asarray(listed["embedding"], row.dtype), row)
    assert ("reach" in plain) == (dtype in {"int8", "uint8"})


async def test_dimensions_shorten_the_vectors_of_every_dialect() -> None:
    async with process() as running:
        openai = await running.post({"input": "a", "dimensions": 3})
        tei = await running.post({"inputs": "a", "dimensions": 3}, "/embed")
        cohere = await running.post(
            {"texts": ["a"], "input_type": "search_query", "output_dimension": 3}, "/v2/embed"
        )
    for vector in (
        openai.json()["data"][0]["embedding"],
        tei.json()[0],
        cohere.json()["embeddings"]["float"][0],
    ):
        assert np.allclose(vector, unit("a", 3), atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "truncation"),
    [
        ({}, None),
        ({"truncate": True}, None),
        ({"truncate": False}, Truncation.NONE),
        ({"truncation_direction": "left"}, Truncation.START),
        ({"truncation_direction": "Right", "truncate": True}, Truncation.END),
    ],
)
async def test_tei_says_in_its_own_words_what_is_cut(
    fields: dict[str, Any], truncation: Truncation | None
) -> None:
    async with process() as running:
        reply = await running.post({"inputs": "a", "prompt_name": "query", **fields}, "/embed")
        options = running.service.calls[0][1]
    assert np.allclose(reply.json(), [unit("a")], atol=1e-6)
    assert (options.truncation, options.prompt_name) == (truncation, "query")
    assert reply.headers["x-embedding-fingerprint"] == "space-1"


async def test_cohere_gets_every_type_it_asks_for_by_its_name() -> None:
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    async with process() as running:
        reply = await running.post(
            {"texts": ["a", "b"], "input_type": "search_document", "embedding_types": types},
            "/v2/embed",
        )
        assert running.service.calls[0][1].input_type == "document"
    body = reply.json()
    vectors = body["embeddings"]
    assert list(vectors) == types
    assert np.allclose(vectors["float"], [unit("a"), unit("b")], atol=1e-6)
    assert np.array_equal(np.asarray(vectors["int8"]) + 128, vectors["uint8"])
    assert np.array_equal(np.asarray(vectors["binary"]) + 128, vectors["ubinary"])
    first = np.frombuffer(base64.b64decode(vectors["base64"][0]), "<f4")
    assert np.array_equal(first, np.asarray(vectors["float"][0], np.float32))
    assert body["response_type"] == "embeddings_by_type"
    assert body["meta"]["billed_units"] == {"input_tokens": 6}
    assert body["meta"]["token_counts"] == [3, 3]
    assert body["meta"]["truncated"] == [False, False]


@pytest.mark.parametrize(
    ("kind", "input_type", "prompt_name"),
    [
        ("search_query", "query", None),
        ("search_document", "document", None),
        ("clustering", None, "clustering"),
        ("classification", None, None),
    ],
)
async def test_coheres_kinds_choose_the_prompts_that_the_model_has(
    kind: str, input_type: str | None, prompt_name: str | None
) -> None:
    async with process() as running:
        await running.post({"texts": ["a"], "input_type": kind}, "/v2/embed")
        options = running.service.calls[0][1]
    assert (options.input_type, options.prompt_name) == (input_type, prompt_name)


async def test_similarity_answers_the_cosine_with_each_sentence() -> None:
    async with process() as running:
        reply = await running.post(
            {"inputs": {"source_sentence": "a", "sentences": ["a", "b"]}}, "/similarity"
        )
    assert np.allclose(reply.json(), [1.0, unit("a") @ unit("b")], atol=1e-6)


async def test_rerank_answers_positions_and_scores_best_first() -> None:
    async with process() as running:
        body = {"query": "q", "texts": ["b", "ccc", "dd"], "return_text": True, "top_n": 2}
        reply = await running.post(body, "/rerank")
    assert reply.json() == [
        {"index": 1, "score": 3.0, "text": "ccc"},
        {"index": 2, "score": 2.0, "text": "dd"},
    ]


async def test_tokenize_answers_the_ids_of_each_text() -> None:
    async with process() as running:
        reply = await running.post({"inputs": "a b"}, "/tokenize")
    assert reply.json() == [[{"id": 101}, {"id": 0}, {"id": 1}, {"id": 102}]]


async def test_info_tells_the_model_and_its_limits() -> None:
    async with process(max_items=7) as running:
        body = (await running.get("/info")).json()
    assert (body["model_id"], body["fingerprint"]) == ("fake/model", "space-1")
    assert (body["dimensions"], body["max_input_length"]) == (DIMENSION, 8)
    assert body["max_client_batch_size"] == 7
    assert body["prompts"] == ["clustering", "document", "query"]


async def test_models_lists_every_name_a_client_may_use() -> None:
    async with process(model_aliases="text-embedding-3-small") as running:
        names = [entry["id"] for entry in (await running.get("/v1/models")).json()["data"]]
        assert names == ["fake/model", "text-embedding-3-small"]
        for name in names:
            assert (await running.post({"input": "a", "model": name})).json()["model"] == name


async def test_a_large_answer_is_written_in_slices_with_the_same_content() -> None:
    texts = [f"text {number}" for number in range(2048)]
    async with process(max_request_tokens=EmbeddingSettings().max_request_tokens) as running:
        listed = (await running.post({"input": texts})).json()["data"]
        bare = (await running.post({"inputs": texts}, "/embed")).json()
    assert [item["index"] for item in listed] == list(range(2048))
    assert [item["embedding"] for item in listed] == bare
    assert np.allclose(bare[1999], unit("text 1999"), atol=1e-6)
