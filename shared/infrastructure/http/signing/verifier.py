"""Verifying on the way in."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import SecretBytes

from shared.infrastructure.http.credentials import Confidential
from shared.infrastructure.http.signing import errors
from shared.infrastructure.http.signing.message import (
    DIGEST,
    ComponentError,
    Message,
    checked_components,
    signature_base,
)
from shared.infrastructure.http.signing.nonces import NonceMemory
from shared.infrastructure.http.signing.signer import (
    ALGORITHM,
    COMPONENTS,
    SharedSecret,
    hmac_sha256,
    secret_bytes,
)
from shared.infrastructure.http.signing.structured import (
    FieldSyntaxError,
    Item,
    Member,
    Token,
    parse_dictionary,
)
from shared.infrastructure.resilience import ConfigurationError

_INCLUDED = {"@target-uri": ("@scheme", "@authority", "@path", "@query")}
_DIGESTS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
_MAX_NONCE = 256


@dataclass(frozen=True)
class VerifiedSignature:
    """Who signed a request, and what of it.

    Attributes:
        keyid: Tells whose secret it was.
        components: What was signed; nothing else in the request is to be trusted.
        created: When, in seconds since 1970.
    """

    keyid: str
    components: tuple[str, ...]
    created: int


class SignatureVerifier(Confidential):
    """Tell requests signed with one of our secrets from all others: RFC 9421 with hmac-sha256.

    A request with a body has to have its digest signed. No request gets through twice, as far as
    this object knows: it forgets when the process ends, and does not know of other processes.
    May be used from several threads.

    Args:
        secrets: By key id; looked into for each request, so one may be added or withdrawn while it
            is in use.
        components: What has to be signed; `@target-uri` stands for the parts of it.
        window: Seconds that the time of a signature may be away from ours, either way; 300; above
            0.
        max_nonces: Nonces remembered for each key; 100,000; at least 1. A client that sends more
            in `window` has its older signatures refused.
        wall_clock: Source of seconds since 1970.

    Raises:
        ConfigurationError: A secret is too short, or a number is out of range.
    """

    def __init__(
        self,
        secrets: Mapping[str, SharedSecret],
        *,
        components: Sequence[str] = COMPONENTS,
        window: float = 300.0,
        max_nonces: int = 100_000,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if not window > 0 or max_nonces < 1:
            raise ConfigurationError("window must be above 0 and max_nonces at least 1")
        for secret in secrets.values():
            secret_bytes(secret)
        self._secrets = secrets
        self._components = frozenset(checked_components(components))
        self._window = window
        self._max_nonces = max_nonces
        self._wall_clock = wall_clock
        self._memories: dict[str, NonceMemory] = {}

    def verify(self, message: Message) -> VerifiedSignature:
        """Return whose signature a request has.

        Raises:
            SignatureError: It is not to be trusted; the class and its `code` say why.
            ConfigurationError: The message has no body to compare with its digest.
        """
        if message.body is None:
            raise ConfigurationError("a request is verified with its whole body: read it first")
        signature, secret = self._signature_by_us(message)
        now = self._wall_clock()
        self._check_time(signature, now)
        self._check_coverage(signature, message)
        _check_value(signature, secret, message)
        _check_digest(signature, message)
        memory = self._memory(signature.keyid)
        if not memory.add(signature.nonce, signature.created, now):
            raise errors.SignatureReplayedError("this signature was here before, or is too old")
        return VerifiedSignature(signature.keyid, signature.components, signature.created)

    def _memory(self, keyid: str) -> NonceMemory:
        memory = self._memories.get(keyid)
        if memory is None:  # `setdefault`, for another thread may be here, too
            fresh = NonceMemory(self._window, self._max_nonces)
            memory = self._memories.setdefault(keyid, fresh)
        return memory

    def _signature_by_us(self, message: Message) -> tuple[_Received, SharedSecret]:
        inputs = _dictionary(message, "signature-input")
        values = _dictionary(message, "signature")
        if not inputs:
            raise errors.SignatureMissingError("the request has no signature")
        ours = [
            (label, secret)
            for label, (_, parameters) in inputs.items()
            if isinstance(keyid := parameters.get("keyid"), str)
            and (secret := self._secrets.get(keyid)) is not None
        ]
        if not ours:
            raise errors.UnknownKeyError("no signature is by a key that is known here")
        if len(ours) > 1:
            raise errors.SignatureMalformedError("several signatures are by keys of ours")
        label, secret = ours[0]
        return _received(inputs[label], values.get(label)), secret

    def _check_time(self, signature: _Received, now: float) -> None:
        expires = signature.parameters.get("expires")
        if abs(now - signature.created) > self._window:
            raise errors.SignatureExpiredError(
                f"the signature was not made within {self._window:g} s of now"
            )
        if expires is not None and now > _integer(expires):
            raise errors.SignatureExpiredError("the signature has expired")

    def _check_coverage(self, signature: _Received, message: Message) -> None:
        covered = set(signature.components)
        for name, parts in _INCLUDED.items():
            covered |= set(parts) if name in covered else set()
        required = self._components | {DIGEST} if message.body else self._components
        missing = sorted(required - covered)
        if missing:
            raise errors.SignatureCoverageError(f"not signed: {', '.join(missing)}")


@dataclass(frozen=True)
class _Received:
    """A signature as it came, in the right form but not verified."""

    components: tuple[str, ...]
    parameters: Mapping[str, Item]
    keyid: str
    created: int
    nonce: str
    value: bytes


def _received(signature_input: Member, signature: Member | None) -> _Received:
    components, parameters = signature_input
    value = signature.value if signature is not None else None
    if not isinstance(components, tuple) or not isinstance(value, bytes):
        raise errors.SignatureMalformedError("a signature has a list of components and a value")
    names = tuple(_text(name) for name in components)
    if len(set(names)) < len(names):
        raise errors.SignatureMalformedError("a component is listed twice")
    if parameters.get("alg", ALGORITHM) != ALGORITHM:
        raise errors.SignatureMalformedError(f"the algorithm is not {ALGORITHM}")
    nonce = _text(parameters.get("nonce"))
    if not 0 < len(nonce) <= _MAX_NONCE:
        raise errors.SignatureMalformedError(f"a nonce has 1 to {_MAX_NONCE} characters")
    created = _integer(parameters.get("created"))
    return _Received(names, parameters, _text(parameters.get("keyid")), created, nonce, value)


def _text(item: Item | None) -> str:
    if not isinstance(item, str) or isinstance(item, Token):
        raise errors.SignatureMalformedError(
            "nonce, keyid and components are strings, none missing"
        )
    return item


def _integer(item: Item | None) -> int:
    if not isinstance(item, int) or isinstance(item, bool):
        raise errors.SignatureMalformedError(
            "created and expires are integers, and created is there"
        )
    return item


def _dictionary(message: Message, name: str) -> dict[str, Member]:
    try:
        return parse_dictionary(", ".join(message.fields(name)))
    except FieldSyntaxError as exc:
        raise errors.SignatureMalformedError(f"{name}: {exc}") from None


def _check_value(signature: _Received, secret: SharedSecret, message: Message) -> None:
    try:
        base = signature_base(message, signature.components, signature.parameters)
    except (ComponentError, FieldSyntaxError):
        raise errors.SignatureMismatchError(
            "something that was signed is not in the request, or not in one reading alone"
        ) from None
    actual = hmac_sha256(SecretBytes(secret_bytes(secret)), base)
    if not hmac.compare_digest(actual, signature.value):
        raise errors.SignatureMismatchError(
            "the signature is of another key, or of another request"
        )


def _check_digest(signature: _Received, message: Message) -> None:
    if DIGEST not in signature.components:  # then there is no body
        return
    digests = {
        name: member.value
        for name, member in _dictionary(message, DIGEST).items()
        if name in _DIGESTS
    }
    if not digests:
        raise errors.SignatureMalformedError(f"{DIGEST} is by neither {' nor '.join(_DIGESTS)}")
    for name, value in digests.items():
        actual = _DIGESTS[name](message.body or b"").digest()
        if not isinstance(value, bytes) or not hmac.compare_digest(actual, value):
            raise errors.DigestMismatchError("the body is not the one that was signed")
