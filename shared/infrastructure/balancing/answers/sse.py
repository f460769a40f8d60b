"""Server-sent events: bytes in, the names and the data of whole events out."""

from __future__ import annotations

from shared.infrastructure.balancing.errors import InvalidStreamError

MAX_EVENT_BYTES = 16 * 2**20

ServerEvent = tuple[str | None, bytes]
"""The name of an event, if it has one, and its data."""

_BOM = b"\xef\xbb\xbf"
_BLANK_LINE = b"\n\n"


class SSEParser:
    """Takes a stream in pieces of any size and hands out each event that it completes.

    Lines may end in LF, CR or CRLF; comments and ids are dropped. What waits for its end is
    bounded. Source: the WHATWG HTML standard, section 9.2.6.

    Args:
        max_event_bytes: Largest event taken.
    """

    __slots__ = (
        *("_after_cr", "_at_start", "_data", "_data_bytes", "_is_between", "_line"),
        *("_max_event_bytes", "_name"),
    )

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        self._name: str | None = None
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._at_start = True
        self._is_between = True

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """Return the events that end within `piece`.

        Raises:
            InvalidStreamError: An event is larger than it may be.
        """
        # Nearly always a piece is one whole event of one line, or a few of them.
        if (
            self._is_between
            and piece.endswith(_BLANK_LINE)
            and b"\r" not in piece
            and not (self._at_start and piece.startswith(_BOM))
            and len(piece) < self._max_event_bytes
        ):
            self._at_start = False
            if piece.startswith(b"data: ") and piece.find(b"\n", 6) == len(piece) - 2:
                return [(None, piece[6:-2])]
            return self._whole_events(piece)
        if not piece:
            return []
        events: list[ServerEvent] = []
        self._take_lines(piece, events)
        return events

    def flush(self) -> list[ServerEvent]:
        """Return the event that the end of the stream left without its blank line, if any."""
        events: list[ServerEvent] = []
        self._end_line(events)
        self._end_event(events)
        self._is_between = True
        return events

    def _whole_events(self, piece: bytes) -> list[ServerEvent]:
        events: list[ServerEvent] = []
        for block in piece[:-2].split(_BLANK_LINE):
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append((None, block[6:]))
                continue
            first, _, second = block.partition(b"\n")
            is_named = first.startswith(b"event: ") and second.startswith(b"data: ")
            if is_named and b"\n" not in second:
                events.append((first[7:].decode(errors="replace"), second[6:]))
            else:
                self._take_lines(block + _BLANK_LINE, events)
        return events

    def _take_lines(self, piece: bytes, events: list[ServerEvent]) -> None:
        if self._after_cr:
            # The second half of a CRLF that was cut in two.
            piece = piece.removeprefix(b"\n")
        for line in piece.splitlines(keepends=True):
            self._line += line
            if line.endswith((b"\n", b"\r")):
                self._end_line(events)
        self._after_cr = piece.endswith(b"\r")
        self._check_size(len(self._line) + self._data_bytes)
        self._is_between = not (
            self._line or self._data or self._after_cr or self._name is not None or self._at_start
        )

    def _end_line(self, events: list[ServerEvent]) -> None:
        line = bytes(self._line).rstrip(b"\r\n")
        self._line.clear()
        if self._at_start:
            line, self._at_start = line.removeprefix(_BOM), False
        if not line:
            self._end_event(events)
        elif line.startswith(b"data:") or line == b"data":
            data = line[5:].removeprefix(b" ")
            self._data.append(data)
            self._data_bytes += len(data) + 1
        elif line.startswith(b"event:"):
            self._name = line[6:].removeprefix(b" ").decode(errors="replace") or None

    def _end_event(self, events: list[ServerEvent]) -> None:
        if self._data:
            self._check_size(self._data_bytes)
            data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            events.append((self._name, data))
            self._data.clear()
            self._data_bytes = 0
        self._name = None

    def _check_size(self, size: int) -> None:
        if size > self._max_event_bytes:
            raise InvalidStreamError(f"an event is larger than {self._max_event_bytes} bytes")
