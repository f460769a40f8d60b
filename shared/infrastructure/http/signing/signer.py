"""Signing on the way out: HMAC-SHA256 by RFC 9421, and the layer for any signer."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from pydantic import SecretBytes, SecretStr

from shared.infrastructure.http.amend import OutgoingRequest, amended
from shared.infrastructure.http.credentials import Confidential
from shared.infrastructure.http.semantics import is_replayable
from shared.infrastructure.http.signing.errors import SigningError
from shared.infrastructure.http.signing.message import (
    DIGEST,
    ComponentError,
    Message,
    checked_components,
    content_digest,
    signature_base,
)
from shared.infrastructure.http.signing.structured import (
    FieldSyntaxError,
    Item,
    parse_dictionary,
    serialize_item,
    serialize_list,
)
from shared.infrastructure.resilience import ConfigurationError, Inner

ALGORITHM = "hmac-sha256"
COMPONENTS = ("@method", "@authority", "@path", "@query")
"""What is signed unless said otherwise; the digest of a body always is."""

SharedSecret = bytes | str | SecretBytes | SecretStr
"""Key of an HMAC, at least 16 bytes; of a text, its bytes in UTF-8."""

_MIN_SECRET = 16


class Signer(Protocol):
    """Signs requests, with a key of its own or by a service that has it."""

    async def sign(self, request: OutgoingRequest, /) -> Mapping[str, str]:
        """Return the header fields that make `request` a signed one.

        Raises:
            ConfigurationError: It cannot be signed as it is.
        """
        ...


Request = TypeVar("Request", bound=OutgoingRequest)
Answer = TypeVar("Answer")


class SigningLayer:
    """Sign every attempt, as it goes to the wire.

    A signature has a time and a nonce, so no two attempts may have the same one. What it covers
    must not change any more.

    Position: innermost.

    Args:
        signer: Signs.

    Raises:
        SigningError: The request cannot be signed, or the signer failed; nothing was sent, and it
            says nothing about the service.
    """

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    async def __call__(self, request: Request, inner: Inner[Request, Answer]) -> Answer:
        return await inner.send(amended(request, await self._sign(request)))

    async def _sign(self, request: OutgoingRequest) -> Mapping[str, str]:
        try:
            return await self._signer.sign(request)
        except ConfigurationError:
            raise
        except Exception as exc:
            failure = type(exc).__name__
        # Raised out here, so that nothing leads from it to what may have a secret in its text.
        raise SigningError(
            f"{type(self._signer).__name__} failed with {failure}; what it says is left out, for "
            "it may hold a secret: call it by itself to see"
        )


class HMACSigner(Confidential):
    """Sign with a secret that the service has, too: RFC 9421 with hmac-sha256.

    Args:
        keyid: Tells the service which secret it is.
        secret: The secret.
        components: What is signed: `@method`, `@scheme`, `@authority`, `@path`, `@query`,
            `@target-uri`, and names of header fields. Where there is a body, its Content-Digest
            (SHA-256) is added and signed as well.
        expires_in: Seconds after which the service is to refuse the signature; None (default)
            leaves that to the service; at least 1.
        label: Name of the signature within the request.
        wall_clock: Source of seconds since 1970.
        new_nonce: Source of nonces, never the same twice.

    Raises:
        ConfigurationError: The secret is too short, a name is none, or a number is out of range.
    """

    def __init__(
        self,
        keyid: str,
        secret: SharedSecret,
        *,
        components: Sequence[str] = COMPONENTS,
        expires_in: int | None = None,
        label: str = "sig1",
        wall_clock: Callable[[], float] = time.time,
        new_nonce: Callable[[], str] = secrets.token_urlsafe,
    ) -> None:
        self._label = label
        self._components = checked_components(components)
        try:  # each signature is a dictionary of one member
            written = f"{label}={serialize_list(self._components, {'keyid': keyid})}"
            names = list(parse_dictionary(written))
        except FieldSyntaxError:
            names = []
        if names != [label] or not keyid:
            raise ConfigurationError("keyid must be printable ASCII, and label a lower-case word")
        if expires_in is not None and expires_in < 1:
            raise ConfigurationError(f"expires_in must be at least 1 s, not {expires_in}")
        self._keyid = keyid
        self._secret = SecretBytes(secret_bytes(secret))
        self._expires_in = expires_in
        self._wall_clock = wall_clock
        self._new_nonce = new_nonce

    async def sign(self, request: OutgoingRequest, /) -> Mapping[str, str]:
        """Return `Signature-Input`, `Signature` and, where there is a body, `Content-Digest`.

        Raises:
            SigningError: Something that is to be signed is not there, or cannot be.
        """
        message = Message.of(request)
        components = self._components
        added: dict[str, str] = {}
        if message.body != b"" or DIGEST in components:
            if not message.fields(DIGEST):
                added["Content-Digest"] = content_digest(await _sha256(request))
                message = message.with_fields(added)
            if DIGEST not in components:
                components = (*components, DIGEST)
        parameters = self._parameters()
        try:
            base = signature_base(message, components, parameters)
        except (ComponentError, FieldSyntaxError) as exc:
            raise SigningError(f"the request cannot be signed: {exc}") from None
        return {
            **added,
            "Signature-Input": f"{self._label}={serialize_list(components, parameters)}",
            "Signature": f"{self._label}={serialize_item(hmac_sha256(self._secret, base))}",
        }

    def _parameters(self) -> dict[str, Item]:
        created = int(self._wall_clock())
        parameters: dict[str, Item] = {"created": created}
        if self._expires_in is not None:
            parameters["expires"] = created + self._expires_in
        parameters |= {"nonce": self._new_nonce(), "alg": ALGORITHM, "keyid": self._keyid}
        return parameters


def secret_bytes(secret: SharedSecret) -> bytes:
    """Return the bytes of a secret.

    Raises:
        ConfigurationError: They are too few.
    """
    plain = secret.get_secret_value() if isinstance(secret, (SecretBytes, SecretStr)) else secret
    data = plain.encode() if isinstance(plain, str) else plain
    if len(data) < _MIN_SECRET:
        raise ConfigurationError(
            f"the secret of a signature must have {_MIN_SECRET} bytes at least: "
            "secrets.token_bytes(32) makes a good one"
        )
    return data


def hmac_sha256(secret: SecretBytes, base: bytes) -> bytes:
    """Return the signature of a signature base: RFC 9421, section 3.3.3."""
    return hmac.digest(secret.get_secret_value(), base, "sha256")


async def _sha256(request: OutgoingRequest) -> bytes:
    """Return the digest of a body; one that can be sent more than once is read once for it."""
    try:
        return hashlib.sha256(request.content).digest()
    except RuntimeError:  # a stream
        if not is_replayable(request):
            raise SigningError(
                "the body is a stream that can be read only once, so its digest is not known "
                "before it is sent: give bytes, a path or a function that opens the body, call "
                "`await request.aread()` first, or send a Content-Digest of your own"
            ) from None
    digest = hashlib.sha256()
    async for chunk in request.stream:
        digest.update(chunk)
    return digest.digest()
