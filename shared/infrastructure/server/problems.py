"""What a client is told of an error: the right status, what to do, and nothing of our insides."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from shared.infrastructure.resilience import ServiceError
from shared.infrastructure.server.messages import HTTPError, retry_after

_log = logging.getLogger(__name__)

RETRYABLE = frozenset({429, 503})
"""Statuses that say when to come back."""


@dataclass(frozen=True, slots=True)
class Problem:
    """How errors of some classes are answered.

    Attributes:
        errors: The classes.
        status: HTTP status.
        message: What the client is told; None tells it the error's own message.
        kind: OpenAI's `type`.
        param: Field of the request that is to blame.
    """

    errors: tuple[type[ServiceError], ...]
    status: int
    message: str | None = None
    kind: str = "server_error"
    param: str | None = None


class Problems:
    """How each error is answered.

    Args:
        rows: The first that matches counts; the last one matches every `ServiceError`.
    """

    def __init__(self, *rows: Problem) -> None:
        self._rows = rows

    def __call__(self, error: Exception, items: str = "input") -> HTTPError:
        """Return the answer to a request that ended in `error`.

        Args:
            error: What was raised.
            items: What the dialect calls the field with the items.
        """
        if isinstance(error, HTTPError):
            return error
        if not isinstance(error, ServiceError):
            _log.error("request failed", exc_info=error)
            return HTTPError(500, "the request failed", kind="server_error", code="internal_error")
        row = next(row for row in self._rows if isinstance(error, row.errors))
        if row.status in {500, 502}:
            _log.error("request failed: %s", error)
        return HTTPError(
            row.status,
            row.message or str(error),
            kind=row.kind,
            code=error.code,
            param=_blamed(row.param, error, items),
            headers=retry_after(error.retry_after) if row.status in RETRYABLE else (),
        )


def _blamed(param: str | None, error: ServiceError, items: str) -> str | None:
    if param != "input":
        return param
    index = getattr(error, "index", None)
    return items if index is None else f"{items}[{index}]"
