"""Keep what may be secret in a URL out of messages, reports and logs."""

from __future__ import annotations

import logging
from typing import Any


def public_url(url: Any) -> str:
    """Return a URL of an HTTP library without its user, password, query and fragment."""
    host: str = url.netloc.decode("ascii")
    path: str = url.raw_path.partition(b"?")[0].decode("ascii")
    return f"{url.scheme}://{host}{path}" if host else path


class PublicURLs(logging.Filter):
    """Shortens the URLs in what an HTTP library logs of each request.

    Args:
        kind: Class of the URLs.
    """

    def __init__(self, kind: type[Any]) -> None:
        super().__init__()
        self._kind = kind

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record pass, its URLs shortened."""
        if isinstance(record.args, tuple):
            record.args = tuple(
                public_url(arg) if isinstance(arg, self._kind) else arg for arg in record.args
            )
        return True
