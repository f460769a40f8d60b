"""Keys: two items have the same one only if the same model reads the same of both.

A key is a binary SHA-256 over fields that each go in with their length, so that no two lists of
fields give the same bytes: version, fingerprint, salt, kind, all that a `Reading` says, payload.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import fields
from typing import Literal

from services.embedding.backends.protocol import BackendFacts
from services.embedding.options import Item, Reading
from shared.infrastructure.local_embeddings import InvalidTextError

_VERSION = b"emb1"


def key_function(
    fingerprint: str, reading: Reading, *, salt: bytes = b""
) -> Callable[[Item], bytes]:
    """Return the function from an item to its key of 32 bytes.

    Texts count exactly as they are given: neither stripped nor normalised. The function raises
    `InvalidTextError` for a text that is no valid Unicode, and for token ids that are no integers
    of 32 bits; it knows the item as text 0.

    Args:
        fingerprint: Of the model, and of all else that decides a vector; see `key_space`.
        reading: What decides a vector beside the model and the item.
        salt: Keeps those who must not learn what others embedded apart, such as tenants.
    """
    said = [getattr(reading, field.name) for field in fields(reading)]
    try:
        common = ["" if value is None else str(value) for value in said]
        joined = _joined(_VERSION, fingerprint.encode(), salt, *(part.encode() for part in common))
    except UnicodeEncodeError as error:
        raise InvalidTextError(f"the prompt is no valid Unicode: {error.reason}") from error
    # Copied for each item: what all have in common is hashed once.
    new_text = hashlib.sha256(joined + _joined(b"text")).copy
    new_ids = hashlib.sha256(joined + _joined(b"ids")).copy

    def key(item: Item) -> bytes:
        try:
            if isinstance(item, str):
                digest = new_text()
                payload = item.encode()
            else:
                digest = new_ids()
                payload = struct.pack(f"<{len(item)}i", *item)
        except UnicodeEncodeError as error:
            raise InvalidTextError(f"text 0 is no valid Unicode: {error.reason}", 0) from error
        except struct.error as error:
            raise InvalidTextError(f"text 0 has token ids that are none: {error}", 0) from error
        digest.update(len(payload).to_bytes(8, "little"))
        digest.update(payload)
        return digest.digest()

    return key


def key_space(facts: BackendFacts, numerics: Literal["exact", "approximate"]) -> str | None:
    """Return the fingerprint that keys of a model's vectors begin with; None if none is kept.

    A vector that depends on what is embedded beside it is only kept where that is said to be
    enough, and apart from those that do not.
    """
    if facts.batch_invariant:
        return facts.fingerprint
    return f"approximate:{facts.fingerprint}" if numerics == "approximate" else None


def _joined(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)
