"""From a name to its addresses, and to the first of them that answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain, zip_longest
from typing import Any, TypeVar

from shared.infrastructure.resilience import Clock, ServiceError

T = TypeVar("T")

Address = tuple[socket.AddressFamily, tuple[Any, ...]]

AddressCheck = Callable[[str], None]
"""Called with an IP address before it is connected to; what it raises ends the call."""

# RFC 8305, section 8: how long an address may take before the next one is tried beside it.
_HEAD_START = 0.25


async def resolve(host: str, port: int, check: AddressCheck | None) -> list[Address]:
    """Return the addresses of `host`, families in turn, the preferred one first.

    All of them have passed `check`, and what is connected to later are these: nobody asks again.

    Raises:
        OSError: There is none.
        UnicodeError: `host` cannot be a name.
        AddressRefusedError: `check` says no to one of them, or what else it raises.
    """
    addresses = await _addresses_of(host, port)
    if check is not None:
        for _, (ip, *_rest) in addresses:
            try:
                check(ip)
            except ServiceError as refusal:
                refusal.host = refusal.host or host
                raise
    return addresses


async def first_open(
    addresses: Sequence[Address],
    open_one: Callable[[Address], Awaitable[T]],
    close: Callable[[T], object],
    clock: Clock,
) -> T:
    """Return what `open_one` makes of the first address that answers (RFC 8305, "happy eyeballs").

    Args:
        addresses: In the order of preference; at least one.
        open_one: Opens a connection to an address.
        close: Closes one that came too late.
        clock: Source of monotonic time.

    Raises:
        OSError: None of them answers; it is the failure of the last one, of whatever class.
    """
    if len(addresses) == 1:
        return await open_one(addresses[0])

    def close_late(task: asyncio.Task[T]) -> None:
        if not task.cancelled() and task.exception() is None:
            close(task.result())

    async def attempt(address: Address) -> T:
        return await open_one(address)

    untried = list(reversed(addresses))
    racing: set[asyncio.Task[T]] = set()
    failure: BaseException = OSError("no address")
    try:
        while untried or racing:
            if untried:
                racing.add(asyncio.create_task(attempt(untried.pop())))
            for task in await _first_done(racing, clock if untried else None):
                racing.discard(task)
                if (error := task.exception()) is None:
                    return task.result()
                failure = error
    finally:
        for task in racing:
            task.cancel()
            task.add_done_callback(close_late)
    raise failure


async def _addresses_of(host: str, port: int) -> list[Address]:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, (host, port))]
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    by_family: dict[socket.AddressFamily, list[Address]] = {}
    for family, _, _, _, address in found:
        by_family.setdefault(family, []).append((family, address))
    in_turn = chain.from_iterable(zip_longest(*by_family.values()))
    return [address for address in in_turn if address is not None]


async def _first_done(racing: set[asyncio.Task[T]], clock: Clock | None) -> list[asyncio.Task[T]]:
    """Wait for one of `racing`; with a clock, only for the head start."""
    woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: object = None) -> None:
        if not woken.done():
            woken.set_result(None)

    timer = None if clock is None else clock.call_later(_HEAD_START, wake)
    for task in racing:
        task.add_done_callback(wake)
    try:
        await woken
    finally:
        if timer is not None:
            timer.cancel()
        for task in racing:
            task.remove_done_callback(wake)
    return [task for task in racing if task.done()]
