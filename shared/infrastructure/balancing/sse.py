"""Server-sent events: bytes in, the data of whole events out."""

from __future__ import annotations

from shared.infrastructure.balancing.errors import InvalidStreamError

DONE = b"[DONE]"
"""The data of the event that ends a stream of the OpenAI API."""

MAX_EVENT_BYTES = 16 * 2**20

_BOM = b"\xef\xbb\xbf"


class SSEParser:
    """Takes a stream in pieces of any size and hands out the data of each event it completes.

    Lines may end in LF, CR or CRLF; comments, event names and ids are dropped. What waits for its
    end is bounded. Source: the WHATWG HTML standard, section 9.2.6.

    Args:
        max_event_bytes: Largest event taken.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of the events that end within `piece`.

        Raises:
            InvalidStreamError: An event is larger than it may be.
        """
        if not piece:
            return []
        if self._after_cr:
            # The second half of a CRLF that was cut in two.
            piece = piece.removeprefix(b"\n")
        events: list[bytes] = []
        for line in piece.splitlines(keepends=True):
            self._line += line
            if line.endswith((b"\n", b"\r")):
                self._end_line(events)
        self._after_cr = piece.endswith(b"\r")
        if len(self._line) + self._data_bytes > self._max_event_bytes:
            raise InvalidStreamError(f"an event is larger than {self._max_event_bytes} bytes")
        return events

    def flush(self) -> list[bytes]:
        """Return the data of an event that the end of the stream left without its blank line."""
        events: list[bytes] = []
        self._end_line(events)
        self._end_event(events)
        return events

    def _end_line(self, events: list[bytes]) -> None:
        line = bytes(self._line).rstrip(b"\r\n")
        self._line.clear()
        if self._at_start:
            line, self._at_start = line.removeprefix(_BOM), False
        if not line:
            self._end_event(events)
        elif line == b"data" or line.startswith(b"data:"):
            data = line[5:].removeprefix(b" ")
            self._data.append(data)
            self._data_bytes += len(data) + 1

    def _end_event(self, events: list[bytes]) -> None:
        if self._data:
            events.append(b"\n".join(self._data))
            self._data.clear()
            self._data_bytes = 0
