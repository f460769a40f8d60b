"""The two HTTP libraries, for tests that must hold for both."""

from types import ModuleType
from typing import Any, NamedTuple

import httpx
import httpx2
import pytest

from shared.infrastructure.http import httpx as first
from shared.infrastructure.http import httpx2 as second


class Flavour(NamedTuple):
    """One HTTP library, and our classes for it."""

    library: ModuleType
    ours: ModuleType

    def client(self, handler: Any, **options: Any) -> Any:
        """Return a client whose transport is the library's mock."""
        options.setdefault("base_url", "http://orders.test")
        transport = self.library.MockTransport(handler)
        return self.ours.EnhancedHTTPClient("orders", transport=transport, **options)

    def streamed(self, *chunks: bytes | Exception, **options: Any) -> Any:
        """Return an answer whose body comes in pieces, and may break."""
        library = self.library

        class Body(library.AsyncByteStream):  # type: ignore[misc,name-defined]
            async def __aiter__(self) -> Any:
                for chunk in chunks:
                    if isinstance(chunk, Exception):
                        raise chunk
                    yield chunk

        return library.Response(200, stream=Body(), **options)


FLAVOURS = [
    pytest.param(Flavour(httpx, first), id="httpx"),
    pytest.param(Flavour(httpx2, second), id="httpx2"),
]
