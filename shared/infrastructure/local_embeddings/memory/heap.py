"""The C library's heap."""

from __future__ import annotations

import contextlib
import ctypes


def trim_heap() -> None:
    """Hand freed memory back to the system: glibc keeps much of it unless it is asked.

    It fragments what torch computes with on a CPU, so that the process grows with every pass of
    another shape. Takes milliseconds; does nothing with another C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
