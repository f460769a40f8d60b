"""Why a handshake came to nothing, in words that say on which side to look."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

# Fragments of OpenSSL's names for what it met, and what they mean. It speaks of an alert where it
# was told so by the service; everything else it found out by itself.
_OF_OUR_CERTIFICATE = {
    "CERTIFICATE_REQUIRED": "the service requires a client certificate",
    "ALERT_UNKNOWN_CA": "the service does not know the authority of the client certificate",
    "ALERT_BAD_CERTIFICATE": "the service refuses the client certificate",
    "ALERT_UNSUPPORTED_CERTIFICATE": "the service refuses the client certificate",
    "ALERT_CERTIFICATE_REVOKED": "the service holds the client certificate revoked",
    "ALERT_CERTIFICATE_EXPIRED": "the service holds the client certificate expired",
    "ALERT_CERTIFICATE_UNKNOWN": "the service refuses the client certificate",
    "ALERT_ACCESS_DENIED": "the service denies the client certificate access",
}
_OF_THE_HANDSHAKE = {
    "ALERT_HANDSHAKE_FAILURE": (
        "the service refuses the handshake: it requires a client certificate, or no cipher suits"
    ),
    "ALERT_INSUFFICIENT_SECURITY": "the service holds the ciphers offered too weak",
    "ALERT_PROTOCOL_VERSION": "no version of TLS in common",
    "UNSUPPORTED_PROTOCOL": "no version of TLS in common",
    "VERSION_TOO_LOW": "no version of TLS in common",
    "UNRECOGNIZED_NAME": "the service does not go by this name",
    "NO_APPLICATION_PROTOCOL": "the service speaks no version of HTTP that is offered",
    "UNSAFE_LEGACY_RENEGOTIATION": "the service knows only an unsafe renegotiation",
    "KEY_TOO_SMALL": "the key of the service is too weak",
    "MD_TOO_WEAK": "the certificate of the service is signed too weakly",
    "WRONG_VERSION_NUMBER": "the service speaks no TLS on this port",
    "RECORD_LAYER_FAILURE": "the service speaks no TLS on this port",
    "PACKET_LENGTH_TOO_LONG": "the service speaks no TLS on this port",
    "HTTP_REQUEST": "the service speaks no TLS on this port",
}
# What X509_verify_cert says when the chain ends at nobody we trust.
_UNTRUSTED = frozenset({2, 18, 19, 20, 21, 27})


def tls_reason_of(exc: BaseException) -> str | None:
    """Return why TLS kept an exchange from taking place; None if that is not what `exc` says.

    A connection that just broke within the handshake is no such reason: it may hold the next time.

    Args:
        exc: An error of an HTTP library, with that of TLS behind it; or one of TLS itself, which
            the native transports let through once the handshake is over.
    """
    if isinstance(exc, ssl.SSLError):
        return tls_reason(exc, in_handshake=False)
    for cause in _causes(exc):
        if isinstance(cause, ssl.SSLError):
            return tls_reason(cause, in_handshake=True)
    return None


def tls_reason(exc: ssl.SSLError, *, in_handshake: bool) -> str | None:
    """Return what TLS objects to; None if it is not for good, or may have come after a request.

    With TLS 1.3 a client is through with the handshake before the service has looked at its
    certificate; so what the service then says of that comes instead of an answer.
    """
    if isinstance(exc, ssl.SSLCertVerificationError):
        trust = "unknown authority: " if getattr(exc, "verify_code", 0) in _UNTRUSTED else ""
        return f"TLS: {trust}{tls_words(exc)}"
    name = _name_of(exc)
    meanings = _OF_OUR_CERTIFICATE | (_OF_THE_HANDSHAKE if in_handshake else {})
    for fragment, meaning in meanings.items():
        if fragment in name:
            return f"TLS: {meaning} ({tls_words(exc)})"
    return None


def tls_words(exc: ssl.SSLError) -> str:
    """Return OpenSSL's own words."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return str(getattr(exc, "verify_message", exc)).rstrip(".")
    return _name_of(exc).replace("_", " ").lower() or str(exc)


def _name_of(exc: ssl.SSLError) -> str:
    # One that was not raised by OpenSSL has no reason, and no message of verification either.
    return str(getattr(exc, "reason", None) or "").upper().replace(" ", "_")


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """Yield `exc`, what it was raised from, and what an error raised `from None` hides.

    Never what merely was being handled at the time: that may be the failure of another call.
    """
    seen: set[int] = set()
    link: BaseException | None = exc
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        hidden = link.__context__ if link.__suppress_context__ else None
        link = link.__cause__ or hidden
