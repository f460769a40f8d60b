"""Who may ask."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from pydantic import SecretStr

from services.embedding.process.messages import HTTPError, Request

_NAME_LENGTH = 16


class Keyring:
    """The API keys that are accepted; several, so that one can be replaced without a gap.

    Args:
        keys: The keys; only their digests are kept. None asks for none.
    """

    def __init__(self, keys: Iterable[SecretStr]) -> None:
        self._digests = [_digest(key.get_secret_value().encode()) for key in keys]

    def tenant(self, request: Request) -> str:
        """Return a short name of the key that a request came with; "" if none is asked for.

        Raises:
            HTTPError: It came with none of the keys (401).
        """
        if not self._digests:
            return ""
        scheme, _, token = request.headers.get(b"authorization", b"").partition(b" ")
        digest = _digest(token.strip())
        # All are compared, so that the time taken does not tell which one came close.
        matches = [hmac.compare_digest(digest, key) for key in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise HTTPError(
                401,
                "give a valid API key: 'Authorization: Bearer KEY'",
                kind="authentication_error",
                code="invalid_api_key",
                headers=[(b"www-authenticate", b"Bearer")],
            )
        return digest.hex()[:_NAME_LENGTH]


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
