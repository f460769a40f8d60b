"""Address a request that was made for the pool to one host of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import httpx

from shared.infrastructure.balancing.hosts.config import LLMHost
from shared.infrastructure.http.amend import extended

# Where services look for a caller's credentials.
_CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key"})
_MAX_URLS = 64


class Addressing:
    """Knows the URL of a host, and the header fields that only this host gets.

    Args:
        config: What the user said about the host.

    Attributes:
        has_credentials: Whether those that go to the host are ours, and not the caller's.
    """

    def __init__(self, config: LLMHost) -> None:
        self._base = httpx.URL(config.url)
        self._prefix = self._base.raw_path.rstrip(b"/")
        host = (b"Host", self._base.netloc)
        given = [(name.encode("ascii"), value) for name, value in config.headers.items()]
        self._own = [host, *((name, value.encode("utf-8")) for name, value in given)]
        dropped = {name.lower() for name, _ in self._own}
        if config.api_key is not None:
            dropped |= _CREDENTIALS
            if config.key_header is not None:
                dropped.add(config.key_header.lower().encode("ascii"))
        self.has_credentials = not _CREDENTIALS.isdisjoint(dropped)
        self._dropped = frozenset(dropped)
        self._dropped_of_streams = self._dropped | {b"accept-encoding"}
        self._fields = [(name, name.lower(), value) for name, value in self._own]
        # The end of a stream has to be seen, and a compressed one would hide it.
        identity = (b"Accept-Encoding", b"accept-encoding", b"identity")
        self._fields_of_streams = [*self._fields, identity]
        self._urls: OrderedDict[bytes, httpx.URL] = OrderedDict()

    def readdress(
        self, request: httpx.Request, extensions: Mapping[str, Any], *, streamed: bool
    ) -> httpx.Request:
        """Return a copy of `request` that goes to the host, with further extensions."""
        fields, dropped = self._fields, self._dropped
        if streamed:
            fields, dropped = self._fields_of_streams, self._dropped_of_streams
        own: httpx.Request = extended(request, extensions)
        headers: Any = request.headers.copy()
        # The public ways to the same end take five times as long.
        kept = [field for field in headers._list if field[1] not in dropped]  # noqa: SLF001
        headers._list = fields + kept  # noqa: SLF001
        own.headers = headers
        own.url = self.url(request.url.raw_path)
        return own

    def check(self, path: str, timeouts: Mapping[str, float | None]) -> httpx.Request:
        """Return a request that asks the host how it is doing."""
        extensions = {"timeout": timeouts, "buffered": True}
        url = self.url(path.encode("ascii"))
        return httpx.Request("GET", url, headers=list(self._own), extensions=extensions)

    def url(self, path: bytes) -> httpx.URL:
        """Return where a path, and its query, is found at the host."""
        url = self._urls.get(path)
        if url is None:
            # Made once for each path: that takes longer than all else here.
            url = self._urls[path] = self._base.copy_with(raw_path=self._prefix + path)
            if len(self._urls) > _MAX_URLS:
                self._urls.popitem(last=False)
        return url
