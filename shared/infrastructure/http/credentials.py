"""The key of an API: read anew for each attempt, put on it alone, and never shown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn, Protocol, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import SecretStr

from shared.infrastructure.http.amend import OutgoingRequest, amended
from shared.infrastructure.http.semantics import is_replayable
from shared.infrastructure.http.wire.origin import origin_of
from shared.infrastructure.resilience import ConfigurationError, Inner, Listeners, SingleFlight
from shared.infrastructure.resilience.events import NO_LISTENERS, Event

Key = str | SecretStr

ApiKey = Key | Callable[[], Key | Awaitable[Key]]
"""A key, or a function that is asked for it before every attempt.

A plain function runs on the event loop, so it must not block. One that has to go somewhere for the
key is a coroutine function, and keeps what it got for as long as that is good.
"""

REDACTED = "[redacted]"
"""Stands for the value of a header field that is nobody's business."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# A field that has one of these words in its name holds a secret, but for the exceptions.
_SECRET_WORDS = frozenset(
    {
        *("apikey", "auth", "authorization", "cookie", "credential", "credentials", "jwt", "key"),
        *("password", "secret", "session", "token"),
    }
)
_NO_SECRETS = frozenset({"idempotency-key", "sec-websocket-key"})


class CredentialError(ConfigurationError):
    """There is no key to send: its provider failed, or gave something that is none.

    Nothing was sent, and it says nothing about the service. The key is never part of the message,
    nor is what a provider says when it fails.
    """

    code = "credential_error"


@dataclass(frozen=True, slots=True)
class ApiKeyRenewed(Event):
    """The service refused a key that had been replaced: the attempt goes on with the new one."""

    kind: ClassVar[str] = "api_key_renewed"

    def __str__(self) -> str:
        return "401 to a key that has been replaced: sent again with the new one"


class Confidential:
    """Base of whatever holds a secret: it cannot be pickled, and so not be copied anywhere."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a secret and is not to be pickled")


class _Answer(Protocol):
    @property
    def status_code(self) -> int: ...


Request = TypeVar("Request", bound=OutgoingRequest)
Answer = TypeVar("Answer", bound=_Answer)


class ApiKeyLayer(Confidential):
    """Put a key on every attempt, as it is at that moment.

    If the service answers 401 and the provider meanwhile gives another key, the attempt is made
    once more at once: a 401 says that the request was not processed. Else the 401 is returned as it
    is. Only the copy of the request that goes to the wire has the key, so that it turns up neither
    in a response nor in a redirect.

    Attempts that ask an asynchronous provider at the same time share one answer, since after a
    rotation they all come at once; so do those whose key was refused, with an answer begun after
    the first refusal.

    Position: below everything that makes attempts or counts them, right above the wire; above
    `SigningLayer`.

    Args:
        key: The key, or its provider.
        origin: URL of the service; a request to any other origin, as after a redirect, goes without
            the key. None sends it wherever the requests go.
        header: Name of the header field.
        scheme: Stands before the key, with a space; "" is the bare key.
        name: Service, used in events.
        listeners: Told when a refused key was replaced by a new one.

    Raises:
        CredentialError: There is no key to send.
        ConfigurationError: `origin` or `header` is not one.
    """

    def __init__(
        self,
        key: ApiKey,
        *,
        origin: str | None,
        header: str = "Authorization",
        scheme: str = "Bearer",
        name: str = "service",
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        if not _TOKEN.fullmatch(header):
            raise ConfigurationError(f"{header!r} is not the name of a header field")
        if scheme and not _TOKEN.fullmatch(scheme):
            raise ConfigurationError(f"{scheme!r} is not an authentication scheme")
        self._header = header
        self._prefix = f"{scheme} " if scheme else ""
        self._origin = None if origin is None else _origin(origin)
        self._name = name
        self._listeners = listeners
        self._provider = key if callable(key) else None
        self._fixed = None if callable(key) else _checked(key)
        self._is_async = False
        self._readings = SingleFlight[SecretStr | None, Key](f"{name} key")

    async def __call__(self, request: Request, inner: Inner[Request, Answer]) -> Answer:
        if self._origin not in {None, (request.url.scheme, request.url.netloc)}:
            return await inner.send(request)
        key = self._fixed or await self._read()
        answer = await inner.send(self._keyed(request, key))
        if answer.status_code != 401 or self._provider is None or not is_replayable(request):
            return answer
        try:
            renewed = await self._read(refused=key)
        except ConfigurationError:  # the 401 tells more
            return answer
        except BaseException:
            await inner.semantics.discard(answer)
            raise
        if renewed == key:
            return answer
        await inner.semantics.discard(answer)
        self._listeners(ApiKeyRenewed(self._name))
        return await inner.send(self._keyed(request, renewed))

    def _keyed(self, request: Request, key: SecretStr) -> Request:
        return amended(request, {self._header: self._prefix + key.get_secret_value()})

    async def _read(self, refused: SecretStr | None = None) -> SecretStr:
        try:
            return _checked(await self._ask(refused))
        except ConfigurationError:
            raise
        except Exception as exc:
            failure = type(exc).__name__
        # Raised out here, so that nothing leads from it to what may have the key in its text.
        raise CredentialError(
            f"the provider of the key failed with {failure}; what it says is left out, for it may "
            "hold the key: call it by itself to see"
        )

    async def _ask(self, refused: SecretStr | None) -> Key:
        if self._is_async:
            return await self._readings.do(refused, self._fetch)
        given = self._provide()
        if not inspect.isawaitable(given):
            return given
        self._is_async = True
        return await self._readings.do(refused, lambda: given)

    async def _fetch(self) -> Key:
        given = self._provide()
        return await given if inspect.isawaitable(given) else given

    def _provide(self) -> Key | Awaitable[Key]:
        return cast("Callable[[], Key | Awaitable[Key]]", self._provider)()


def key_file(path: str | Path) -> Callable[[], SecretStr]:
    """Return a provider that reads the key from a file, without the white space around it.

    The file is read for each attempt: that takes a few microseconds, and no time stamp can hide a
    rotation. Replace it by renaming, so that nobody reads half a key.
    """
    path = Path(path)

    def read() -> SecretStr:
        try:
            with path.open("rb", buffering=0) as file:
                text = file.read()
        except OSError as exc:
            reason = exc.strerror
        else:
            # Latin-1 takes any bytes; whether they make a key is seen where it is used.
            return SecretStr(text.decode("latin-1").strip())
        raise CredentialError(f"the key file {path} cannot be read: {reason}")

    return read


def redacted(headers: Mapping[str, str]) -> dict[str, str]:
    """Return header fields fit for a log: `REDACTED` stands for every value that may be secret.

    A field counts as secret by the words of its name: `Authorization`, `Cookie`, `X-Api-Key`,
    `X-Amz-Security-Token`, ….
    """
    return {name: REDACTED if _is_secret(name) else value for name, value in headers.items()}


def _is_secret(name: str) -> bool:
    name = name.lower()
    return name not in _NO_SECRETS and not _SECRET_WORDS.isdisjoint(re.split(r"[-_]", name))


def _checked(key: object) -> SecretStr:
    """Return a key that a header field can carry.

    ASCII alone, since nobody agrees on how other text is encoded there.
    """
    text: object = key.get_secret_value() if isinstance(key, SecretStr) else key
    if not isinstance(text, str):
        raise CredentialError(f"the key is no text but a {type(text).__name__}")
    if not text:
        raise CredentialError("the key is empty")
    if not (text.isascii() and text.isprintable() and text == text.strip()):
        raise CredentialError(
            "the key has characters that cannot stand in a header field: it must be printable "
            "ASCII with no space around it"
        )
    return SecretStr(text)


def _origin(url: str) -> tuple[str, bytes]:
    """Return scheme and authority of a URL as the libraries have them."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    else:
        if host and host.isascii() and parts.scheme in {"http", "https"}:
            return parts.scheme, origin_of(parts.scheme, host, port).authority.encode("ascii")
    raise ConfigurationError(
        "the origin must be a URL with http:// or https:// and a host in ASCII"
    )
