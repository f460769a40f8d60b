import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_site import ASK, llm_site

from services.llm.process import events as room
from services.llm.process.events import whole_events
from tests.scripted_host import stream

ROLE = {
    "/v1/messages": (
        {"type": "message_start", "message": {"usage": {"input_tokens": 3}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    ),
    "/v1/responses": (
        {"type": "response.created", "response": {}},
        {"type": "response.output_text.delta", "delta": "Hi"},
    ),
}


class Body(httpx.AsyncByteStream):
    def __init__(self, pieces: list[bytes], error: Exception | None = None) -> None:
        self.pieces, self.error = pieces, error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece
        if self.error is not None:
            raise self.error


@given(
    st.lists(
        st.sampled_from([b"data: x\n\n", b"data: yy\r\n\r\n", b": ping\n\n", b"data: z\r\r"]),
        min_size=1,
    ),
    st.lists(st.integers(1, 9)),
    st.booleans(),
)
async def test_events_are_never_cut_however_they_came(
    events: list[bytes], sizes: list[int], breaks: bool
) -> None:
    data, pieces = b"".join(events), list[bytes]()
    rest = data[:-3] if breaks else data
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    body = Body([*filter(None, pieces), rest], RuntimeError() if breaks else None)
    told: list[bytes] = []
    try:
        async for piece in whole_events(httpx.Response(200, stream=body)):
            told.append(piece)  # noqa: PERF401 - those before an error count
    except RuntimeError:
        assert breaks
    assert all(piece.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")) for piece in told)
    whole = b"".join(events[:-1]) if breaks else data
    assert b"".join(told) == whole


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
async def test_an_event_goes_on_as_soon_as_it_is_whole(end: bytes) -> None:
    taken: list[bytes] = []
    seen: list[int] = []

    class Live(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"data: x"
                yield end + b"data"
                seen.append(len(taken))
                yield b": y" + end

    async for piece in whole_events(httpx.Response(200, stream=Live())):
        taken.append(piece)  # noqa: PERF401 - its length is looked at meanwhile
    assert seen == [1, 3, 5]
    assert b"".join(taken) == (b"data: x" + end + b"data: y" + end) * 3


async def test_an_event_without_an_end_is_not_held_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "_MAX_HELD", 100)
    body = Body([b"x" * 30] * 10)
    told = [piece async for piece in whole_events(httpx.Response(200, stream=body))]
    assert [len(piece) for piece in told] == [120, 120, 60]


@pytest.mark.parametrize("path", list(ROLE))
async def test_a_stream_that_breaks_off_says_so_in_the_shape_of_its_route(path: str) -> None:
    events = [
        b"event: %b\ndata: %b\n\n" % (each["type"].encode(), json.dumps(each).encode())
        for each in ROLE[path]
    ]
    async with llm_site([stream(events, "reset")]) as site:
        text = b""
        async with site.client.stream("POST", path, json={**ASK, "stream": True}) as response:
            try:
                async for piece in response.aiter_raw():
                    text += piece
            except httpx.RemoteProtocolError:
                pass
    *whole, last, end = text.split(b"\n\n")
    assert b"\n\n".join(whole) + b"\n\n" == b"".join(events)
    assert end == b""
    name, data = last.split(b"\n")
    told: dict[str, Any] = json.loads(data.removeprefix(b"data: "))
    assert (name, told["type"]) == (b"event: error", "error")
    assert "host failed" in json.dumps(told)
