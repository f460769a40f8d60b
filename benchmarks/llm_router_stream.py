"""What `llm_router` measures with a streamed chat: each entry says whether all of it has come."""

# ruff: noqa: PLC0415 - a library that is missing must not keep the others from running

import json
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from benchmarks.http_contenders import PATIENCE, Call, Make, stack_on, wire_of
from benchmarks.http_server import Target
from benchmarks.llm_router_chat import MESSAGES, MODEL, PATH, bare, openai_on_ours, pool_of
from benchmarks.llm_router_stub import text_of

ANSWER = True
PIECES = {"/first": 1, "/stream": 100}
"""Pieces of a stream, by the name of its kind."""

FIRST: list[float] = []
"""Seconds from each call to its first content."""

Pieces = AsyncIterator[str | None]


def _reading(stream: Callable[[dict[str, Any]], Pieces]) -> Call:
    async def call(path: str) -> object:
        count, text, began = PIECES[path], "", time.perf_counter()
        request = {"model": MODEL, "messages": MESSAGES, "max_tokens": count, "stream": True}
        async for piece in stream(request):
            if piece:
                if not text:
                    FIRST.append(time.perf_counter() - began)
                text += piece
        return text == text_of(count)

    return call


async def _typed(target: Target) -> Call:
    client = pool_of(target)

    async def stream(request: dict[str, Any]) -> Pieces:
        async with client.stream(request) as chunks:
            async for chunk in chunks:
                yield chunk.choices[0].delta.content

    return _reading(stream)


def _by_json(opened: Callable[[dict[str, Any]], Any]) -> Call:
    """Return a call that reads a stream as one would by hand."""

    async def stream(request: dict[str, Any]) -> Pieces:
        async with opened(request) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield json.loads(line[6:])["choices"][0]["delta"].get("content")

    return _reading(stream)


def _by_bytes(opened: Callable[[dict[str, Any]], Any]) -> Call:
    """Return a call that passes the bytes on, as a proxy would."""

    async def call(path: str) -> object:
        count = PIECES[path]
        request = {"model": MODEL, "messages": MESSAGES, "max_tokens": count, "stream": True}
        received = bytearray()
        async with opened(request) as response:
            async for data in response.aiter_raw():
                received += data
        return received.count(b'"piece "') == count

    return call


READ = {"JSON": _by_json, "bytes": _by_bytes}


async def _pool(how: str, target: Target) -> Call:
    client = pool_of(target)
    return READ[how](lambda request: client.open(PATH, json=request))


async def _enhanced(how: str, target: Target) -> Call:
    client = stack_on("httpx", target.http[0], transport=wire_of("httpx"))
    return READ[how](lambda request: client.stream("POST", PATH, json=request))


async def _bare(library: str, has_our_wire: bool, how: str, target: Target) -> Call:
    client = bare(library, target, has_our_wire=has_our_wire)
    return READ[how](lambda request: client.stream("POST", PATH, json=request))


def _by_openai(client: Any) -> Call:
    async def stream(request: dict[str, Any]) -> Pieces:
        async for chunk in await client.chat.completions.create(**request):
            yield chunk.choices[0].delta.content

    return _reading(stream)


async def _openai(target: Target) -> Call:
    import openai

    return _by_openai(
        openai.AsyncOpenAI(base_url=f"{target.http[0]}/v1", api_key="none", timeout=PATIENCE)
    )


async def _openai_on_ours(target: Target) -> Call:
    return _by_openai(openai_on_ours(target))


async def _litellm_router(target: Target) -> Call:
    import litellm

    litellm.suppress_debug_info = True
    options = {"model": f"openai/{MODEL}", "api_key": "none", "timeout": PATIENCE}
    router = litellm.Router(
        model_list=[
            {"model_name": MODEL, "litellm_params": {**options, "api_base": f"{origin}/v1"}}
            for origin in target.http
        ]
    )

    async def stream(request: dict[str, Any]) -> Pieces:
        async for chunk in await router.acompletion(**request):
            yield chunk.choices[0].delta.content

    return _reading(stream)


ARMS: dict[str, Make] = {
    "ours, stream": _typed,
    "ours, open, JSON": partial(_pool, "JSON"),
    "ours, open, bytes": partial(_pool, "bytes"),
    "EnhancedHTTPClient, JSON": partial(_enhanced, "JSON"),
    "httpx + our wire, JSON": partial(_bare, "httpx", True, "JSON"),
    "httpx + our wire, bytes": partial(_bare, "httpx", True, "bytes"),
    "httpx, JSON": partial(_bare, "httpx", False, "JSON"),
    "httpx, bytes": partial(_bare, "httpx", False, "bytes"),
    "httpx2, JSON": partial(_bare, "httpx2", False, "JSON"),
    "openai": _openai,
    "openai on ours": _openai_on_ours,
    "litellm Router, 3 hosts": _litellm_router,
}
