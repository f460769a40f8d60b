import asyncio
from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis.stateful import invariant, precondition, rule
from machine import TICK, TimedMachine, thorough

from services.embedding.backends.protocol import BackendFacts, Prepared
from services.embedding.errors import QueueFullError, ServiceStoppedError
from services.embedding.options import Lane
from services.embedding.outcome import Outcome
from services.embedding.scheduling import Job, Scheduler, SchedulerConfig
from shared.infrastructure.resilience import DeadlineExceededError

SLOTS = 2
MAX_ROWS = 4
MAX_TOKENS = 64
LENGTHS = (1, 8, 9, 10, 30, 100)
WASTE = 1.5
# Weights, tenants and ageing may each put others first, but never for ever.
BATCHES_TO_SERVE = 400


class Task:
    """A job as its callers see it."""

    def __init__(self, number: int, tokens: int, lane: Lane, tenant: str, group: str) -> None:
        self.number = number
        self.outcomes: list[Outcome] = []
        self.cancelled = False
        self.moved = False
        self.job = Job(
            Prepared(tokens, self, group=group), self.outcomes.append, lane=lane, tenant=tenant
        )

    @property
    def line(self) -> tuple[object, ...]:
        return self.job.lane, self.job.tenant, self.job.tokens, self.job.prepared.group


class ResultError(Exception):
    """What came of one item."""


class SchedulerMachine(TimedMachine):
    """Jobs come, leave and expire; batches end well, badly or not for a long while."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks_by_job: list[Task] = []
        self.batches: dict[int, tuple[list[Task], asyncio.Future[str]]] = {}
        self.begun = 0
        self.started: list[Task] = []
        self.stopping: asyncio.Task[None] | None = None
        self.scheduler = Scheduler(
            self.run, SchedulerConfig(max_waste=WASTE, max_queue_seconds=0.01), clock=self.clock
        )
        self.begin()

    def begin(self) -> None:
        self.scheduler.start(
            BackendFacts(
                model_name="",
                fingerprint="",
                dimension=1,
                concurrency=SLOTS,
                max_rows=MAX_ROWS,
                max_tokens=MAX_TOKENS,
            )
        )

    async def run(self, batch: Sequence[Prepared]) -> Sequence[Outcome]:
        tasks: list[Task] = [item.payload for item in batch]  # type: ignore[misc]
        self.check(tasks)
        number, self.begun = self.begun, self.begun + 1
        end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.batches[number] = (tasks, end)
        self.started += tasks
        try:
            how = await end
        finally:
            del self.batches[number]
        if how == "fails":
            raise ResultError(number)
        return [ResultError(task.number) for task in tasks][: None if how == "ends" else -1]

    def check(self, tasks: list[Task]) -> None:
        lengths = [task.job.tokens for task in tasks]
        padded = len(tasks) * max(lengths)
        assert len(tasks) <= MAX_ROWS
        assert padded <= MAX_TOKENS or len(tasks) == 1
        assert padded * max(lengths) <= WASTE * sum(length**2 for length in lengths)
        assert len({task.job.prepared.group for task in tasks}) == 1
        now = self.clock.now()
        for task in tasks:
            assert not task.cancelled
            assert not task.outcomes
            assert task.job.deadline is None or task.job.deadline > now
        earlier = {id(task) for task in self.started} | {id(task) for task in tasks}
        for task in tasks:
            assert not [
                other.number
                for other in self.tasks_by_job[: task.number]
                if other.line == task.line
                and not (other.cancelled or other.outcomes or other.moved or task.moved)
                and id(other) not in earlier
                and (other.job.deadline is None or other.job.deadline > now)
            ]

    @property
    def waiting(self) -> list[Task]:
        return [task for task in self.tasks_by_job if task.job.queue is not None]

    @rule(
        lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=8),
        lane=st.sampled_from(Lane),
        tenant=st.sampled_from("ab"),
        group=st.sampled_from(("", "", "", "other")),
        patience=st.none() | st.integers(0, 200),
    )
    def submit(
        self, lengths: list[int], lane: Lane, tenant: str, group: str, patience: int | None
    ) -> None:
        tasks = [
            Task(len(self.tasks_by_job) + at, length, lane, tenant, group)
            for at, length in enumerate(lengths)
        ]
        for task in tasks:
            if patience is not None:
                task.job.deadline = self.clock.now() + patience * TICK
        self.tasks_by_job += tasks
        self.in_loop(lambda: self.scheduler.submit([task.job for task in tasks]))

    @rule(tokens=st.integers(1, 1000), lane=st.sampled_from(Lane), patience=st.integers(0, 99))
    def knock(self, tokens: int, lane: Lane, patience: int) -> None:
        """A call that is let in needs not come, and one that is refused is told when to."""
        idle = not self.waiting and len(self.batches) < SLOTS
        try:
            self.scheduler.admit(tokens, lane=lane, tenant="knocks", call=tokens)
        except QueueFullError as refused:
            wait = refused.retry_after
            if wait is None or wait <= 0 or (idle and not self.scheduler.snapshot()["promises"]):
                raise AssertionError("refused for nothing") from refused
        except ServiceStoppedError:
            if self.stopping is None:
                raise
        try:
            deadline = self.clock.now() + patience * TICK
            self.scheduler.admit(tokens, lane=lane, tenant="knocks", deadline=deadline)
        except (QueueFullError, DeadlineExceededError, ServiceStoppedError):
            pass

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel_a_job(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.waiting))
        assert self.scheduler.cancel(task.job)
        task.cancelled = True

    @precondition(lambda self: self.started)
    @rule(data=st.data())
    def cancel_one_too_late(self, data: st.DataObject) -> None:
        assert not self.scheduler.cancel(data.draw(st.sampled_from(self.started)).job)

    @precondition(lambda self: self.tasks_by_job)
    @rule(data=st.data(), lane=st.sampled_from(Lane), patience=st.none() | st.integers(1, 200))
    def hurry_a_job(self, data: st.DataObject, lane: Lane, patience: int | None) -> None:
        task = data.draw(st.sampled_from(self.tasks_by_job))
        before = task.job.lane
        deadline = None if patience is None else self.clock.now() + patience * TICK
        self.scheduler.hurry(task.job, lane=lane, deadline=deadline)
        task.moved |= task.job.lane is not before

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), how=st.sampled_from(("ends", "ends", "fails", "is short")))
    def end_a_batch(self, data: st.DataObject, how: str) -> None:
        tasks, end = self.batches[data.draw(st.sampled_from(sorted(self.batches)))]
        end.set_result(how)
        self.pass_time()
        for task in tasks:
            assert len(task.outcomes) == 1
            outcome = task.outcomes[0]
            assert how != "ends" or (
                isinstance(outcome, ResultError) and outcome.args[0] == task.number
            )

    @rule(ticks=st.integers(1, 100))
    def let_pass(self, ticks: int) -> None:
        self.pass_time(ticks * TICK)

    @rule(seconds=st.integers(1, 100))
    def stall(self, seconds: int) -> None:
        self.clock.stall(seconds)

    @precondition(lambda self: self.stopping is None)
    @rule(cut_short=st.booleans())
    def stop(self, cut_short: bool) -> None:
        self.stopping = self.start(self.scheduler.stop())
        if cut_short:
            self.cancel(self.stopping)
            assert not self.waiting
            assert not self.batches
            self.settled()

    @precondition(lambda self: self.stopping is not None and self.stopping.done())
    @rule()
    def start_again(self) -> None:
        self.stopping = None
        self.begin()

    @invariant()
    def nobody_waits_while_a_slot_is_free(self) -> None:
        assert len(self.batches) <= SLOTS
        assert not self.waiting or len(self.batches) == SLOTS
        for task in self.tasks_by_job:
            assert len(task.outcomes) <= 1
            assert not (task.cancelled and task.outcomes)

    @invariant()
    def what_it_tells_is_what_is_there(self) -> None:
        snapshot = self.scheduler.snapshot()
        lanes = snapshot["lanes"]
        assert sum(lane["queued_jobs"] for lane in lanes.values()) == len(self.waiting)
        assert sum(lane["queued_tokens"] for lane in lanes.values()) == sum(
            task.job.tokens for task in self.waiting
        )
        assert snapshot["running_batches"] == len(self.batches)
        assert min(snapshot["cost_model"][name] for name in "abc") >= 0

    def settled(self) -> None:
        for task in self.tasks_by_job:
            assert len(task.outcomes) == (0 if task.cancelled else 1)

    def at_the_end(self) -> None:
        """Everything that waits is served, and soon."""
        for _ in range(BATCHES_TO_SERVE):
            if not self.batches:
                break
            oldest = min(self.batches)
            self.batches[oldest][1].set_result("ends")
            self.pass_time(TICK)
        assert not self.waiting
        self.settled()

    def in_loop(self, action: object) -> None:
        async def act() -> None:
            action()  # type: ignore[operator]
            await self.clock.advance()

        self.runner.run(act())


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = thorough(examples=80, steps=40)
