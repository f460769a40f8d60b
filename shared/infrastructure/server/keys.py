"""Who may ask."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from pydantic import SecretStr

from shared.infrastructure.server.messages import HTTPError, Request

_NAME_LENGTH = 16


class Keyring:
    """The API keys that are accepted; several, so that one can be replaced without a gap.

    Args:
        keys: The keys; only their digests are kept. None asks for none.
        header: Header in which a key may come as well, beside `Authorization`; None (default) is
            none.
    """

    def __init__(self, keys: Iterable[SecretStr], *, header: bytes | None = None) -> None:
        self._digests = [_digest(key.get_secret_value().encode()) for key in keys]
        self._header = header

    @property
    def is_empty(self) -> bool:
        """Whether no key is asked for."""
        return not self._digests

    def tenant(self, request: Request) -> str:
        """Return a short name of the key that a request came with; "" if none is asked for.

        Raises:
            HTTPError: It came with none of the keys (401).
        """
        if not self._digests:
            return ""
        digest = _digest(self._token(request))
        # All are compared, so that the time taken does not tell which one came close.
        matches = [hmac.compare_digest(digest, key) for key in self._digests]
        if not any(matches):
            raise HTTPError(
                401,
                "give a valid API key: 'Authorization: Bearer KEY'",
                kind="authentication_error",
                code="invalid_api_key",
                headers=[(b"www-authenticate", b"Bearer")],
            )
        return digest.hex()[:_NAME_LENGTH]

    def _token(self, request: Request) -> bytes:
        scheme, _, token = request.headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            return token.strip()
        return request.headers.get(self._header, b"") if self._header else b""


def tenant_of(key: SecretStr) -> str:
    """Return the short name of a key, as `Keyring.tenant` does."""
    return _digest(key.get_secret_value().encode()).hex()[:_NAME_LENGTH]


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
