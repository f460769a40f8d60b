"""What each path leads to, and what is said of it in the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.infrastructure.server.messages import (
    HTTPError,
    Reply,
    Request,
    StreamedReply,
    openai_error,
)

Handler = Callable[[Request], Awaitable[Reply | StreamedReply]]
ErrorShape = Callable[[HTTPError], Mapping[str, Any]]

# What may befall any request, and any with a body.
_ANY = (400, 404, 405, 408, 415, 417, 431, 500)
_WITH_BODY = (413, 422, 429, 502, 503, 504)
_OPEN_PART = re.compile(r"\\{(\w+)\\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What a path does.

    Attributes:
        method: The method it takes; one with a body is POST.
        handler: Answers.
        summary: What it is for.
        response: Name of the schema of its answer; that of a body is the same and `Request`.
        needs_key: Whether an API key must be given, if there are any.
        error: Shape of its errors.
        error_schema: Name of the schema of its errors.
        event: An error as the last event of a stream; None is OpenAI's.
        items: Name of the field with the items.
        waits: Whether it answers 503 while the service is not there.
        is_probe: Whether it is answered however many connections there are.
        failures: Statuses beside those that may befall any request; None (default) is, with a body,
            those of a body and of the work that is done for it.
    """

    method: str
    handler: Handler
    summary: str
    response: str
    needs_key: bool = True
    error: ErrorShape = openai_error
    error_schema: str = "Error"
    event: Callable[[HTTPError], bytes] | None = None
    items: str = "input"
    waits: bool = False
    is_probe: bool = False
    failures: Sequence[int] | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods it takes: who may read an answer may ask for its head alone."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)

    @property
    def statuses(self) -> list[int]:
        """Every status it may answer, in order."""
        statuses = {200, *_ANY}
        if self.needs_key:
            statuses.add(401)
        if self.waits:
            statuses.add(503)
        if self.failures is not None:
            statuses.update(self.failures)
        elif self.method == "POST":
            statuses.update(_WITH_BODY)
        return sorted(statuses)


class Routes(dict[str, Route]):
    """Routes by path; in a path, `{name}` stands for any one part of it."""

    def find(self, path: str) -> tuple[str, Route, Mapping[str, str]] | None:
        """Return the path as it is in the table, its route, and what stood in its open parts."""
        route = self.get(path)
        if route is not None:
            return path, route, {}
        for pattern, table_path in self._open():
            if found := pattern.fullmatch(path):
                return table_path, self[table_path], found.groupdict()
        return None

    def _open(self) -> Iterator[tuple[re.Pattern[str], str]]:
        for path in self:
            if "{" in path:
                # `re` keeps the patterns it compiled.
                yield re.compile(_OPEN_PART.sub(r"(?P<\1>[^/]+)", re.escape(path))), path
