"""Requests that prove who sent them and that nobody changed them: RFC 9421 and RFC 9530."""

from shared.infrastructure.http.signing.errors import (
    DigestMismatchError,
    SignatureCoverageError,
    SignatureError,
    SignatureExpiredError,
    SignatureMalformedError,
    SignatureMismatchError,
    SignatureMissingError,
    SignatureReplayedError,
    SigningError,
    UnknownKeyError,
)
from shared.infrastructure.http.signing.message import Message
from shared.infrastructure.http.signing.signer import HMACSigner, Signer, SigningLayer
from shared.infrastructure.http.signing.verifier import SignatureVerifier, VerifiedSignature

__all__ = [
    "DigestMismatchError",
    "HMACSigner",
    "Message",
    "SignatureCoverageError",
    "SignatureError",
    "SignatureExpiredError",
    "SignatureMalformedError",
    "SignatureMismatchError",
    "SignatureMissingError",
    "SignatureReplayedError",
    "SignatureVerifier",
    "Signer",
    "SigningError",
    "SigningLayer",
    "UnknownKeyError",
    "VerifiedSignature",
]
