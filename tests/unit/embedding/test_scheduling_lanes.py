from collections import Counter

import pytest
from scheduling_fakes import Item

from services.embedding.options import Lane
from services.embedding.scheduling import SchedulerConfig
from services.embedding.scheduling.job import Job, Load
from services.embedding.scheduling.lanes import Lanes

NEVER = dict.fromkeys(Lane, float("inf"))


def lanes(patience: dict[Lane, float] | None = None) -> Lanes:
    config = SchedulerConfig()
    return Lanes(config.weights, patience or config.patiences)


def put(queue: Lanes, lane: Lane, count: int = 1, tokens: int = 10, tenant: str = "") -> list[Job]:
    jobs = [Item(tokens, lane, tenant=tenant).job for _ in range(count)]
    for job in jobs:
        queue.push(job)
    return jobs


def taken(queue: Lanes, count: int, now: float = 0.0) -> list[Job]:
    jobs = []
    for _ in range(count):
        job = queue.pick(now)
        assert job is not None
        queue.take(job)
        jobs.append(job)
    return jobs


def test_busy_lanes_share_the_model_eight_to_four_to_one() -> None:
    queue = lanes(NEVER)
    for lane in Lane:
        put(queue, lane, 200)
    assert Counter(job.lane for job in taken(queue, 130)) == {
        Lane.INTERACTIVE: 80,
        Lane.DEFAULT: 40,
        Lane.BULK: 10,
    }


def test_shares_are_of_tokens_and_not_of_jobs() -> None:
    queue = lanes(NEVER)
    put(queue, Lane.DEFAULT, 200, tokens=10, tenant="short")
    put(queue, Lane.DEFAULT, 200, tokens=90, tenant="long")
    shares = Counter(job.tenant for job in taken(queue, 100))
    assert shares == {"short": 90, "long": 10}


def test_a_tenant_with_little_is_not_behind_one_with_much() -> None:
    queue = lanes()
    put(queue, Lane.DEFAULT, 100, tenant="much")
    taken(queue, 20)
    (job,) = put(queue, Lane.DEFAULT, tenant="little")
    assert job in taken(queue, 2)


def test_who_was_away_has_saved_nothing_up() -> None:
    queue = lanes(NEVER)
    put(queue, Lane.DEFAULT, 200, tenant="there")
    taken(queue, 100)
    put(queue, Lane.DEFAULT, 100, tenant="back")
    assert Counter(job.tenant for job in taken(queue, 40)) == {"there": 20, "back": 20}


def test_what_a_tenant_took_is_not_forgotten_when_its_line_is_empty() -> None:
    queue = lanes(NEVER)
    for number in range(4):
        put(queue, Lane.DEFAULT, 200, tenant=str(number))
    put(queue, Lane.DEFAULT, tokens=400, tenant="big")
    served: Counter[str] = Counter()
    for _ in range(300):
        (job,) = taken(queue, 1)
        served[job.tenant] += job.tokens
        if job.tenant == "big":
            put(queue, Lane.DEFAULT, tokens=400, tenant="big")
    assert served["big"] == pytest.approx(served.total() / 5, rel=0.3)


def test_what_a_tenant_took_is_forgotten_when_the_others_have_caught_up() -> None:
    queue = lanes(NEVER)
    lane = queue.queues[Lane.DEFAULT]
    put(queue, Lane.DEFAULT, 100, tenant="there")
    for job in put(queue, Lane.DEFAULT, tokens=50, tenant="guest"):
        queue.take(job)
    taken(queue, 4)
    assert set(lane._away) == {"guest"}
    taken(queue, 4)
    assert len(lane._away) == 0
    assert len(lane._next) == 1


def test_what_is_known_of_tenants_that_left_is_bounded() -> None:
    queue = lanes(NEVER)
    lane = queue.queues[Lane.DEFAULT]
    put(queue, Lane.DEFAULT, 100, tenant="there")
    for number in range(5000):
        for job in put(queue, Lane.DEFAULT, tenant=str(number)):
            queue.take(job)
    assert 0 < len(lane._away) <= 4096
    assert len(lane._next) == len(lane._away) + 1
    assert len(taken(queue, 100)) == 100
    assert len(lane._away) == len(lane._next) == 0


def test_a_stream_of_new_tenants_does_not_keep_an_old_one_from_its_turn() -> None:
    queue = lanes(NEVER)
    put(queue, Lane.DEFAULT, tokens=100, tenant="old")
    taken(queue, 1)
    put(queue, Lane.DEFAULT, tenant="0")
    (job,) = put(queue, Lane.DEFAULT, tenant="old")
    queue.queues[Lane.DEFAULT].tenants["old"].tag += 100  # it had a long text a moment ago
    for number in range(1, 60):
        put(queue, Lane.DEFAULT, tenant=str(number))
        taken(queue, 1)
    assert job.queue is None


def test_a_tenant_does_not_get_more_by_waiting_too_long() -> None:
    queue = lanes()
    put(queue, Lane.DEFAULT, 100, tokens=1000, tenant="big")
    for number in range(4):
        put(queue, Lane.DEFAULT, 500, tenant=str(number))
    served: Counter[str] = Counter()
    for job in taken(queue, 800, now=50.0):
        served[job.tenant] += job.tokens
    assert served["big"] <= 1000 + served.total() / 5


def test_a_window_begins_with_whoever_had_the_least() -> None:
    queue = lanes(NEVER)
    for tenant in "abc":
        put(queue, Lane.DEFAULT, 9, tenant=tenant)
    for tenant in "aab":
        queue.take(next(iter(queue.queues[Lane.DEFAULT].tenants[tenant].jobs)))
    assert [job.tenant for job in queue.queues[Lane.DEFAULT].window(6)] == list("cbacba")


def test_a_lane_that_was_empty_has_saved_nothing_up() -> None:
    queue = lanes(NEVER)
    put(queue, Lane.INTERACTIVE, 500)
    taken(queue, 300)
    put(queue, Lane.BULK, 100)
    assert Counter(job.lane for job in taken(queue, 90))[Lane.BULK] == 10


def test_an_urgent_job_is_next_when_only_bulk_waits() -> None:
    queue = lanes()
    put(queue, Lane.BULK, 100, tokens=1000)
    taken(queue, 7)
    (job,) = put(queue, Lane.INTERACTIVE)
    assert taken(queue, 1) == [job]


def test_a_tenants_jobs_leave_in_the_order_they_came() -> None:
    queue = lanes()
    jobs = put(queue, Lane.DEFAULT, 20)
    assert taken(queue, 20) == jobs
    assert queue.pick(0.0) is None


@pytest.mark.parametrize(("lane", "patience"), [(Lane.DEFAULT, 2.0), (Lane.BULK, 10.0)])
def test_a_job_that_waits_too_long_is_put_before_its_turn(lane: Lane, patience: float) -> None:
    queue = lanes()
    put(queue, lane, tokens=10**9)  # it puts its lane far behind
    taken(queue, 1)
    (old,) = put(queue, lane)
    put(queue, Lane.INTERACTIVE, 100)
    for job in queue.queues[Lane.INTERACTIVE].jobs:
        job.since = 100.0
    assert old not in taken(queue, 20, now=patience - 0.1)
    assert old in taken(queue, 8, now=patience + 0.1)


def test_jobs_that_waited_too_long_leave_most_turns_to_the_others() -> None:
    queue = lanes()
    put(queue, Lane.BULK, 200)
    urgent = put(queue, Lane.INTERACTIVE, 200)
    for job in urgent:
        job.since = 1000.0
    served = Counter(job.lane for job in taken(queue, 80, now=1000.0))
    assert served[Lane.INTERACTIVE] >= 68


def test_a_job_is_removed_wherever_it_stands() -> None:
    queue = lanes()
    jobs = put(queue, Lane.DEFAULT, 5)
    assert queue.remove(jobs[2])
    assert not queue.remove(jobs[2])
    assert queue.remove(jobs[0])
    assert taken(queue, 3) == [jobs[1], jobs[3], jobs[4]]
    assert not queue.remove(jobs[1])
    assert len(queue) == 0


def test_what_left_is_no_load_any_more() -> None:
    queue = lanes()
    put(queue, Lane.BULK, 3, tokens=7, tenant="a")
    put(queue, Lane.BULK, 1, tokens=5, tenant="b")
    load = queue.queues[Lane.BULK].load
    assert (load.rows, load.tokens, load.squares) == (4, 26, 3 * 49 + 25)
    queue.remove(next(iter(queue.queues[Lane.BULK].jobs)))
    taken(queue, 2)
    assert len(queue.drain()) == 1
    assert (load.rows, load.tokens, load.squares) == (0, 0, 0)
    assert queue.queues[Lane.BULK].tenants == {}
    assert not queue


def test_a_window_has_jobs_of_every_tenant() -> None:
    queue = lanes()
    put(queue, Lane.DEFAULT, 100, tenant="much")
    little = put(queue, Lane.DEFAULT, 2, tenant="little")
    head = queue.pick(0.0)
    assert head is not None
    window = queue.alongside(head, 40)
    assert set(little) <= set(window)
    assert len(window) == 22


def test_a_window_has_one_job_each_of_more_tenants_than_fit() -> None:
    queue = lanes()
    for number in range(100):
        put(queue, Lane.DEFAULT, 3, tenant=str(number))
    head = queue.pick(0.0)
    assert head is not None
    assert len({job.tenant for job in queue.alongside(head, 10)}) == 10


def test_only_what_is_as_urgent_may_join_a_batch_and_less_urgent_may_fill_it() -> None:
    queue = lanes()
    urgent, normal, bulk = (put(queue, lane)[0] for lane in Lane)
    assert queue.alongside(normal, 10) == [normal, urgent]
    assert queue.below(normal, 10) == [bulk]
    assert queue.alongside(bulk, 10) == [bulk, normal, urgent]
    assert queue.below(urgent, 1) == [normal]


def tokens_of(load: Load) -> float:
    return float(load.tokens)


@pytest.mark.parametrize(
    ("tenant", "work", "expected"),
    [
        pytest.param("new", 30.0, 30 + 20, id="others go first with as much as one's own"),
        pytest.param("b", 10.0, 20 + 30, id="one's own goes first"),
        pytest.param("new", 1000.0, 500 + 20, id="and no more than there is"),
    ],
)
def test_what_is_ahead_in_the_lane_is_what_is_served_before(
    tenant: str, work: float, expected: float
) -> None:
    queue = lanes()
    put(queue, Lane.DEFAULT, 50, tokens=10, tenant="a")
    put(queue, Lane.DEFAULT, 2, tokens=10, tenant="b")
    in_lane, others = queue.ahead(Lane.DEFAULT, tenant, 0.0, work, tokens_of)
    assert (in_lane, others) == (expected, 0.0)


def test_other_lanes_are_ahead_by_their_weight() -> None:
    queue = lanes()
    put(queue, Lane.BULK, 100, tokens=10)
    put(queue, Lane.INTERACTIVE, 4, tokens=10)
    assert queue.ahead(Lane.DEFAULT, "", 0.0, 40.0, tokens_of) == (0.0, 40.0 + 10.0)
    assert queue.ahead(Lane.DEFAULT, "", 8.0, 40.0, tokens_of) == (8.0, 40.0 + 12.0)
