"""How an answer came about, told by the answer itself."""

from __future__ import annotations

import httpx

from shared.infrastructure.balancing.accounting import CACHED, PriceTable
from shared.infrastructure.balancing.call import ATTEMPT, CALL
from shared.infrastructure.balancing.typed import route_info
from shared.infrastructure.resilience import ConfigurationError
from shared.models import RouteInfo


def route_of(response: httpx.Response, prices: PriceTable | None = None) -> RouteInfo:
    """Tell how an answer came about that `request`, `open` or a transport returned.

    Args:
        response: The answer.
        prices: What tokens cost; None leaves that unknown.

    Raises:
        ConfigurationError: It is no answer of a pool.
    """
    extensions = response.extensions
    if CALL not in extensions:
        raise ConfigurationError("this is no answer of a pool")
    call, cached = extensions[CALL], CACHED in extensions
    return route_info(call, extensions.get(ATTEMPT), prices, cached=cached)
