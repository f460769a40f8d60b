"""The answer cache: the same question is asked once, and only a whole answer is kept."""

import asyncio
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.accounting import (
    AnswerCache,
    AnswerCacheConfig,
    AnswerCacheLayer,
)
from shared.infrastructure.balancing.accounting.answer_cache import KeptAnswer
from shared.infrastructure.balancing.call import CALL, FAULT, CallOptions
from shared.infrastructure.balancing.errors import NoHostAvailableError
from shared.infrastructure.balancing.fallback import FALLBACK_FROM
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.resilience import PLAIN_CALL, DeadlineExceededError, stack
from shared.infrastructure.testing import FakeClock
from tests.unit.balancing.accounting_calls import Ask, Hosts, cached, chat_answer, how, question


async def test_the_same_question_is_asked_once() -> None:
    hosts = Hosts()
    ask = cached(hosts)
    first = await ask(question())
    second = await ask(question())
    assert (how(first), how(second), len(hosts.asked)) == (None, "hit", 1)
    assert first.json() == second.json() == chat_answer()
    assert second.headers["content-type"] == "application/json"


SAME = {
    "the order of its fields": {"messages": question().extensions[CALL].facts.payload["messages"]},
    "who it is for": {"user": "u"},
    "metadata": {"metadata": {"a": "b"}},
    "a key of the host's own cache": {"prompt_cache_key": "k"},
    "who sends it": {"headers": {"User-Agent": "curl", "X-Stainless-Retry-Count": "1"}},
    "its number": {"headers": {"X-Request-Id": "1", "Idempotency-Key": "2"}},
    "the form of its answer": {"headers": {"Accept": "*/*", "Accept-Encoding": "br"}},
}


@pytest.mark.parametrize("case", SAME)
async def test_what_changes_no_answer_makes_no_other_question(case: str) -> None:
    hosts = Hosts()
    ask = cached(hosts)
    await ask(question())
    assert how(await ask(question(**SAME[case]))) == "hit"


OTHER: dict[str, dict[str, Any]] = {
    "another text": {"messages": [{"role": "user", "content": "How are you"}]},
    "another model": {"model": "m2"},
    "a field we do not know": {"mystery": 1},
    "another length": {"max_tokens": 5},
    "another path": {"path": "/v2/chat/completions"},
    "another key": {"headers": {"Authorization": "Bearer other"}},
    "another organization": {"headers": {"OpenAI-Organization": "o"}},
    "another version": {"headers": {"openai-beta": "x"}},
    "another cookie": {"headers": {"Cookie": "session=b"}},
    "another user of a gateway": {"headers": {"X-Forwarded-User": "b"}},
    "another key of the same tenant": {"headers": {"X-Goog-Api-Key": "b"}},
    "other models in its place": {"options": CallOptions(fallbacks=["n"])},
    "another tenant": {"options": CallOptions(tenant="t")},
    "a new answer that is asked for": {"headers": {"Cache-Control": "no-cache"}},
    "a call that goes by the cache": {"options": CallOptions(cache=False)},
    "a request that goes by the cache": {"headers": {"Cache-Control": "no-store"}},
}


@pytest.mark.parametrize("case", OTHER)
async def test_another_question_is_asked(case: str) -> None:
    hosts = Hosts()
    ask = cached(hosts)
    await ask(question())
    assert how(await ask(question(**OTHER[case]))) is None
    assert len(hosts.asked) == 2


async def test_tenants_never_see_each_others_answers() -> None:
    hosts = Hosts()
    ask = cached(hosts)
    for tenant in ("a", "b"):
        hosts.answer = chat_answer(f"for {tenant}")
        await ask(question(options=CallOptions(tenant=tenant)))
    answers = [
        (await ask(question(options=CallOptions(tenant=tenant)))).json()["choices"][0]["message"]
        for tenant in ("a", "b")
    ]
    assert [answer["content"] for answer in answers] == ["for a", "for b"]
    assert len(hosts.asked) == 2


async def test_a_new_answer_that_was_asked_for_is_kept_in_place_of_the_old() -> None:
    hosts = Hosts()
    ask = cached(hosts)
    await ask(question())
    hosts.answer = chat_answer("Better.")
    await ask(question(headers={"Cache-Control": "no-cache"}))
    assert (await ask(question())).json() == chat_answer("Better.")


UNKEPT_QUESTIONS: dict[str, dict[str, Any]] = {
    "says no temperature": {"temperature": None},
    "is warm": {"temperature": 0.1},
    "is to be stored": {"store": True},
    "goes on with another": {"previous_response_id": "r"},
}


@pytest.mark.parametrize("case", UNKEPT_QUESTIONS)
async def test_a_question_with_more_than_one_answer_is_asked_again(case: str) -> None:
    hosts = Hosts()
    ask = cached(hosts)
    for _ in range(2):
        assert how(await ask(question(**UNKEPT_QUESTIONS[case]))) is None


async def test_a_warm_question_is_answered_the_same_if_wanted() -> None:
    ask = cached(Hosts(), temperature_above_zero=True)
    await ask(question(temperature=1))
    assert how(await ask(question(temperature=1))) == "hit"


WRONG_ANSWERS: dict[str, Any] = {
    "cut at its length": chat_answer(reason="length"),
    "withheld": chat_answer(reason="content_filter"),
    "calls a tool": chat_answer(reason="tool_calls"),
    "has no end": chat_answer(reason=""),
    "only one of two": chat_answer(),
    "an error status": httpx.Response(400, json=chat_answer()),
    "an error inside": httpx.Response(
        200, json=chat_answer(), extensions={FAULT: Fault.OVERLOADED}
    ),
    "no JSON": httpx.Response(200, content=b"<html>"),
    "no object": httpx.Response(200, json=[chat_answer()]),
}


@pytest.mark.parametrize("case", WRONG_ANSWERS)
async def test_an_answer_that_is_not_whole_is_not_kept(case: str) -> None:
    hosts = Hosts(WRONG_ANSWERS[case])
    ask = cached(hosts)
    more = {"n": 2} if "two" in case else {}
    for _ in range(2):
        assert how(await ask(question(**more))) is None
    assert len(hosts.asked) == 2


async def test_an_error_is_not_kept() -> None:
    hosts = Hosts(NoHostAvailableError({"a": "full"}))
    ask = cached(hosts)
    with pytest.raises(NoHostAvailableError):
        await ask(question())
    hosts.answer = chat_answer()
    assert how(await ask(question())) is None


async def test_a_call_of_a_tool_is_kept_if_wanted() -> None:
    ask = cached(Hosts(chat_answer(reason="tool_calls")), tool_calls=True)
    await ask(question())
    assert how(await ask(question())) == "hit"


OTHER_DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "completions": ("/v1/completions", {"choices": [{"text": "x", "finish_reason": "stop"}]}),
    "embeddings": ("/v1/embeddings", {"data": [{"embedding": [1.0]}]}),
    "messages": ("/v1/messages", {"content": [{"text": "x"}], "stop_reason": "end_turn"}),
    "responses": ("/v1/responses", {"object": "response", "status": "completed", "output": []}),
}


@pytest.mark.parametrize("case", OTHER_DIALECTS)
async def test_every_dialect_is_kept(case: str) -> None:
    path, answer = OTHER_DIALECTS[case]
    ask = cached(Hosts(answer))
    await ask(question(path))
    response = await ask(question(path))
    assert (how(response), response.json()) == ("hit", answer)


def asked_of_another(hosts: Hosts, **extensions: Any) -> Ask:
    """Answer as another model than the one asked for."""

    async def other_model(request: httpx.Request) -> httpx.Response:
        response = await hosts(request)
        call = question(model="other").extensions[CALL]
        response.extensions = {**response.extensions, CALL: call, **extensions}
        return response

    layer = AnswerCacheLayer(AnswerCacheConfig(), clock=FakeClock())
    return stack(other_model, layer, semantics=PLAIN_CALL)


async def test_the_answer_of_a_fallback_is_kept_for_the_model_that_gave_it() -> None:
    ask = asked_of_another(Hosts(), **{FALLBACK_FROM: "m"})
    await ask(question())
    assert how(await ask(question())) is None
    assert how(await ask(question(model="other"))) == "hit"


async def test_the_answer_of_an_alias_is_kept_for_the_alias() -> None:
    ask = asked_of_another(Hosts())
    await ask(question())
    assert how(await ask(question())) == "hit"
    assert how(await ask(question(model="other"))) is None


async def test_many_who_ask_the_same_at_once_share_one_answer() -> None:
    hosts = Hosts()
    hosts.gate.clear()
    ask = cached(hosts)
    requests = [question() for _ in range(5)]
    callers = [asyncio.ensure_future(ask(request)) for request in requests]
    await asyncio.sleep(0.0)
    hosts.gate.set()
    responses = await asyncio.gather(*callers)
    assert len(hosts.asked) == 1
    assert [how(response) for response in responses] == [None, *["shared"] * 4]
    assert all(response.json() == chat_answer() for response in responses)
    for request, response in zip(requests, responses, strict=True):
        assert response.extensions[CALL] is request.extensions[CALL]


async def test_who_shares_an_answer_has_neither_the_deadline_nor_the_attempts_of_the_first() -> (
    None
):
    hosts = Hosts()
    hosts.gate.clear()
    ask = cached(hosts)
    requests = [question() for _ in range(2)]
    leader, follower = (request.extensions[CALL] for request in requests)
    leader.deadline = 1.0
    callers = [asyncio.ensure_future(ask(request)) for request in requests]
    for _ in range(3):
        await asyncio.sleep(0.0)
    [shared] = [request.extensions[CALL] for request in hosts.asked]
    attempt = shared.depart("a", 0.0)
    shared.answered_by = attempt
    hosts.gate.set()
    await asyncio.gather(*callers)
    assert shared is not leader
    assert shared is not follower
    assert (shared.deadline, shared.max_attempts) == (None, leader.max_attempts)
    assert (leader.attempts, leader.answered_by) == ([attempt], attempt)
    assert (follower.attempts, follower.answered_by) == ([], None)


async def test_who_joined_a_question_that_took_too_long_asks_anew() -> None:
    hosts = Hosts(DeadlineExceededError("too late"))
    hosts.gate.clear()
    ask = cached(hosts)
    leader, follower = (asyncio.ensure_future(ask(question())) for _ in range(2))
    for _ in range(3):
        await asyncio.sleep(0.0)
    hosts.gate.set()
    with pytest.raises(DeadlineExceededError):
        await leader
    hosts.answer = chat_answer()
    assert (await follower).json() == chat_answer()
    assert len(hosts.asked) == 2


async def test_a_cancelled_leader_does_not_fail_those_who_follow() -> None:
    hosts = Hosts()
    hosts.gate.clear()
    ask = cached(hosts)
    leader, follower = (asyncio.ensure_future(ask(question())) for _ in range(2))
    await asyncio.sleep(0.0)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    hosts.gate.set()
    assert (await follower).json() == chat_answer()
    assert (len(hosts.asked), hosts.cancelled) == (1, 0)


async def test_when_all_have_left_the_question_is_withdrawn() -> None:
    hosts = Hosts()
    hosts.gate.clear()
    ask = cached(hosts)
    callers = [asyncio.ensure_future(ask(question())) for _ in range(2)]
    await asyncio.sleep(0.0)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    await asyncio.sleep(0.0)
    assert hosts.cancelled == 1


async def test_those_who_share_an_error_have_each_their_own() -> None:
    hosts = Hosts(NoHostAvailableError({"a": "full"}))
    hosts.gate.clear()
    ask = cached(hosts)
    callers = [asyncio.ensure_future(ask(question())) for _ in range(2)]
    await asyncio.sleep(0.0)
    hosts.gate.set()
    first, second = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(first, NoHostAvailableError)
    assert isinstance(second, NoHostAvailableError)
    assert first is not second
    assert (first.reasons, str(first)) == (second.reasons, str(second))


async def test_an_answer_is_forgotten_after_its_time() -> None:
    clock = FakeClock()
    ask = cached(Hosts(), clock, ttl=60.0)
    await ask(question())
    await clock.advance(59.0)
    assert how(await ask(question())) == "hit"
    await clock.advance(1.0)
    assert how(await ask(question())) is None


def test_the_answer_unused_for_longest_makes_room() -> None:
    cache = AnswerCache(AnswerCacheConfig(max_bytes=2000, max_answer_bytes=1500))
    answer = KeptAnswer(b"x" * 400, "application/json")
    for key in (b"a", b"b"):
        assert cache.put(key, answer)
    assert cache.get(b"a")
    assert cache.put(b"c", answer)
    assert [cache.get(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    assert not cache.put(b"a", KeptAnswer(b"x" * 1501, "application/json"))
    assert cache.get(b"a") is None
    assert cache.snapshot() == {
        "entries": 1,
        "bytes": 912,
        "max_bytes": 2000,
        "hit_count": 3,
        "miss_count": 2,
        "evicted_count": 1,
        "expired_count": 0,
    }
    cache.clear()
    assert (len(cache), cache.snapshot()["bytes"]) == (0, 0)


def test_a_snapshot_counts_those_who_shared() -> None:
    layer = AnswerCacheLayer(AnswerCacheConfig())
    assert layer.snapshot()["shared_count"] == 0
    assert layer.describe() == "AnswerCache: 67108864 bytes, 3600 s"
