"""The completion hook of an answer: a call is over when its body is over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from shared.infrastructure.resilience import Verdict
from shared.infrastructure.resilience.layer import Settle


class Watched:
    """Tells whoever asked, once, how the exchange really ended.

    Args:
        verdict: What the head of the answer says about the service.

    Attributes:
        is_judged: Its verdict is final: a wire above hands it on as it is.
    """

    is_judged: ClassVar[bool] = False

    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict
        self._is_over = False
        self._loop = asyncio.get_running_loop()
        self._watchers: list[Settle] = []

    def on_over(self, settle: Settle) -> None:
        """Call `settle` with the final verdict when the body is over; at once if it is."""
        if self._is_over:
            settle(self._verdict)
        else:
            self._watchers.append(settle)

    def __del__(self) -> None:
        # Whoever drops it unread gives back what is held for it all the same.
        if not self._is_over and self._watchers and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_settle, self._watchers, Verdict.VOID)

    def _end(self, verdict: Verdict) -> None:
        if self._is_over:
            return
        self._is_over, self._verdict = True, verdict
        watchers, self._watchers = self._watchers, []
        _settle(watchers, verdict)


def _settle(watchers: Sequence[Settle], verdict: Verdict) -> None:
    for settle in watchers:
        settle(verdict)
