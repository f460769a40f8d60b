"""Ask all hosts which models they serve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import httpx

from shared.infrastructure.balancing.errors import NoHostAvailableError
from shared.infrastructure.balancing.hosts import Host
from shared.infrastructure.balancing.typed import models
from shared.infrastructure.resilience import Clock, deadline
from shared.models import ModelList


async def models_by_host(
    hosts: Sequence[Host],
    build: Callable[[], httpx.Request],
    timeout: float | None,
    clock: Clock,
) -> dict[str, ModelList]:
    """Return what each host lists; those that do not answer are left out.

    Args:
        hosts: Whom to ask, all at once.
        build: Returns the request of a new call.
        timeout: Seconds that each may take; None is no bound.
        clock: Source of monotonic time.

    Raises:
        NoHostAvailableError: None answers.
    """

    async def listed(host: Host) -> ModelList:
        if timeout is None:
            return await models(host.send, build())
        async with deadline(timeout, clock=clock):
            return await models(host.send, build())

    answers = await asyncio.gather(*map(listed, hosts), return_exceptions=True)
    lists: dict[str, ModelList] = {}
    reasons: dict[str, str] = {}
    for host, answer in zip(hosts, answers, strict=True):
        if isinstance(answer, ModelList):
            lists[host.name] = answer
        elif isinstance(answer, Exception):
            reasons[host.name] = str(answer)
        else:
            raise answer
    if not lists:
        raise NoHostAvailableError(reasons)
    return lists
