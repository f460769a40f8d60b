"""The scheduler: admission, lanes and batches in front of a backend.

Work conserving: a slot that is free takes what waits, with no timer to fill a batch. A batch is
formed when its worker gets its turn on the event loop, so jobs of one turn go together anyway; and
while the model is busy the next batch fills by itself. Waiting 2 ms for a fuller one was tried on a
simulated CPU: it cost a single client 38 % of its rate, two 19 %, and gave four and more nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

from services.embedding.backends.protocol import BackendFacts, Prepared
from services.embedding.errors import InvalidReplyError, ServiceStoppedError
from services.embedding.options import Lane
from services.embedding.outcome import Outcome
from services.embedding.scheduling.admission import Admission
from services.embedding.scheduling.batches import Batch
from services.embedding.scheduling.config import SchedulerConfig
from services.embedding.scheduling.job import Job
from services.embedding.scheduling.lanes import Lanes
from services.embedding.scheduling.records import Records
from services.embedding.scheduling.sizing import Sizing
from shared.infrastructure.resilience import MONOTONIC, Clock, DeadlineExceededError

Run = Callable[[Sequence[Prepared]], Awaitable[Sequence[Outcome]]]
"""Embeds a batch: one outcome an item, in order. What it raises is the outcome of all."""

_URGENCY = {lane: rank for rank, lane in enumerate(Lane)}
# Lengths are searched for in so many times the rows of a batch, but not in thousands of jobs.
_WINDOW = 8
_LARGEST_WINDOW = 512
# Where one interactive job came, another may follow.
_INTERACTIVE_FOR = 1.0


class Scheduler:
    """Lets calls in, puts their jobs into batches, and gives those to a backend.

    Its state changes only on the event loop, and never across an `await`.

    Args:
        run: Embeds a batch.
        config: Bounds and shape.
        clock: Source of monotonic time.
    """

    def __init__(
        self, run: Run, config: SchedulerConfig | None = None, *, clock: Clock = MONOTONIC
    ) -> None:
        self.config = config or SchedulerConfig()
        self._run = run
        self._clock = clock
        self._open = False
        self._workers: set[asyncio.Task[None]] = set()
        self._waking = False
        self._running: set[Batch] = set()
        self._interactive_until = 0.0
        self._begin_anew(BackendFacts(model_name="", fingerprint="", dimension=1))

    def start(self, facts: BackendFacts) -> None:
        """Begin to take jobs; a second call changes nothing."""
        if not self._open:
            self._begin_anew(facts)
            self._open = True

    async def stop(self) -> None:
        """Refuse new jobs and finish those that are here.

        If it is cancelled, those that are here fail with `ServiceStoppedError`.
        """
        self._open = False
        try:
            while self._workers:
                await asyncio.wait(self._workers)
            await asyncio.sleep(0)  # the outcomes of the last batch are told in the next turn
        except asyncio.CancelledError:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Refuse new jobs, and fail those that are here with `ServiceStoppedError`."""
        self._open = False
        for worker in self._workers:
            worker.cancel()
        # One that has not had its first turn yet will not have it.
        self._workers, self._waking = set(), False
        self._fail(self._lanes.drain(), _stopped())

    def admit(
        self,
        tokens: int,
        *,
        lane: Lane,
        tenant: str = "",
        deadline: float | None = None,
        call: Hashable = None,
    ) -> None:
        """Let a call in, or say when it will be let in; nothing has been done for it yet.

        Args:
            tokens: Tokens of the call, estimated if they have not been counted.
            lane: How urgent it is.
            tenant: On whose behalf.
            deadline: Time of the clock from which on nobody wants it.
            call: What is the same when the same call comes again, such as its first key; by that
                a call that was refused is known when it comes back.

        Raises:
            QueueFullError: Too much work is ahead of it; `retry_after` says when to come back.
            DeadlineExceededError: It is sure not to be done in time.
            ServiceStoppedError: The scheduler is not running.
        """
        if not self._open:
            raise _stopped()
        now = self._clock.now()
        self._admission.admit(
            tokens,
            lane=lane,
            tenant=tenant,
            deadline=deadline,
            call=call,
            now=now,
            running=self._until_free(now),
        )

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs of a call that was let in; a free slot takes them in the next turn.

        Jobs that come when the scheduler is not running fail with `ServiceStoppedError`.
        """
        if not jobs:
            return
        if not self._open:
            asyncio.get_running_loop().call_soon(self._fail, jobs, _stopped())
            return
        now = self._clock.now()
        for job in jobs:
            job.since = now
            self._lanes.push(job)
        first = jobs[0]
        self._admission.arrived(first.lane, first.tenant, sum(job.tokens for job in jobs), now)
        if first.lane is Lane.INTERACTIVE:
            self._interactive_until = now + _INTERACTIVE_FOR
        self._wake()

    def cancel(self, job: Job) -> bool:
        """Drop a job that nobody wants any more; return False if it is in a batch, or settled."""
        dropped = self._lanes.remove(job)
        self._records.cancelled += dropped
        return dropped

    def hurry(self, job: Job, *, lane: Lane, deadline: float | None) -> None:
        """Let somebody join a waiting job: it goes into `lane` if that is more urgent.

        It expires when the last one who wants it has given up: at the later of the deadlines.
        """
        if job.queue is None:
            return
        if job.deadline is not None:
            job.deadline = None if deadline is None else max(deadline, job.deadline)
        if _URGENCY[lane] < _URGENCY[job.lane]:
            self._lanes.remove(job)
            job.lane = lane
            self._lanes.push(job)

    def estimate(self, tokens: int, *, lane: Lane, tenant: str = "") -> float:
        """Return the seconds until a call of so many tokens would be done, were it let in now."""
        now = self._clock.now()
        return self._until_free(now) + self._admission.estimate(tokens, lane, tenant, now)

    def snapshot(self) -> dict[str, Any]:
        """Return what waits, what was done and what is known of the backend, as JSON types."""
        a, b, c = self._sizing.model.coefficients
        queues = self._lanes.queues
        work = {lane: self._sizing.work(queue.load) for lane, queue in queues.items()}
        pace = self._sizing.pace
        return {
            "lanes": {
                str(lane): {
                    "queued_jobs": len(queue.jobs),
                    "queued_tokens": queue.load.tokens,
                    "queued_seconds": work[lane] / pace,
                    "tenants": len(queue.tenants),
                    **self._records.waits(lane),
                }
                for lane, queue in queues.items()
            },
            "queued_seconds": sum(work.values()) / pace,
            "running_batches": len(self._running),
            "running_jobs": sum(len(batch.jobs) for batch in self._running),
            **self._records.snapshot(),
            **self._admission.snapshot(),
            "cost_model": {
                "a": a,
                "b": b,
                "c": c,
                "observed_count": self._sizing.model.observed_count,
                "efficiency": self._sizing.efficiency,
            },
        }

    def _begin_anew(self, facts: BackendFacts) -> None:
        self._sizing = Sizing(facts, self.config)
        self._lanes = Lanes(self.config.weights, self.config.patiences)
        self._admission = Admission(self.config, self._lanes, self._sizing)
        self._records = Records(self._clock)
        self._window = max(facts.max_rows, min(_WINDOW * facts.max_rows, _LARGEST_WINDOW))

    def _until_free(self, now: float) -> float:
        """Return the seconds until one of the slots is free."""
        if len(self._running) < self._sizing.facts.concurrency:
            return 0.0
        return max(0.0, min(batch.began + batch.expected for batch in self._running) - now)

    def _wake(self) -> None:
        if self._waking or len(self._workers) >= self._sizing.facts.concurrency:
            return
        self._waking = True
        # In a context of its own: the deadline of whoever happens to start it is not its own.
        worker = asyncio.get_running_loop().create_task(
            self._work(), name="embed-batches", context=contextvars.Context()
        )
        self._workers.add(worker)

    async def _work(self) -> None:
        """Run batches until nothing waits.

        The next batch is given to the model before the outcomes of the last one are told.
        """
        self._waking = False
        loop = asyncio.get_running_loop()
        try:
            while batch := self._next_batch():
                self._running.add(batch)
                outcomes: Sequence[Outcome] = [_stopped()] * len(batch.jobs)
                try:
                    outcomes = await self._outcomes(batch)
                finally:
                    self._running.discard(batch)
                    seconds = self._clock.now() - batch.began
                    loop.call_soon(self._settle, batch, outcomes, seconds)
        finally:
            # At once, and not when the task is seen to be done: a job may come in between.
            self._workers = {task for task in self._workers if task is not asyncio.current_task()}

    async def _outcomes(self, batch: Batch) -> Sequence[Outcome]:
        jobs = batch.jobs
        try:
            outcomes = await self._run([job.prepared for job in jobs])
            if len(outcomes) != len(jobs):
                raise InvalidReplyError(f"{len(outcomes)} outcomes for {len(jobs)} items")
        except Exception as exc:  # not ours to judge: it is the outcome of everyone in the batch
            batch.failed = True
            return [exc] * len(jobs)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The backend gave the batch up by itself; the next one is another matter.
            batch.failed = True
            return [_stopped()] * len(jobs)
        return outcomes

    def _next_batch(self) -> Batch | None:
        now = self._clock.now()
        expired: list[Job] = []
        batch: Batch | None = None
        while batch is None and (head := self._lanes.pick(now)) is not None:
            if _is_expired(head, now):
                self._lanes.remove(head)
                expired.append(head)
            else:
                batch = self._form(head, now, expired)
        if expired:
            self._records.expired += len(expired)
            asyncio.get_running_loop().call_soon(self._fail, expired, _too_late())
        return batch

    def _form(self, head: Job, now: float, expired: list[Job]) -> Batch:
        sizing, lanes = self._sizing, self._lanes
        batch = Batch(
            head,
            max_rows=sizing.facts.max_rows,
            max_waste=self.config.max_waste,
            packed=sizing.facts.packed,
        )
        interactive = lanes.queues[Lane.INTERACTIVE].jobs
        brief = bool(interactive) or now < self._interactive_until
        budget = sizing.budget(head.tokens, brief=brief)
        batch.grow(self._fitting(lanes.alongside(head, self._window), head, now, expired), budget)
        # Where the fixed part is most of the time, others may have the room that is left.
        room = min(budget, sizing.filling(head.tokens))
        if batch.closed_by == "empty" and room > head.tokens:
            batch.grow(self._fitting(lanes.below(head, self._window), head, now, expired), room)
        for job in batch.jobs:
            lanes.take(job)
        batch.began = now
        batch.expected = sizing.model.predict(*batch.cost)
        if lanes:
            batch.backlogged = len(self._running) + 1 >= sizing.facts.concurrency
            self._wake()
        return batch

    def _fitting(
        self, candidates: Sequence[Job], head: Job, now: float, expired: list[Job]
    ) -> list[Job]:
        group = head.prepared.group
        fitting: list[Job] = []
        for job in candidates:
            if _is_expired(job, now):
                self._lanes.remove(job)
                expired.append(job)
            elif job.prepared.group == group and job is not head:
                fitting.append(job)
        return fitting

    def _settle(self, batch: Batch, outcomes: Sequence[Outcome], seconds: float) -> None:
        if not batch.failed:
            self._sizing.observe(batch, seconds)
        self._records.count(batch, seconds)
        for job, outcome in zip(batch.jobs, outcomes, strict=True):
            self._tell(job, outcome)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        for job in jobs:
            self._tell(job, error)

    def _tell(self, job: Job, outcome: Outcome) -> None:
        try:
            job.on_outcome(outcome)
        except Exception as exc:  # the others in the batch want their outcomes all the same
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a job could not be told what came of it", "exception": exc}
            )


def _is_expired(job: Job, now: float) -> bool:
    return job.deadline is not None and job.deadline <= now


def _stopped() -> ServiceStoppedError:
    return ServiceStoppedError("the embedding service is stopping or has been stopped")


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("the item waited for the model until nobody wanted it")
