"""The one brick: a call is a `Send`, a `Layer` wraps it, `stack` folds layers into a new `Send`.

A layer never knows whether it guards an HTTP exchange or a local inference: the few questions
those answer differently are asked of the stack's `Semantics`.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar

from shared.infrastructure.resilience.errors import CallRefusedError, DeadlineExceededError

Req = TypeVar("Req")
Res = TypeVar("Res")
Req_contra = TypeVar("Req_contra", contravariant=True)

Send = Callable[[Req], Awaitable[Res]]
"""One wire exchange, one inference, one anything."""


class Verdict(enum.Enum):
    """What an outcome says about the service that was called."""

    OK = "ok"
    FAILED = "failed"
    """Evidence against the service: counted by breaker and health, worth another attempt."""
    BUSY = "busy"
    """The service is well but asks for patience (HTTP 429): no evidence against it."""
    VOID = "void"
    """Says nothing about the service: a cancelled call, our own refusal, a caller's mistake."""


Settle = Callable[[Verdict], None]


class Semantics(Protocol[Req_contra, Res]):
    """The questions an HTTP exchange and a plain call answer differently."""

    def judge(self, outcome: Res | BaseException) -> Verdict:
        """Say what a response, or the error raised instead of one, tells about the service."""
        ...

    def watch(self, response: Res, settle: Settle) -> Res:
        """Call `settle` exactly once, when the answer is really over, with the final verdict.

        A streamed body is over at its end, at an error, or when it is closed; a plain value is
        over at once.
        """
        ...

    def retry_after(self, outcome: Res | BaseException) -> float | None:
        """Return the seconds the service asked us to wait, if it did."""
        ...

    def repeatable(self, request: Req_contra, outcome: Res | BaseException) -> bool:
        """Say whether sending the request again, after this outcome, is safe."""
        ...

    async def discard(self, response: Res) -> None:
        """Give back what a response holds that nobody will read."""
        ...


class Inner(Generic[Req, Res]):
    """The rest of the stack, seen from one layer: how to go on, and how to read the answer."""

    __slots__ = ("semantics", "send")

    def __init__(self, send: Send[Req, Res], semantics: Semantics[Req, Res]) -> None:
        self.send = send
        self.semantics = semantics


Layer = Callable[[Req, Inner[Req, Res]], Awaitable[Res]]
"""Sees a request on its way in and the answer on its way out; may delay, refuse or repeat it."""


def stack(
    send: Send[Req, Res], *layers: Layer[Req, Res], semantics: Semantics[Req, Res]
) -> Send[Req, Res]:
    """Fold layers around `send`; the first layer sees the request first."""
    for layer in reversed(layers):
        send = _bind(layer, Inner(send, semantics))
    return send


def _bind(layer: Layer[Req, Res], inner: Inner[Req, Res]) -> Send[Req, Res]:
    def call(request: Req) -> Awaitable[Res]:
        return layer(request, inner)

    return call


class PlainCall:
    """Semantics of an ordinary coroutine: a value is success, any exception is failure."""

    def judge(self, outcome: object) -> Verdict:
        if not isinstance(outcome, BaseException):
            return Verdict.OK
        if isinstance(outcome, (CallRefusedError, DeadlineExceededError)):
            return Verdict.VOID
        return Verdict.FAILED if isinstance(outcome, Exception) else Verdict.VOID

    def watch(self, response: Res, settle: Settle) -> Res:
        settle(Verdict.OK)
        return response

    def retry_after(self, outcome: object) -> float | None:
        return getattr(outcome, "retry_after", None)

    def repeatable(self, request: object, outcome: object) -> bool:
        return True

    async def discard(self, response: object) -> None:
        return None


PLAIN_CALL: Semantics[Any, Any] = PlainCall()
"""Semantics for local work: inference, a database call, anything that is not HTTP."""
