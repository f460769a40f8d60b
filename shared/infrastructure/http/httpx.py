"""The flavour for httpx: what a user sees of this package, as classes of that library."""

from __future__ import annotations

from http.cookiejar import CookieJar

import httpx

from shared.infrastructure.http.client import ServiceClient
from shared.infrastructure.http.library import HTTPX
from shared.infrastructure.http.transport import LayeredTransport
from shared.infrastructure.http.wire.transport import PooledTransport

_CookieTypes = httpx.Cookies | CookieJar | dict[str, str] | list[tuple[str, str]]


class WireTransport(PooledTransport, httpx.AsyncBaseTransport):
    """The SDK's own wire; `PooledTransport` says what it takes and does."""

    library = HTTPX


class ResilientTransport(LayeredTransport, httpx.AsyncBaseTransport):
    """A transport around layers; `LayeredTransport` says what it takes and does."""

    library = HTTPX


class EnhancedHTTPClient(ServiceClient, httpx.AsyncClient):
    """An `httpx.AsyncClient` for one service; `ServiceClient` says what it takes and does."""

    library = HTTPX
    wire_class = WireTransport
    transport_class = ResilientTransport
    _jar: _Cookies | None = None

    @property
    def cookies(self) -> httpx.Cookies:
        """What the service has set, and is sent with every request."""
        if self._jar is None:
            self._jar = _Cookies(self._cookies.jar)
        return self._jar

    @cookies.setter
    def cookies(self, cookies: _CookieTypes) -> None:
        self._jar = _Cookies(cookies)


class _Cookies(httpx.Cookies):
    def extract_cookies(self, response: httpx.Response) -> None:
        # Without one to extract, that is a fifth of the cost of a request.
        if "set-cookie" in response.headers:
            super().extract_cookies(response)
