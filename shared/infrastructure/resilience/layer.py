"""The one brick: a call is a `Send`, a `Layer` wraps it, `stack` folds layers into a new `Send`.

A layer never knows whether it guards an HTTP exchange or a local inference: the few questions
those answer differently are asked of the stack's `Semantics`.
"""

from __future__ import annotations

import enum
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import FunctionType
from typing import Any, Generic, Protocol, TypeVar, cast

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

    def describe(self, request: Req_contra, outcome: Res | BaseException) -> str:
        """Say in a few words what became of a request, for events and traces."""
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


LayerClass = TypeVar("LayerClass", bound=type)


class Position(enum.IntEnum):
    """Where a kind of layer belongs in a stack, outermost first; equals may stand in any order.

    Declare it with a decorator, `@Position.REPEAT`; a layer without it may stand anywhere.
    """

    REPLACE = 0
    """Replaces an outcome that is no use to the caller."""
    CALL = 1
    """Bounds the whole call."""
    REPEAT = 2
    """Makes attempts of the call; whatever is below happens once per attempt."""
    REFUSE = 3
    """Refuses without waiting and takes nothing."""
    PACE = 4
    """Waits for a permit."""
    SLOT = 5
    """Waits for a slot, and holds it until the answer is over."""
    COUNT = 6
    """Counts what came of the attempt, and how long it took."""
    ATTEMPT = 7
    """Bounds one attempt."""

    def __call__(self, kind: LayerClass) -> LayerClass:
        cast("Any", kind).position = self
        return kind


class LayerOrderWarning(UserWarning):
    """A stack has its layers in an order that defeats one of them."""


class _Bound(Protocol[Req, Res]):
    """A `Send` made by `stack`, which remembers what it is made of."""

    layer: Layer[Req, Res]
    inner: Inner[Req, Res]


def stack(
    send: Send[Req, Res], *layers: Layer[Req, Res], semantics: Semantics[Req, Res]
) -> Send[Req, Res]:
    """Fold layers around `send`; the first layer sees the request first.

    An order that defeats a layer, be it one of `send` if that is a stack itself, is a
    `LayerOrderWarning`.
    """
    _warn_of_order(layers, tuple(_parts(send))[:-1])
    return _fold(send, layers, semantics)


def describe(send: Send[Any, Any]) -> str:
    """Draw a stack: one line a layer, outermost first, what it calls in the end last.

    What is indented happens once per attempt of what is above. A layer is named by its
    `describe()` or its own `__str__`, if it has one, and else by its class.
    """
    lines: list[str] = []
    depth = 0
    for part in _parts(send):
        lines.append("  " * depth + _label(part))
        depth += _position(part) is Position.REPEAT
    return "\n".join(lines)


class ChainLayer:
    """Several layers as one; the first sees the request first.

    Position: wherever its layers belong.

    Attributes:
        layers: As given.
    """

    def __init__(self, *layers: Layer[Any, Any]) -> None:
        _warn_of_order(layers, ())
        self.layers = layers
        self._inner: Inner[Any, Any] | None = None
        self._send: Send[Any, Any] | None = None

    def __call__(self, request: Req, inner: Inner[Req, Res]) -> Awaitable[Res]:
        # Folded once for the stack it stands in, not once a call.
        if self._send is None or self._inner is not inner:
            self._inner = inner
            self._send = _fold(inner.send, self.layers, inner.semantics)
        return self._send(request)


def _fold(
    send: Send[Req, Res], layers: Sequence[Layer[Req, Res]], semantics: Semantics[Req, Res]
) -> Send[Req, Res]:
    for layer in reversed(layers):
        send = _bind(layer, Inner(send, semantics))
    return send


def _bind(layer: Layer[Req, Res], inner: Inner[Req, Res]) -> Send[Req, Res]:
    # The method is looked up once, for an object is twice as slow to call as its `__call__`;
    # likewise what is returned is a function that carries attributes.
    enter: Layer[Req, Res] = layer
    if not isinstance(layer, FunctionType):
        enter = cast("Any", layer).__call__

    def call(request: Req) -> Awaitable[Res]:
        return enter(request, inner)

    bound = cast("_Bound[Req, Res]", call)
    bound.layer, bound.inner = layer, inner
    return call


def _parts(send: Send[Any, Any]) -> Iterator[object]:
    """Yield the layers of a stack, outermost first, and what it calls in the end."""
    while isinstance(getattr(send, "inner", None), Inner):
        bound = cast("_Bound[Any, Any]", send)
        yield from _unchained(bound.layer)
        send = bound.inner.send
    yield send


def _unchained(*layers: object) -> Iterator[object]:
    for layer in layers:
        if isinstance(layer, ChainLayer):
            yield from _unchained(*layer.layers)
        else:
            yield layer


def _position(layer: object) -> Position | None:
    position = getattr(layer, "position", None)
    return position if isinstance(position, Position) else None


def _label(part: object) -> str:
    own = getattr(part, "describe", None)
    if callable(own):
        return str(own())
    if type(part).__str__ is not object.__str__:
        return str(part)
    return str(getattr(part, "__qualname__", type(part).__name__))


# What happens if a layer stands below one that belongs below it.
_HARM = {
    Position.REPLACE: "{upper} takes an answer of {lower} for one of the service",
    Position.CALL: "{upper} is outside of the time that {lower} allows",
    Position.REPEAT: "{upper} takes all attempts of a call for one",
    Position.REFUSE: "a call goes through {upper} only to be refused by {lower}",
    Position.PACE: "{upper} has begun while the call still waits for a permit",
    Position.SLOT: "{upper} has begun while the call still waits for a slot",
    Position.COUNT: "{lower} sees no timeout, only a cancellation, which does not count",
}


def _warn_of_order(layers: Sequence[object], below: Sequence[object]) -> None:
    """Warn once of all that is wrong with `layers`, among themselves and above those `below`."""
    own = tuple(_unchained(*layers))
    every = (*own, *below)
    found = [
        harm
        for index, upper in enumerate(own)
        for lower in every[index + 1 :]
        if (harm := _harm(upper, lower))
    ]
    if found:
        # 3: whoever called `stack`.
        warnings.warn("\n".join(found), LayerOrderWarning, stacklevel=3)


def _harm(upper: object, lower: object) -> str | None:
    above, below = _position(upper), _position(lower)
    if above is None or below is None:
        return None
    names = {"upper": type(upper).__name__, "lower": type(lower).__name__}
    if above is below is Position.REPEAT:
        return "{upper} stands above {lower}, so their attempts multiply: keep one".format(**names)
    # A deadline above a fallback bounds the fallback too, which may well be meant.
    if above <= below or (above, below) == (Position.CALL, Position.REPLACE):
        return None
    advice = "{upper} stands above {lower}: " + _HARM[below] + "; put {lower} above {upper}"
    return advice.format(**names)


_LONGEST_SUMMARY = 200


def summary(error: BaseException) -> str:
    """Return the type and the text of an error, on one line of at most 200 characters."""
    text = " ".join(str(error).split())
    whole = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return whole if len(whole) <= _LONGEST_SUMMARY else whole[: _LONGEST_SUMMARY - 1] + "…"


# Bound once: they are read on every call.
_OK, _VOID = Verdict.OK, Verdict.VOID


class PlainCall:
    """Semantics of an ordinary coroutine: a value is success, any exception is failure."""

    def judge(self, outcome: object) -> Verdict:
        if not isinstance(outcome, BaseException):
            return _OK
        if isinstance(outcome, (CallRefusedError, DeadlineExceededError)):
            return _VOID
        return Verdict.FAILED if isinstance(outcome, Exception) else _VOID

    def watch(self, response: Res, settle: Settle) -> Res:
        settle(_OK)
        return response

    def retry_after(self, outcome: object) -> float | None:
        return getattr(outcome, "retry_after", None)

    def repeatable(self, request: object, outcome: object) -> bool:
        return True

    def describe(self, request: object, outcome: object) -> str:
        return summary(outcome) if isinstance(outcome, BaseException) else type(outcome).__name__

    async def discard(self, response: object) -> None:
        return None


PLAIN_CALL: Semantics[Any, Any] = PlainCall()
"""Semantics for local work: inference, a database call, anything that is not HTTP."""
