"""What the state machines share: an event loop and a clock that move only when a rule says so."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine

from shared.infrastructure.testing import FakeClock

# Instants are multiples of this and rates powers of two, so that sums of floats are exact.
TICK = 1 / 64


def thorough(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True
    )


class TimedMachine(RuleBasedStateMachine):
    """A state machine whose rules start tasks, and let them run by letting time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(0.0)
        self.runner = asyncio.Runner()
        self.tasks: list[asyncio.Task[Any]] = []

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.runner.get_loop().create_task(work)
        self.tasks.append(task)
        self.pass_time()
        return task

    def pass_time(self, seconds: float = 0.0) -> None:
        self.runner.run(self.clock.advance(seconds))

    def cancel(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        self.pass_time()

    def at_the_end(self) -> None:
        """Check what holds once everything has ended; overridden."""

    def teardown(self) -> None:
        try:
            self.at_the_end()
        finally:
            for task in self.tasks:
                task.cancel()
            self.pass_time()
            for task in self.tasks:
                if task.done() and not task.cancelled():
                    task.exception()
            self.runner.close()
