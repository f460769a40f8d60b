"""Bodies that are not JSON: those that can be had as bytes, and the model that a form asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from shared.infrastructure.http.semantics import WHOLE_BODIES

# Bytes of a form, or the like, that are held in memory so that it can be sent again.
_MAX_HELD = 8 * 2**20
_MODEL = b'\r\nContent-Disposition: form-data; name="model"\r\n\r\n'


def content_of(body: object, headers: Mapping[str, str]) -> bytes | None:
    """Return a body of httpx or httpx2 as bytes; None if it is long, or comes only by and by.

    Args:
        body: The stream of a request; a form that is read here is used up.
        headers: Of the request; they say how long it is.
    """
    if type(body) not in WHOLE_BODIES:
        length = headers.get("content-length", "")
        is_short = length.isdecimal() and int(length) <= _MAX_HELD
        if not (is_short and isinstance(body, Iterable)):
            return None
    return b"".join(cast("Iterable[bytes]", body))


def is_form(content: bytes) -> bool:
    """Say whether a body is a multipart form; no JSON begins like one."""
    return content.startswith(b"--")


def model_in(form: bytes) -> str | None:
    """Return the model that a multipart form asks for; None if it names none."""
    start, end = _span(form)
    return form[start:end].decode("utf-8", "replace") or None


def form_with_model(form: bytes, model: str) -> bytes:
    """Return a multipart form that asks for another model; one that names none stays as it is."""
    start, end = _span(form)
    return form[:start] + model.encode() + form[end:] if start < end else form


def _span(form: bytes) -> tuple[int, int]:
    """Return where the value of the field is."""
    boundary, _, _ = form.partition(b"\r\n")
    at = form.find(boundary + _MODEL)
    if at < 0:
        return 0, 0
    start = at + len(boundary) + len(_MODEL)
    return start, max(start, form.find(b"\r\n" + boundary, start))
