"""Change header fields or extensions for one attempt of a request, and for nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar


class URL(Protocol):
    """An absolute URL as httpx has it: lower case and in ASCII, the scheme's own port left out."""

    @property
    def scheme(self) -> str: ...
    @property
    def netloc(self) -> bytes: ...
    @property
    def path(self) -> str: ...
    @property
    def raw_path(self) -> bytes: ...


class OutgoingRequest(Protocol):
    """A request on its way to the wire; its header fields are a `Headers` of its library."""

    @property
    def method(self) -> str: ...
    @property
    def url(self) -> URL: ...
    @property
    def headers(self) -> Any: ...
    @property
    def content(self) -> bytes: ...
    @property
    def stream(self) -> Any: ...
    @property
    def extensions(self) -> Mapping[str, Any]: ...


Request = TypeVar("Request", bound=OutgoingRequest)


def amended(request: Request, fields: Mapping[str, str]) -> Request:
    """Return a copy of `request` with other header fields; body and extensions are shared.

    The request itself stays as it is: another attempt may be under way with it, and its header
    fields live on in responses, errors and redirects, where a secret has no business.
    """
    headers = request.headers.copy()
    for name, value in fields.items():
        headers[name] = value
    return _copied(request, "headers", headers)


def extended(request: Request, extensions: Mapping[str, Any]) -> Request:
    """Return a copy of `request` with other extensions besides its own; all else is shared."""
    return _copied(request, "extensions", {**request.extensions, **extensions})


def _copied(request: Request, name: str, value: object) -> Request:
    # Not by `copy.copy`: the requests of httpx take leave of their body when they are copied.
    copied = object.__new__(type(request))
    vars(copied).update(vars(request))
    vars(copied)[name] = value
    return copied
