import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from process_client import POST, process
from process_service import ScriptedService

from services.embedding import EmbeddingSettings
from services.embedding.options import EmbedOptions
from services.embedding.process.embedding import most_tokens, ranges
from services.embedding.process.query import Query, cut_items
from services.embedding.process.writing import token_rows
from shared.infrastructure.local_embeddings import Truncation


async def test_answers_differ_by_what_is_accepted_only_where_they_do() -> None:
    async with process() as running:
        for number in range(20):
            accept = {"accept": str(number) * 1000}
            await running.post({"input": "cached"}, headers=accept)
        kept = running.app._replies.snapshot()
        raw = {"accept": "application/octet-stream"}
        vectors = await running.post({"input": "cached"}, headers=raw)
    assert kept["entries"] == 1
    assert kept["bytes"] > 500
    assert vectors.headers["x-embedding-shape"] == "1,16"


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [(Truncation.START, "cdefg"), (Truncation.END, "abcde"), (Truncation.NONE, "abcde")],
)
def test_of_a_long_text_no_more_is_held_than_shows_that_it_is_cut(
    truncation: Truncation, kept: str
) -> None:
    given: list[Any] = ["abcdefg", "abc", (1, 2, 3, 4, 5, 6)]
    for query, side in (
        (Query(given, EmbedOptions(truncation=truncation)), Truncation.END),
        (Query(given, EmbedOptions()), truncation),
    ):
        cut_items(query, 4, side)
        assert query.items == [kept, "abc", (1, 2, 3, 4, 5, 6)]


async def test_a_text_too_long_does_not_get_to_the_service_whole() -> None:
    async with process(max_text_length=10) as running:
        await running.post({"input": ["a" * 1000]})
        ((items, _),) = running.service.calls
    assert items == ["a" * 11]


def test_a_byte_may_be_a_token() -> None:
    facts = ScriptedService(EmbeddingSettings()).facts
    query = Query(["é" * 100, "a" * 10, (1, 2, 3)], EmbedOptions())
    assert most_tokens(query, facts) == 213 + 3 * (8 + len("q: "))


async def test_texts_with_more_bytes_than_tokens_allowed_are_counted() -> None:
    async with process(max_request_tokens=300) as running:

        async def count_tokens(items: Any, options: Any) -> list[int]:
            return [len(item.encode()) for item in items]

        running.service.count_tokens = count_tokens  # type: ignore[method-assign]
        assert (await running.post({"input": "\N{NAZAR AMULET}" * 120})).status_code == 413


def test_very_many_positions_are_told_by_their_number() -> None:
    told = ranges(range(0, 2048, 2))
    assert told == "0-2046 (1024)"
    assert ranges(range(2048)) == "0-2047"


async def test_a_large_reply_of_tokens_leaves_others_their_turn() -> None:
    rows = [list(range(5000)), [], [1], *[[7] * 100] * 100]
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    body = await token_rows(rows)
    task.cancel()
    assert json.loads(body) == [[{"id": token} for token in row] for row in rows]
    assert turns >= 6


@pytest.mark.parametrize("path", ["/rerank", "/similarity", "/tokenize"])
async def test_every_route_that_works_has_a_deadline(path: str) -> None:
    async with process(request_timeout=7) as running:
        service = running.service
        for body, seconds in ((POST[path], 7), ({**POST[path], "deadline_ms": 250}, 0.25)):
            assert (await running.post(body, path)).status_code == 200
            told = [options.timeout for _, options in service.calls] + service.timeouts
            assert told[-1] == seconds
        assert (await running.post({**POST[path], "deadline_ms": 0}, path)).status_code == 400


async def test_similarity_may_be_urgent_uncached_and_of_queries() -> None:
    how = {"priority": "interactive", "cache": "bypass", "input_type": "query"}
    async with process() as running:
        for body in ({**POST["/similarity"], **how}, {**POST["/similarity"], "parameters": how}):
            assert (await running.post(body, "/similarity")).status_code == 200
        assert (
            await running.post(
                {**POST["/similarity"], **how, "prompt_name": "query"}, "/similarity"
            )
        ).status_code == 400
        for _, options in running.service.calls:
            assert (options.lane, options.cache, options.input_type) == (*how.values(),)


async def test_the_model_that_answered_is_named() -> None:
    async with process() as running:
        tokens = await running.post(POST["/tokenize"], "/tokenize")
        ranked = await running.post(POST["/rerank"], "/rerank")
        reranker = SimpleNamespace(snapshot=lambda: {"fingerprint": "reranker-1"})
        running.service.reranker = reranker  # type: ignore[assignment]
        named = await running.post(POST["/rerank"], "/rerank")
    assert tokens.headers["x-embedding-fingerprint"] == "space-1"
    assert "x-embedding-fingerprint" not in ranked.headers
    assert named.headers["x-embedding-fingerprint"] == "reranker-1"
