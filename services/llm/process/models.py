"""The models of all hosts, as one list."""

from __future__ import annotations

import asyncio

from services.llm.process.limits import Limits
from shared.infrastructure.balancing import DistributedLLMClient
from shared.infrastructure.balancing.facts import facts_of
from shared.infrastructure.resilience import MONOTONIC, Clock
from shared.infrastructure.server import Header, Reply, Request, json_reply

# Seconds that a host may take to list its models, and that a list is remembered.
_PATIENCE = 5.0
_FRESH = 5.0
# Lists that are remembered: with credentials of their own, clients may see different ones.
_MAX_LISTS = 256


class ModelLister:
    """Answers `/v1/models`: with the models of the hosts that answer, each once.

    Args:
        client: The pool.
        limits: How much each client may ask for.
        clock: Source of monotonic time.
    """

    def __init__(
        self, client: DistributedLLMClient, limits: Limits, *, clock: Clock = MONOTONIC
    ) -> None:
        self._client = client
        self._limits = limits
        self._now = clock.now
        self._lists: dict[tuple[Header, ...], tuple[float, asyncio.Future[object]]] = {}

    async def __call__(self, request: Request, headers: tuple[Header, ...]) -> Reply:
        """Answer with what the hosts list for these headers, now or a few seconds ago.

        Raises:
            HTTPError: The client may not now (429).
            NoHostAvailableError: No host answers.
        """
        self._limits.admit(request, facts_of(request.path, None))
        now = self._now()
        known = self._lists.get(headers)
        if known is None or known[0] <= now:
            self._forget(now)
            known = now + _FRESH, asyncio.ensure_future(self._listed(headers))
            self._lists[headers] = known
        try:
            # Whoever waits for the same list still does if this client hangs up.
            shown = await asyncio.shield(known[1])
        except Exception:
            if self._lists.get(headers) is known:
                del self._lists[headers]
            raise
        return json_reply({"object": "list", "data": shown})

    async def close(self) -> None:
        """Ask no host any more."""
        asking = [listing for _, listing in self._lists.values() if not listing.done()]
        for listing in asking:
            listing.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        self._lists.clear()

    async def _listed(self, headers: tuple[Header, ...]) -> object:
        by_host = await self._client.models(timeout=_PATIENCE, headers=list(headers))
        models = {model.id: model for listed in by_host.values() for model in listed.data}
        return [model.model_dump() for model in models.values()]

    def _forget(self, now: float) -> None:
        stale = [headers for headers, (until, _) in self._lists.items() if until <= now]
        for headers in stale:
            del self._lists[headers]
        while len(self._lists) >= _MAX_LISTS:
            del self._lists[next(iter(self._lists))]
