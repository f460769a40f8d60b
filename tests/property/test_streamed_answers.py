"""However an answer is cut into pieces, and wherever it breaks off, it is the same in the end."""

import asyncio
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shared.infrastructure.balancing.errors import StreamTruncatedError
from shared.infrastructure.balancing.typed.accumulate import AnswerBuilder
from shared.models import ChatCompletionChunk
from tests.scripted_host import choice
from tests.unit.balancing.typed_scripts import Reply, pool_with

TEXTS = st.text(st.sampled_from('ab ü\n🎉"'), max_size=30)
CUTS = st.lists(st.integers(0, 30), max_size=6)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[at:to] for at, to in pairwise(places)]


def message_of(deltas: list[dict[str, Any]]) -> dict[str, Any]:
    builder = AnswerBuilder()
    for delta in deltas:
        builder.add(ChatCompletionChunk(choice(delta)))
    message: dict[str, Any] = builder.completion()["choices"][0]["message"]
    return message


@given(TEXTS, CUTS, TEXTS, CUTS)
def test_texts_come_out_whole(said: str, cuts: list[int], thought: str, others: list[int]) -> None:
    deltas: list[dict[str, Any]] = [
        {"reasoning_content": one} for one in pieces_of(thought, others)
    ]
    deltas += [{"content": one} for one in pieces_of(said, cuts)]
    message = message_of(deltas)
    assert (message["content"] or "") == said
    assert message["reasoning_content"] == thought


@given(st.lists(st.tuples(TEXTS, CUTS), min_size=1, max_size=4), st.randoms())
def test_calls_of_tools_come_out_whole_in_any_order(
    calls: list[tuple[str, list[int]]], rng: Any
) -> None:
    queues: list[list[dict[str, Any]]] = []
    for index, (arguments, cuts) in enumerate(calls):
        first = {"index": index, "id": f"{index}", "function": {"name": "f"}}
        rest = [{"index": index, "function": {"arguments": p}} for p in pieces_of(arguments, cuts)]
        queues.append([first, *rest])
    deltas: list[dict[str, Any]] = []
    while any(queues):
        deltas.append({"tool_calls": [rng.choice([queue for queue in queues if queue]).pop(0)]})
    message = message_of(deltas)
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == [
        arguments for arguments, _ in calls
    ]
    assert [call["id"] for call in message["tool_calls"]] == [str(n) for n in range(len(calls))]


@given(TEXTS, CUTS, st.integers(0, 30))
def test_a_continued_answer_is_the_answer(text: str, cuts: list[int], at: int) -> None:
    async def continued() -> str:
        before = text[:at]
        # A model says the space again that it was not shown.
        after = text[len(before.rstrip()) :]
        rest = [choice({"content": piece}) for piece in pieces_of(after, cuts)]
        broken = Reply([choice({"content": before})], StreamTruncatedError("cut"))
        pool = pool_with(broken, Reply([*rest, choice({}, "stop")]))
        if not before.strip():
            return text  # there is nothing yet that a host could go on with
        async with pool.stream(recovery="continue") as stream:
            heard = "".join([piece.text async for piece in stream])
            assert (await stream.get_final()).text == heard
        assert pool.requests[1]["messages"][-1]["content"] == before.rstrip()
        return heard

    assert asyncio.run(continued()) == text
