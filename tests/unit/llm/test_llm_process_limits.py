import asyncio
from typing import Any

import pytest
from llm_site import ASK, CHAT, llm_site

from services.llm.process.limits import Limits
from services.llm.settings import LLMProcessSettings
from shared.infrastructure.balancing.facts import facts_of
from shared.infrastructure.server import HTTPError, Request
from shared.infrastructure.server.keys import tenant_of
from shared.infrastructure.testing import FakeClock
from tests.scripted_host import answer, chat_stream, silence

KEY = {"authorization": "Bearer one"}


def admitting(clock: FakeClock, **settings: Any) -> Any:
    made = LLMProcessSettings(api_keys="one", **settings)  # type: ignore[arg-type]
    limits = Limits(made, clock=clock)
    request = Request("POST", CHAT, {}, tenant=tenant_of(made.api_keys[0].key))

    def admit(max_tokens: int) -> Any:
        return limits.admit(request, facts_of(CHAT, {**ASK, "max_tokens": max_tokens}))

    return admit


async def test_what_one_limit_refuses_takes_nothing_from_the_others() -> None:
    clock = FakeClock()
    admit = admitting(
        clock,
        key_requests_per_second=0.001,
        key_burst_size=2,
        key_tokens_per_minute=120,
        requests_per_second=0.001,
        burst_size=2,
    )
    admit(100)
    for _ in range(5):
        with pytest.raises(HTTPError, match="tokens a minute"):
            admit(100)
    await clock.advance(60)
    admit(100)
    with pytest.raises(HTTPError, match="requests a second"):
        admit(1)


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_who_hangs_up_has_still_to_pay(is_streamed: bool) -> None:
    hanging = chat_stream("abcdefgh", "stall", after=4) if is_streamed else silence()
    question = [{"role": "user", "content": "word " * 120}]
    body = {"messages": question, "max_tokens": 10, "stream": is_streamed}
    # One such question is about 120 tokens.
    async with llm_site([hanging], api_keys="one", key_tokens_per_minute=200) as site:
        asking = asyncio.create_task(site.chat(KEY, **body))
        await site.hosts[0].until(lambda: bool(site.hosts[0].requests))
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.wait([asking])
        await site.hosts[0].until_idle()
        async with asyncio.timeout(2):
            refused = await site.chat(KEY, **body)
    assert refused.status_code == 429
    assert len(site.hosts[0].requests) == 1


async def test_what_a_host_refuses_costs_nothing() -> None:
    refusal = answer({"error": {"message": "no"}}, 400)
    async with llm_site([refusal], api_keys="one", key_tokens_per_minute=120) as site:
        replies = [await site.chat(KEY, max_tokens=100) for _ in range(5)]
    assert {reply.status_code for reply in replies} == {400}
