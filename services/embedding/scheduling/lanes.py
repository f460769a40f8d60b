"""Who is next: lanes by urgency, tenants by fairness, and nobody waits for ever.

Lanes share the model by weight, and the tenants of a lane share it equally, both by start-time fair
queueing on tokens: each has a tag that moves on by what was taken from it, and the lowest tag is
next. One that was away starts where the others are and has saved nothing up; what it took is not
forgotten before the others have had as much. A tenant's own jobs leave in the order they came, but
for those that a batch of their length takes along.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping

from services.embedding.options import Lane
from services.embedding.scheduling.job import Job, Load

# One pick in so many is for the lane of the job that has been waiting too long: under a lasting
# overload all have, and a line by age alone would undo both the weights and the fairness.
_PICKS_BETWEEN_AGED = 8
_MAX_AWAY = 4096  # tenants; what they took is forgotten together


class TenantQueue:
    """What one tenant has waiting in a lane, and the tag up to which it has been served."""

    __slots__ = ("jobs", "lane", "load", "tag", "tenant")

    def __init__(self, lane: LaneQueue, tenant: str, tag: float) -> None:
        self.lane = lane
        self.tenant = tenant
        self.tag = tag
        self.jobs: OrderedDict[Job, None] = OrderedDict()
        self.load = Load()


class LaneQueue:
    """What waits in one lane.

    Args:
        weight: Its share of the model, beside those of the other lanes.
        patience: Seconds a job waits in it before it is one that has waited too long.
    """

    def __init__(self, weight: float, patience: float) -> None:
        self.weight = weight
        self.patience = patience
        self.tag = 0.0
        self.load = Load()
        self.jobs: OrderedDict[Job, None] = OrderedDict()
        self.tenants: dict[str, TenantQueue] = {}
        # Those that have nothing waiting any more, until the others have caught up with them.
        self._away: dict[str, TenantQueue] = {}
        # Whoever waits or is away, by a tag that may have moved on since.
        self._next: list[tuple[float, int, TenantQueue]] = []
        self._serial = itertools.count()
        # Where newcomers start: it moves on with all that is taken, or a stream of them would keep
        # those from their turn who have been served already.
        self._now = 0.0

    def push(self, job: Job) -> None:
        """Put a job at the end of its tenant's line."""
        queue = self.tenants.get(job.tenant) or self._come(job.tenant)
        job.queue = queue
        self.jobs[job] = queue.jobs[job] = None
        self.load.add(job.tokens)
        queue.load.add(job.tokens)

    def remove(self, job: Job, queue: TenantQueue) -> None:
        """Take a job out of its line, wherever it stands."""
        job.queue = None
        del self.jobs[job], queue.jobs[job]
        self.load.remove(job.tokens)
        queue.load.remove(job.tokens)
        if not queue.jobs:
            self._leave(queue)

    def charge(self, queue: TenantQueue, tokens: int) -> None:
        """Move the tags on by what is taken from a tenant that waits."""
        queue.tag += tokens
        self.tag += tokens / self.weight
        self._now += tokens / len(self.tenants)

    def head(self) -> Job:
        """Return the next job in fair order; there is one."""
        while True:
            tag, _, queue = self._next[0]
            if tag < queue.tag:
                heapq.heapreplace(self._next, (queue.tag, next(self._serial), queue))
            elif not queue.jobs:
                heapq.heappop(self._next)
                del self._away[queue.tenant]
            else:
                self._now = max(self._now, tag)
                return next(iter(queue.jobs))

    def window(self, limit: int) -> Iterator[Job]:
        """Return some `limit` jobs, one of each tenant after the other, the lowest tag first."""
        queues = sorted(self.tenants.values(), key=_tag)[:limit]
        share = max(1, limit // len(queues)) if queues else 0
        rounds = itertools.zip_longest(*(itertools.islice(queue.jobs, share) for queue in queues))
        return (job for each in rounds for job in each if job is not None)

    def _come(self, tenant: str) -> TenantQueue:
        queue = self._away.pop(tenant, None)
        if queue is None:
            queue = TenantQueue(self, tenant, self._now)
            heapq.heappush(self._next, (queue.tag, next(self._serial), queue))
        queue.tag = max(queue.tag, self._now)
        self.tenants[tenant] = queue
        return queue

    def _leave(self, queue: TenantQueue) -> None:
        del self.tenants[queue.tenant]
        self._away[queue.tenant] = queue
        if not self.tenants or len(self._away) > _MAX_AWAY:
            self._away.clear()
            self._next = [entry for entry in self._next if entry[2].jobs]
            heapq.heapify(self._next)


class Lanes:
    """Every job that waits.

    Args:
        weights: Share of each lane, the most urgent first.
        patience: Seconds after which a job of a lane has waited too long.
    """

    def __init__(self, weights: Mapping[Lane, float], patience: Mapping[Lane, float]) -> None:
        self.queues = {lane: LaneQueue(weights[lane], patience[lane]) for lane in weights}
        self._order = list(self.queues.values())
        self._rank = {lane: rank for rank, lane in enumerate(self.queues)}
        self._now = 0.0  # tag of the lane that was picked last
        self._picks = 0

    def __len__(self) -> int:
        return sum(len(queue.jobs) for queue in self._order)

    def __bool__(self) -> bool:
        return any(queue.jobs for queue in self._order)

    def push(self, job: Job) -> None:
        """Put a job at the end of its line."""
        queue = self.queues[job.lane]
        if not queue.jobs:
            queue.tag = max(queue.tag, self._now)
        queue.push(job)

    def remove(self, job: Job) -> bool:
        """Take a job out, wherever it stands; return whether it was waiting."""
        queue = job.queue
        if queue is None:
            return False
        queue.lane.remove(job, queue)
        return True

    def take(self, job: Job) -> None:
        """Take a waiting job out for a batch: its lane and its tenant move on by its tokens."""
        queue = job.queue
        if queue is not None:
            queue.lane.charge(queue, job.tokens)
            queue.lane.remove(job, queue)

    def pick(self, now: float) -> Job | None:
        """Return the job whose turn it is; it goes on waiting until it is taken."""
        waiting = [queue for queue in self._order if queue.jobs]
        if not waiting:
            return None
        self._picks += 1
        if self._picks >= _PICKS_BETWEEN_AGED and (aged := _aged(waiting, now)):
            self._picks = 0
            return aged.head()
        queue = min(waiting, key=_tag)  # the most urgent of equals
        self._now = queue.tag
        return queue.head()

    def alongside(self, head: Job, limit: int) -> list[Job]:
        """Return some `limit` jobs that may share a batch with `head`: none is less urgent."""
        found: list[Job] = []
        for queue in reversed(self._order[: self._rank[head.lane] + 1]):
            if len(found) < limit:
                found += queue.window(limit - len(found))
        return found

    def below(self, head: Job, limit: int) -> list[Job]:
        """Return some `limit` jobs that are less urgent than `head`."""
        found: list[Job] = []
        for queue in self._order[self._rank[head.lane] + 1 :]:
            if len(found) < limit:
                found += queue.window(limit - len(found))
        return found

    def ahead(
        self,
        lane: Lane,
        tenant: str,
        coming: float,
        seconds: float,
        cost: Callable[[Load], float],
    ) -> tuple[float, float]:
        """Return the work that is done before a new call of a tenant has been served.

        Whoever has less waiting than this tenant goes first with all of it, whoever has more with
        as much; the other lanes likewise, by weight. It takes a step for each tenant of the lane.

        Args:
            lane: Lane of the call.
            tenant: Whose it is.
            coming: Work of the tenant that is to be queued before the call.
            seconds: Work of the call itself.
            cost: Work of a load, in seconds.

        Returns:
            That ahead of it in its lane, and that of the other lanes.
        """
        queue = self.queues[lane]
        own = queue.tenants.get(tenant)
        before = coming + (cost(own.load) if own else 0.0)
        mine = before + seconds
        in_lane = before + sum(
            min(mine, cost(other.load)) for other in queue.tenants.values() if other is not own
        )
        turn = (in_lane + seconds) / queue.weight
        others = sum(
            min(turn * other.weight, cost(other.load))
            for other in self._order
            if other is not queue and other.jobs
        )
        return in_lane, others

    def drain(self) -> list[Job]:
        """Take every job out."""
        jobs = [job for queue in self._order for job in queue.jobs]
        for job in jobs:
            self.remove(job)
        return jobs


def _tag(queue: LaneQueue | TenantQueue) -> float:
    return queue.tag


def _aged(queues: list[LaneQueue], now: float) -> LaneQueue | None:
    overdue = [(now - next(iter(queue.jobs)).since - queue.patience, queue) for queue in queues]
    late, queue = max(overdue, key=lambda pair: pair[0])
    return queue if late > 0 else None
