"""What can go wrong with signatures, on either side.

::

    ServiceError
    ├── ConfigurationError
    │   └── SigningError                    we cannot sign it: nothing was sent
    └── SignatureError                      a request that is not to be trusted, and why
        ├── SignatureMissingError           nobody signed it
        ├── SignatureMalformedError         what is there cannot be read
        ├── UnknownKeyError                 signed with a key that we do not have
        ├── SignatureCoverageError          something that matters is not signed
        ├── SignatureExpiredError           too old, or from the future
        ├── SignatureMismatchError          another key, or something signed was changed
        ├── DigestMismatchError             the body is not the one that was signed
        └── SignatureReplayedError          it was here before

A message never repeats what a request says: it may be anything.
"""

from __future__ import annotations

from shared.infrastructure.resilience import ConfigurationError, ServiceError


class SigningError(ConfigurationError):
    """A request cannot be signed; the message says what to change. Nothing was sent."""

    code = "signing_error"


class SignatureError(ServiceError):
    """A request is not to be trusted: answer it with 401."""

    code = "signature_error"


class SignatureMissingError(SignatureError):
    """The request has no signature."""

    code = "signature_missing"


class SignatureMalformedError(SignatureError):
    """The signature, or something it needs, is not in the form that RFC 9421 or 9530 gives it."""

    code = "signature_malformed"


class UnknownKeyError(SignatureError):
    """No signature is by a key that we have."""

    code = "signature_key_unknown"


class SignatureCoverageError(SignatureError):
    """The signature leaves out something that has to be signed."""

    code = "signature_coverage"


class SignatureExpiredError(SignatureError):
    """The signature is too old, or was made in the future."""

    code = "signature_expired"


class SignatureMismatchError(SignatureError):
    """The signature was made with another key, or for another request."""

    code = "signature_mismatch"


class DigestMismatchError(SignatureError):
    """The body is not the one that was signed."""

    code = "digest_mismatch"


class SignatureReplayedError(SignatureError):
    """The signature was here before, or is too old to tell whether it was."""

    code = "signature_replayed"
