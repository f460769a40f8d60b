"""Interrupt a piece of work at every point at which it waits, one point a run.

Work and everything it starts run on an event loop that counts the suspensions of all its tasks.
The k-th one is where the interruption strikes; k grows until the work ends before it. Time is a
fake clock, so that every run is the same up to the interruption.
"""

import asyncio
import enum
from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from shared.infrastructure.testing import FakeClock

# More than any work here waits, in number of times and in seconds of the fake clock.
_MOST_POINTS = 400
_PATIENCE = 120


class Interruption(enum.Enum):
    """What happens at the chosen point."""

    CANCEL_ASLEEP = "the caller is cancelled while a task waits there"
    CANCEL_WAKING = "the caller is cancelled in the tick in which the wait ends"
    THROW = "the wait ends with an error nobody expects"


class UnexpectedError(Exception):
    """What `THROW` throws."""


@dataclass
class Work:
    """Something to interrupt.

    Attributes:
        call: What is interrupted.
        check: Raises AssertionError if anything is not given back once all has ended; gets the
            outcome of the call, a value or an error.
        before: What begins earlier, and stands in its way.
    """

    call: Callable[[], Coroutine[Any, Any, Any]]
    check: Callable[[object], None]
    before: Sequence[Callable[[], Coroutine[Any, Any, Any]]] = ()


class _Saboteur:
    """Counts suspensions, and strikes at one of them."""

    def __init__(self, how: Interruption, at: int) -> None:
        self._how = how
        self._at = at
        self._points = 0
        self.root: asyncio.Task[Any] | None = None
        self.came_in_time = False
        self.cancelled = False

    def task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        async def watched() -> Any:
            return await _Watched(work, self.strikes_at)

        return asyncio.Task(watched(), loop=loop, **options)

    def strikes_at(self, awaited: Any) -> bool:
        """Count a suspension; return whether it ends with an error."""
        self._points += 1
        if self._points != self._at:
            return False
        assert self.root is not None
        self.came_in_time = not self.root.done()
        if self._how is Interruption.THROW:
            return True
        if self._how is Interruption.CANCEL_WAKING and awaited is not None:
            # Added before the task's own callback, and so called before it.
            awaited.add_done_callback(self._cancel)
        else:
            asyncio.get_running_loop().call_soon(self._cancel, None)
        return False

    def _cancel(self, _future: object) -> None:
        assert self.root is not None
        self.cancelled = self.root.cancel()


class _Watched:
    """Awaits a coroutine step by step."""

    def __init__(self, work: Coroutine[Any, Any, Any], strikes_at: Callable[[Any], bool]) -> None:
        self._work = work
        self._strikes_at = strikes_at

    def __await__(self) -> Generator[Any, Any, Any]:
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                awaited = self._work.throw(error) if error else self._work.send(value)
            except StopIteration as end:
                return end.value
            ends_badly = self._strikes_at(awaited)
            value, error = None, None
            try:
                value = yield awaited
            except BaseException as exc:
                error = exc
            if ends_badly:
                error = UnexpectedError()


def interrupt_everywhere(build: Callable[[FakeClock], Work], how: Interruption) -> int:
    """Run the work again and again, interrupted at one point after the other; return how many."""
    for point in range(1, _MOST_POINTS):
        try:
            came_in_time = asyncio.run(_interrupt(build, how, point))
        except AssertionError as wrong:
            wrong.add_note(f"interrupted at point {point}: {how.value}")
            raise
        if not came_in_time:
            return point - 1
    raise AssertionError("the work never ends")


async def _interrupt(build: Callable[[FakeClock], Work], how: Interruption, point: int) -> bool:
    clock = FakeClock()
    work = build(clock)
    saboteur = _Saboteur(how, point)
    loop, here = asyncio.get_running_loop(), asyncio.current_task()
    loop.set_task_factory(saboteur.task)
    others = [loop.create_task(other()) for other in work.before]
    saboteur.root = root = loop.create_task(work.call())
    for _ in range(_PATIENCE):
        if not root.done():
            await clock.advance(1.0)
    await clock.advance(_PATIENCE)
    left_behind = asyncio.all_tasks() - {here}
    # Read, or the event loop would log those that nobody asked for.
    outcome, *_ = map(outcome_of, (root, *others))
    assert not left_behind, f"left behind: {left_behind}"
    assert clock.pending == 0, "a timer is left behind"
    assert root.cancelled() or not saboteur.cancelled, "the cancellation was swallowed"
    work.check(outcome)
    return saboteur.came_in_time


def outcome_of(task: asyncio.Task[Any]) -> object:
    """Return what became of a task, as a value."""
    if not task.done():
        return None
    if task.cancelled():
        return asyncio.CancelledError()
    return task.exception() or task.result()
