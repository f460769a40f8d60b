"""Keys of the `extensions` that this SDK puts on requests and responses of the HTTP libraries."""

from __future__ import annotations

BUFFERED = "buffered"
"""Of a request: read the body inside the attempt, so that its failure is the attempt's."""

REPLAYABLE = "replayable"
"""Of a request: its body, though not at hand as bytes, can be sent more than once."""

PATIENCE = "patience"
"""Of a request: seconds of silence tolerated in a streamed body, where a deadline cut `timeout`."""

TRACE = "trace"
"""Of a response: the `Trace` of the call."""

CONTENT_ENCODING = "content_encoding"
"""Of a response: the coding that the body came in, and no longer has."""
