"""What `llm_router` measures with a chat completion: each entry returns the text of one answer."""

# ruff: noqa: PLC0415 - a library that is missing must not keep the others from running

from functools import partial
from importlib import import_module
from typing import Any

from benchmarks import chat_contenders
from benchmarks.http_contenders import PATIENCE, Call, Make, wire_of
from benchmarks.http_server import CHAT, TEXT, Target

ANSWER = TEXT
PATH = "/v1/chat/completions"
MODEL = str(CHAT["model"])
MESSAGES: list[Any] = [
    {"role": "system", "content": "You explain terms of software design in one sentence."},
    {"role": "user", "content": "What does a circuit breaker do?"},
]

_REQUEST = {"model": MODEL, "messages": MESSAGES}


def pool_of(target: Target) -> Any:
    """Return our client as it comes; only, nobody gives up waiting for a connection."""
    from shared.infrastructure.balancing.distributed_llm import DistributedLLMClient
    from shared.infrastructure.http import TimeoutConfig

    return DistributedLLMClient(hosts_of(target), timeout_config=TimeoutConfig(pool=PATIENCE))


def hosts_of(target: Target) -> list[Any]:
    from shared.infrastructure.balancing.hosts import LLMHost

    return [LLMHost(name, url) for name, url in zip("abc", target.http, strict=True)]


def bare(library: str, target: Target, *, has_our_wire: bool = False) -> Any:
    """Return the client of a library, as it comes or on our transport."""
    transport = wire_of(library) if has_our_wire else None
    client = import_module(library).AsyncClient
    return client(base_url=target.http[0], timeout=PATIENCE, transport=transport)


def openai_on_ours(target: Target) -> Any:
    """Return an unmodified openai client, whose transport is our pool."""
    import httpx2
    import openai

    from shared.infrastructure.balancing.httpx2_transport import balanced_transport
    from shared.infrastructure.http import TimeoutConfig

    transport = balanced_transport(hosts_of(target), timeout_config=TimeoutConfig(pool=PATIENCE))
    return openai.AsyncOpenAI(
        base_url="http://pool/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport),
    )


async def _typed(target: Target) -> Call:
    client = pool_of(target)

    async def call(_path: str) -> object:
        return (await client.chat(_REQUEST)).text

    return call


def _posting(client: Any) -> Call:
    async def call(_path: str) -> object:
        answer = (await client.post(PATH, json=_REQUEST)).json()
        return answer["choices"][0]["message"]["content"]

    return call


async def _raw(target: Target) -> Call:
    return _posting(pool_of(target))


async def _bare(library: str, has_our_wire: bool, target: Target) -> Call:
    return _posting(bare(library, target, has_our_wire=has_our_wire))


async def _openai_on_ours(target: Target) -> Call:
    client = openai_on_ours(target)

    async def call(_path: str) -> object:
        answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        return answer.choices[0].message.content

    return call


ARMS: dict[str, Make] = {
    "ours, chat": _typed,
    "ours, post": _raw,
    "EnhancedHTTPClient": chat_contenders.ARMS["ours on httpx"],
    "httpx + our wire": partial(_bare, "httpx", True),
    "httpx": partial(_bare, "httpx", False),
    "httpx2": partial(_bare, "httpx2", False),
    "openai": chat_contenders.ARMS["openai"],
    "openai on ours": _openai_on_ours,
    "litellm Router, 3 hosts": chat_contenders.ARMS["litellm Router, 3 hosts"],
}
