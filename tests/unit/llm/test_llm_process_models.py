import asyncio
from typing import Any

from llm_site import llm_site

from services.llm.process import models as room
from tests.scripted_host import Exchange, Step, answer, chat, silence


def listing(*names: str) -> Step:
    return answer({"object": "list", "data": [{"id": name} for name in names]})


async def only_for(exchange: Exchange) -> None:
    key = exchange.headers.get("authorization")
    step = listing("m") if key == "Bearer theirs" else answer({"error": {"message": "who?"}}, 401)
    await step(exchange)


async def test_hosts_with_the_key_of_the_caller_are_asked_with_it() -> None:
    async with llm_site([only_for]) as site:
        response = await site.client.get("/v1/models", headers={"authorization": "Bearer theirs"})
        assert [model["id"] for model in response.json()["data"]] == ["m"]
        assert (await site.client.get("/v1/models")).status_code == 503


async def test_our_own_keys_are_not_shown_to_hosts_that_list_models() -> None:
    async with llm_site([listing("m")], api_keys="one") as site:
        response = await site.client.get("/v1/models", headers={"x-api-key": "one"})
    assert response.status_code == 200
    assert "x-api-key" not in site.hosts[0].requests[0].headers


async def test_a_silent_host_is_not_waited_for(monkeypatch: Any) -> None:
    monkeypatch.setattr(room, "_PATIENCE", 0.2)
    async with llm_site([silence()], [listing("m")]) as site:
        async with asyncio.timeout(5):
            response = await site.client.get("/v1/models")
    assert [model["id"] for model in response.json()["data"]] == ["m"]


async def test_a_list_is_remembered_and_asked_for_once_at_a_time() -> None:
    async with llm_site([listing("m")]) as site:
        replies = await asyncio.gather(*(site.client.get("/v1/models") for _ in range(8)))
        assert {reply.status_code for reply in replies} == {200}
        assert len(site.hosts[0].requests) == 1
        await site.client.get("/v1/models", headers={"authorization": "Bearer other"})
        assert len(site.hosts[0].requests) == 2


async def test_lists_count_against_the_limits() -> None:
    async with llm_site([listing("m")], requests_per_second=0.001, burst_size=1) as site:
        assert [(await site.client.get("/v1/models")).status_code for _ in range(2)] == [200, 429]


async def test_a_throttled_host_is_not_ready_and_one_that_misses_a_model_is() -> None:
    throttled = answer({"error": {"message": "slow"}}, 429, {"Retry-After": "77"})
    async with llm_site([throttled], max_retries=0) as site:
        assert (await site.client.get("/health/ready")).status_code == 200
        await site.chat()
        assert (await site.client.get("/health/ready")).status_code == 503
        assert (await site.client.head("/health/ready")).status_code == 503
    missing = answer({"error": {"message": "no", "code": "model_not_found"}}, 404)
    async with llm_site([missing, chat("hello")], max_retries=0) as site:
        await site.chat()
        assert (await site.client.get("/health/ready")).status_code == 200
