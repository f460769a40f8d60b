"""Hosts, taken out and put back while the process runs."""

from __future__ import annotations

import math
from typing import Any, cast

import orjson

from shared.infrastructure.balancing import DistributedLLMClient
from shared.infrastructure.server import HTTPError, Reply, Request, Route, json_reply

_DRAIN_TIMEOUT = 30.0


class AdminHandlers:
    """The handlers of the routes under `/admin`.

    Args:
        client: The pool.
    """

    def __init__(self, client: DistributedLLMClient) -> None:
        self._client = client

    async def hosts(self, _request: Request) -> Reply:
        """Show every host."""
        return json_reply({"hosts": self._client.get_metrics()["hosts"]})

    async def enable(self, request: Request) -> Reply:
        """Give new calls to a host again."""
        name = self._name(request)
        self._client.enable_host(name)
        return self._shown(name)

    async def disable(self, request: Request) -> Reply:
        """Give no new calls to a host."""
        name = self._name(request)
        self._client.disable_host(name)
        return self._shown(name)

    async def drain(self, request: Request) -> Reply:
        """Give no new calls to a host, and answer when those it has are over."""
        name = self._name(request)
        seconds = _number(request, "timeout", _DRAIN_TIMEOUT)
        is_drained = await self._client.drain_host(name, seconds)
        return self._shown(name, drained=is_drained)

    async def weight(self, request: Request) -> Reply:
        """Change a host's share of the work."""
        name = self._name(request)
        self._client.set_weight(name, _number(request, "weight", None))
        return self._shown(name)

    def routes(self) -> dict[str, Route]:
        """Return what each path leads to."""
        actions = {
            "enable": (self.enable, "Give new calls to a host again"),
            "disable": (self.disable, "Give no new calls to a host"),
            "drain": (self.drain, "Give no new calls to a host, and wait for those it has"),
            "weight": (self.weight, "Change a host's share of the work"),
        }
        show = Route(
            method="GET",
            handler=self.hosts,
            summary="The hosts, and how they are",
            response="Hosts",
        )
        return {
            "/admin/hosts": show,
            **{
                f"/admin/hosts/{{name}}/{action}": Route(
                    method="POST",
                    handler=handler,
                    summary=summary,
                    response="Host",
                    failures=(413, 503),
                )
                for action, (handler, summary) in actions.items()
            },
        }

    def _name(self, request: Request) -> str:
        name = request.params["name"]
        if name not in self._client.get_metrics()["hosts"]:
            raise HTTPError(404, "there is no host of this name", code="unknown_host")
        return name

    def _shown(self, name: str, **more: object) -> Reply:
        host = self._client.get_metrics()["hosts"][name]
        return json_reply({"name": name, "host": host, **more})


def _number(request: Request, name: str, default: float | None) -> float:
    try:
        body: Any = orjson.loads(request.body or b"{}")
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise HTTPError(400, "the body is no JSON object", code="invalid_json")
    value = cast("dict[str, object]", body).get(name, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < cast("float", value) < math.inf:
        raise HTTPError(400, f"{name} must be a number above 0", param=name)
    return float(cast("float", value))
