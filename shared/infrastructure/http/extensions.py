"""Keys of the `extensions` that this SDK puts on requests and responses of the HTTP libraries."""

from __future__ import annotations

BUFFERED = "buffered"
"""Of a request: read the body inside the attempt, so that its failure is the attempt's.

True is any body, `ANSWERS` that of an answer: an error is returned with its head.
"""

ANSWERS = "answers"
"""See `BUFFERED`."""

REPLAYABLE = "replayable"
"""Of a request: its body, though not at hand as bytes, can be sent more than once."""

ON_PIECE = "on_piece"
"""Of a request: a function that is told of each piece of a body read inside the attempt."""

PATIENCE = "patience"
"""Of a request: seconds of silence tolerated in a streamed body, where that is not `timeout`."""

TRACE = "trace"
"""Of a response: the `Trace` of the call."""

CONTENT_ENCODING = "content_encoding"
"""Of a response: the coding that the body came in, and no longer has."""
