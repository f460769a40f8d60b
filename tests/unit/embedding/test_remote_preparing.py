import asyncio

import pytest
from remote_server import Remote, same

from services.embedding import NotOfferedError
from services.embedding.backends.protocol import Prepared
from services.embedding.options import Reading
from shared.infrastructure.local_embeddings import InvalidTextError, Truncation


@pytest.mark.parametrize(
    ("items", "is_now"), [(["a"] * 32, True), (["a"] * 33, False), (["a" * 10_000] * 2, False)]
)
async def test_only_what_takes_no_time_is_prepared_at_once(items: list[str], is_now: bool) -> None:
    backend = Remote().backend
    assert (backend.prepare_now(items, Reading()) is not None) is is_now
    prepared = await backend.prepare(items, Reading())
    assert [item.payload for item in prepared if isinstance(item, Prepared)] == items


async def test_the_event_loop_goes_on_while_many_items_are_prepared() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await Remote().backend.prepare(["a"] * 320, Reading())
    task.cancel()
    assert turns >= 9


@pytest.mark.parametrize(
    ("settings", "rows", "tokens"),
    [
        ({}, 2048, 300_000),
        ({"batch_size": 64}, 64, 300_000),
        ({"remote_max_items": 4096, "remote_max_tokens": 1000}, 4096, 1000),
        ({"remote_max_items": 100, "batch_size": 200}, 100, 300_000),
    ],
)
async def test_settings_bound_what_the_api_allows(
    settings: dict[str, int], rows: int, tokens: int
) -> None:
    async with Remote(**settings) as remote:
        facts = remote.backend.facts
    assert (facts.max_rows, facts.max_tokens) == (rows, tokens)


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 1), ("a", 1), ("abc", 1), ("abcd", 2), ("a" * 32, 10), ("é" * 16, 10)]
)
async def test_tokens_are_estimated_by_bytes_and_never_none(text: str, tokens: int) -> None:
    (prepared,) = Remote().backend.prepare_now([text], Reading())
    assert not isinstance(prepared, Exception)
    assert prepared.tokens == tokens


async def test_what_cannot_be_sent_is_said_before_it_is() -> None:
    remote = Remote(remote_api="tei")
    no_text, ids = remote.backend.prepare_now(["\ud800", (1, 2)], Reading())
    assert isinstance(no_text, InvalidTextError)
    assert isinstance(ids, NotOfferedError)


async def test_token_ids_are_sent_as_they_are_and_apart_from_texts() -> None:
    async with Remote() as remote:
        text, ids = remote.backend.prepare_now(["a", (1, 2, 3)], Reading())
        assert not isinstance(text, Exception)
        assert not isinstance(ids, Exception)
        assert (text.group != ids.group, ids.tokens) == (True, 3)
        assert same(await remote.ask((1, 2, 3)), ["[1, 2, 3]"])
        with pytest.raises(NotOfferedError):
            remote.backend.token_ids(text)
    assert remote.bodies[-1]["input"] == [[1, 2, 3]]


async def test_a_prompt_goes_before_the_text_and_truncation_only_where_it_is_asked_for() -> None:
    reading = Reading(prompt="query: ", truncation=Truncation.START)
    async with Remote() as remote:
        assert same(await remote.ask("a", reading=reading), ["query: a"])
    assert (remote.bodies[-1]["input"], remote.bodies[-1]["truncate"]) == (["query: a"], "START")
