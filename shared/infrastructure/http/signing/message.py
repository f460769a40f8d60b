"""A request as a signature sees it: RFC 9421, section 2, and RFC 9530."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from shared.infrastructure.http.amend import OutgoingRequest
from shared.infrastructure.http.signing.structured import Item, serialize_item, serialize_list
from shared.infrastructure.resilience import ConfigurationError

DIGEST = "content-digest"

_DEFAULT_PORTS = {"http": "80", "https": "443"}
_DERIVED = frozenset({"@method", "@scheme", "@authority", "@path", "@query", "@target-uri"})
_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_OBS_FOLD = re.compile(r"[ \t]*\r?\n[ \t]+")


class ComponentError(ValueError):
    """A component is not there, or cannot be signed."""


@dataclass(frozen=True)
class Message:
    """A request, on the side that sends it or on the side that got it.

    Attributes:
        method: As sent.
        scheme: "http" or "https".
        target: Path and query as sent, with their percent signs.
        headers: Names and values, one pair for each field line.
        body: All of it; None if it cannot be read here.
        authority: Host and port of the URL, in case there is no Host field.
    """

    method: str
    scheme: str
    target: str
    headers: Sequence[tuple[str, str]] = field(repr=False)
    body: bytes | None = field(default=b"", repr=False)
    authority: str = ""

    @classmethod
    def of(cls, request: OutgoingRequest) -> Self:
        """Return the message that a request of httpx or httpx2 is."""
        try:
            body = request.content
        except RuntimeError:  # a stream
            body = None
        url = request.url
        return cls(
            request.method,
            url.scheme,
            url.raw_path.decode("ascii"),
            request.headers.multi_items(),
            body,
            url.netloc.decode("ascii"),
        )

    @classmethod
    def from_asgi(cls, scope: Mapping[str, Any], body: bytes) -> Self:
        """Return the message that an ASGI server got.

        Raises:
            ConfigurationError: The server keeps the path as it was sent to itself.
        """
        path: bytes | None = scope.get("raw_path")
        if path is None:
            raise ConfigurationError("signatures need a server that gives `raw_path` in the scope")
        query: bytes = scope["query_string"]
        target = path + b"?" + query if query else path
        return cls(
            scope["method"],
            scope.get("scheme", "http"),
            target.decode("latin-1"),
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
            body,
        )

    def with_fields(self, fields: Mapping[str, str]) -> Self:
        """Return the message with header fields more."""
        return replace(self, headers=[*self.headers, *fields.items()])

    def fields(self, name: str) -> list[str]:
        """Return the values of a field, one for each line, without folds and outer white space."""
        return [
            _OBS_FOLD.sub(" ", value.strip(" \t"))
            for key, value in self.headers
            if key.lower() == name
        ]

    def component(self, name: str) -> str:
        """Return the value of a component.

        Raises:
            ComponentError: The message has no such component, or not one that can be signed.
        """
        value = self._derived(name) if name.startswith("@") else self._field(name)
        if not value.isascii() or not value.replace("\t", " ").isprintable():
            raise ComponentError(f'"{name}" has characters other than printable ASCII')
        return value

    def _field(self, name: str) -> str:
        values = self.fields(name)
        if not values:
            raise ComponentError(f'there is no header field "{name}"')
        return ", ".join(values)

    def _derived(self, name: str) -> str:
        path, mark, query = self.target.partition("?")
        match name:
            case "@method":
                return self.method
            case "@scheme":
                return self.scheme.lower()
            case "@authority":
                return self._authority()
            case "@path":
                return path or "/"
            case "@query":  # "?" also if there is none
                return f"?{query}"
            case "@target-uri":
                return f"{self.scheme.lower()}://{self._authority()}{path or '/'}{mark}{query}"
            case _:
                raise ComponentError("a derived component is none of those we know")

    def _authority(self) -> str:
        hosts = self.fields("host") or [self.authority]
        if len(hosts) > 1 or not hosts[0]:
            raise ComponentError("there is not one Host field but several, or none")
        host, colon, port = hosts[0].lower().rpartition(":")
        is_default = port in {"", _DEFAULT_PORTS.get(self.scheme.lower())}
        return host if colon and is_default else hosts[0].lower()


def signature_base(
    message: Message, components: Sequence[str], parameters: Mapping[str, Item]
) -> bytes:
    """Return what is signed: RFC 9421, section 2.5.

    Raises:
        ComponentError: A component is not there, or cannot be signed.
        FieldSyntaxError: A parameter cannot be written.
    """
    lines = [f"{serialize_item(name)}: {message.component(name)}" for name in components]
    lines.append(f'"@signature-params": {serialize_list(components, parameters)}')
    return "\n".join(lines).encode("ascii")


def checked_components(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of components, those of header fields in lower case.

    Raises:
        ConfigurationError: One is unknown, or comes twice.
    """
    checked = tuple(name.lower() for name in names)
    wrong = [name for name in checked if name not in _DERIVED and not _FIELD_NAME.fullmatch(name)]
    if wrong or len(set(checked)) < len(checked):
        raise ConfigurationError(
            f"components must be known and come once each, unlike {wrong or names}"
        )
    return checked


def content_digest(sha256: bytes) -> str:
    """Return the Content-Digest of a body from its SHA-256: RFC 9530, section 2."""
    return f"sha-256={serialize_item(sha256)}"
