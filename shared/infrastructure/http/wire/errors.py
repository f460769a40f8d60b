"""The one cause of failure that only a wire with kept connections knows."""

from __future__ import annotations

from shared.infrastructure.http.errors import ReadFailedError


class StaleConnectionError(ReadFailedError):
    """A kept connection broke before the first byte of the answer.

    Most often the service closed it, unused for a while, just when the request was on its way: RFC
    9112, section 9.3.1, lets a client send an idempotent request again. The wire never does.
    """

    code = "stale_connection"
