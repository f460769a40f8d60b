"""What `http_client` measures with a GET: each entry returns the body of one answer."""

# ruff: noqa: PLC0415 - a library that is missing must not keep the others from running

import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from importlib import import_module
from typing import Any

from benchmarks.http_server import JSON, Target

Call = Callable[[str], Awaitable[object]]
"""Send one request to a path, and return what `ANSWER` should be."""
Make = Callable[[Target], Awaitable[Call]]

ANSWER = JSON

# A thousand calls wait in line for a hundred connections: nobody is to give up, however slow.
PATIENCE = 60.0

FLAVOURS = {"httpx": "shared.infrastructure.http", "httpx2": "shared.infrastructure.http.httpx2"}
"""Modules of ours by the library whose client they make resilient."""


def stack_on(library: str, base_url: str, **options: Any) -> Any:
    """Return our client as it comes; only, nobody gives up waiting for a connection."""
    from shared.infrastructure.http import TimeoutConfig

    options.setdefault("timeout_config", TimeoutConfig(pool=PATIENCE))
    return import_module(FLAVOURS[library]).EnhancedHTTPClient("service", base_url, **options)


def whole_stack_on(library: str, base_url: str) -> Any:
    """Return our client with every layer there is, none of which ever makes a call wait."""
    from shared.infrastructure.http import TimeoutConfig
    from shared.infrastructure.resilience import BulkheadConfig, RateLimitConfig

    return stack_on(
        library,
        base_url,
        timeout_config=TimeoutConfig(pool=PATIENCE, total=PATIENCE),
        rate_limit_config=RateLimitConfig(requests_per_second=100_000_000),
        bulkhead_config=BulkheadConfig(max_concurrent=1_000),
    )


def wire_of(library: str, **options: Any) -> Any:
    """Return our own transport for a library."""
    return import_module(FLAVOURS[library]).WireTransport(**options)


def trusting(target: Target) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=target.authority)


def _get(client: Any) -> Call:
    async def get(path: str) -> object:
        response = await client.get(path)
        return response.content

    return get


async def _bare(library: str, target: Target) -> Call:
    client = import_module(library).AsyncClient(base_url=target.http[0], timeout=PATIENCE)
    return _get(client)


async def _bare_http2(library: str, target: Target) -> Call:
    client = import_module(library).AsyncClient(
        base_url=target.https, timeout=PATIENCE, http2=True, verify=trusting(target)
    )
    return _get(client)


async def _wire(library: str, target: Target) -> Call:
    client = import_module(library).AsyncClient(
        base_url=target.http[0], timeout=PATIENCE, transport=wire_of(library)
    )
    return _get(client)


async def _wire_http2(library: str, target: Target) -> Call:
    wire = wire_of(library, http2=True, tls=trusting(target))
    client = import_module(library).AsyncClient(
        base_url=target.https, timeout=PATIENCE, transport=wire
    )
    return _get(client)


async def _stack(library: str, target: Target) -> Call:
    return _get(stack_on(library, target.http[0]))


async def _whole_stack(library: str, target: Target) -> Call:
    return _get(whole_stack_on(library, target.http[0]))


async def _stack_http2(library: str, target: Target) -> Call:
    return _get(stack_on(library, target.https, http2=True, verify=trusting(target)))


async def _aiohttp(target: Target) -> Call:
    import aiohttp

    session = aiohttp.ClientSession(target.http[0])

    async def get(path: str) -> object:
        async with session.get(path) as response:
            return await response.read()

    return get


async def _httpx_aiohttp(library: str, target: Target) -> Call:
    module = "httpx_aiohttp" if library == "httpx" else f"httpx_aiohttp.{library}"
    transport = import_module(module).AiohttpTransport()
    client = import_module(library).AsyncClient(
        base_url=target.http[0], timeout=PATIENCE, transport=transport
    )
    return _get(client)


ARMS: dict[str, Make] = {
    f"{name.format(library)}": partial(make, library)
    for library in FLAVOURS
    for name, make in {
        "{}": _bare,
        "{} + our wire": _wire,
        "ours on {}": _stack,
        "ours on {}, every layer": _whole_stack,
        "{} + httpx-aiohttp": _httpx_aiohttp,
        "{}, HTTP/2": _bare_http2,
        "{} + our wire, HTTP/2": _wire_http2,
        "ours on {}, HTTP/2": _stack_http2,
    }.items()
} | {"aiohttp": _aiohttp}
