"""An event loop whose time jumps to its next timer: no run depends on the speed of the machine.

Monotonic time, wall time and the loop's timers move together; the wall clock can also be stepped,
as an administrator or NTP would.
"""

import asyncio
import contextlib
import datetime as dt
import selectors
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar
from unittest import mock

Result = TypeVar("Result")

_DATETIME = dt.datetime
# Seconds a round of the loop takes: who asks again until an instant has passed must get there.
_ROUND = 1e-6


class VirtualTime:
    """What time it is in a simulation."""

    def __init__(self) -> None:
        self.monotonic = 1_000.0
        self.wall_step = 1_700_000_000.0

    def wall(self) -> float:
        return self.monotonic + self.wall_step

    def block_loop(self, seconds: float) -> None:
        """Let time pass while nothing on the loop can run."""
        self.monotonic += seconds

    def step_wall_clock(self, seconds: float) -> None:
        self.wall_step += seconds


class _JumpingSelector(selectors.DefaultSelector):
    """Return at once, and let the time that would have been waited have passed."""

    def __init__(self, clock: VirtualTime) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(None if timeout is None else 0)
        self._clock.monotonic += _ROUND + (timeout if timeout and not events else 0.0)
        return events


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualTime) -> None:
        super().__init__(_JumpingSelector(clock))
        self.time = lambda: clock.monotonic


def run(main: Callable[[VirtualTime], Coroutine[Any, Any, Result]], *packages: str) -> Result:
    """Run `main` on virtual time, which `packages` see too, however they imported the clock."""
    clock = VirtualTime()
    with _patched(clock, packages), asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner:
        runner.get_loop().set_exception_handler(lambda _loop, _context: None)
        return runner.run(main(clock))


@contextlib.contextmanager
def _patched(clock: VirtualTime, packages: tuple[str, ...]) -> Iterator[None]:
    class VirtualDatetime(_DATETIME):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> _DATETIME:  # type: ignore[override]
            return _DATETIME.fromtimestamp(clock.wall(), tz)

        @classmethod
        def utcnow(cls) -> _DATETIME:  # type: ignore[override]
            return _DATETIME.fromtimestamp(clock.wall(), dt.UTC).replace(tzinfo=None)

    # By identity: a module holds much that has no hash.
    virtual = {
        id(time.time): clock.wall,
        id(time.time_ns): lambda: int(clock.wall() * 1e9),
        id(time.monotonic): lambda: clock.monotonic,
        id(time.monotonic_ns): lambda: int(clock.monotonic * 1e9),
        id(_DATETIME): VirtualDatetime,
    }
    loaded = list(sys.modules.items())
    modules = [time, *(module for name, module in loaded if name.partition(".")[0] in packages)]
    with contextlib.ExitStack() as patches:
        for module in modules:
            for name, value in list(vars(module).items()):
                if id(value) in virtual:
                    patches.enter_context(mock.patch.object(module, name, virtual[id(value)]))
        yield
