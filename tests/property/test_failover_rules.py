"""Whatever hosts answer, in whatever order: no call breaks a rule of the error table."""

import asyncio
from collections import Counter
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st

from shared.infrastructure.balancing.call import ATTEMPT, Attempt
from shared.infrastructure.balancing.classify import EARLIER
from shared.infrastructure.balancing.faults import RULES, Fault
from shared.infrastructure.balancing.hedging import PoolHedge
from shared.infrastructure.http import ConnectFailedError, PoolTimeoutError, ReadTimeoutError
from shared.infrastructure.resilience import (
    DeadlineLayer,
    HedgeConfig,
    RetryBudget,
    RetryBudgetConfig,
    RetryConfig,
    ServiceError,
)
from tests.unit.balancing.scripted_hosts import Fleet, Run, call_for

FAILURES: dict[str, Any] = {
    "refused": lambda: ConnectFailedError("refused"),
    "silent": lambda: ReadTimeoutError("silence"),
    "ours": lambda: PoolTimeoutError("our own"),
}
STEPS = st.tuples(
    st.sampled_from([0.0, 0.0, 0.5, 2.0]),
    st.sampled_from([200, 400, 401, 404, 429, 500, 503, *FAILURES]),
)
PLANS = st.lists(st.lists(STEPS, min_size=1, max_size=3), min_size=1, max_size=4)
ELSEWHERE = {Fault.MISCONFIGURED, Fault.NO_MODEL, Fault.OURS}
COST, THROTTLE_COST, CAPACITY = 10.0, 5.0, 45.0


class Bodies(Fleet):
    """Hosts whose error responses are kept, to see whether they are closed."""

    def __init__(self, plans: list[list[tuple[float, Any]]]) -> None:
        self.made: list[httpx.Response] = []
        hosts = {
            name: [(seconds, self._step(answer)) for seconds, answer in plan]
            for name, plan in zip("abcd", plans, strict=False)
        }
        super().__init__(**hosts)  # type: ignore[arg-type]

    def _step(self, answer: Any) -> Any:
        def make() -> httpx.Response:
            if answer in FAILURES:
                raise FAILURES[answer]()
            self.made.append(Closable(answer, json={}))
            return self.made[-1]

        return make


class Closable(httpx.Response):
    """A response that knows whether it was given back."""

    was_closed = False

    async def aclose(self) -> None:
        self.was_closed = True
        await super().aclose()


def faults_by_host(attempts: list[Attempt]) -> dict[str, list[Fault | None]]:
    found: dict[str, list[Fault | None]] = {}
    for attempt in attempts:
        found.setdefault(attempt.host, []).append(attempt.fault)
    return found


@given(PLANS, st.integers(1, 6), st.sampled_from([None, 1.0, 5.0]), st.booleans())
def test_no_call_breaks_a_rule(
    plans: list[list[tuple[float, Any]]], most: int, limit: float | None, is_hedged: bool
) -> None:
    async def check() -> None:
        fleet = Bodies(plans)
        config = RetryBudgetConfig(capacity=CAPACITY, min_retries_per_second=0.0)
        budget = RetryBudget(config, clock=fleet.clock)
        hedge = PoolHedge(HedgeConfig(delay=0.25), budget=budget, clock=fleet.clock)
        run = Run(
            fleet,
            retry=RetryConfig(base_delay=0.5, max_delay=2.0),
            call=call_for(max_attempts=most),
            budget=budget,
            layers=[DeadlineLayer(limit, clock=fleet.clock)] if limit else [],
            below=[hedge] if is_hedged else [],
        )
        await run.done()
        await fleet.clock.advance(0.0)
        attempts, outcome = run.call.attempts, run.outcome
        assert fleet.running == 0
        assert not run.call.busy
        assert fleet.clock.pending == 0
        assert limit is None or run.took <= limit
        hedges = sum(attempt.is_hedge for attempt in attempts)
        assert len(attempts) <= most
        for faults in faults_by_host(attempts).values():
            for position, fault in enumerate(faults):
                after = len(faults) - position - 1
                says_nothing = fault in (None, Fault.OURS) and is_hedged
                assert says_nothing or fault is None or after <= RULES[fault].same_host
        for response in fleet.made:
            assert response is outcome or response.was_closed  # type: ignore[attr-defined]
        good = isinstance(outcome, httpx.Response) and outcome.status_code == 200
        assert good == (run.call.answered_by is not None)
        paid = Counter(event.kind for event in run.told)["budget_spent"] + hedges
        spent = CAPACITY - budget.tokens
        assert (len(attempts) - 1) * THROTTLE_COST - good <= spent <= paid * COST
        if not good and isinstance(outcome, ServiceError | httpx.Response):
            last = (
                outcome.extensions[ATTEMPT].fault if isinstance(outcome, httpx.Response) else None
            )
            real = {a.fault for a in attempts} - ELSEWHERE - {None}
            if last in ELSEWHERE and not is_hedged:
                assert not real
            if isinstance(outcome, httpx.Response):
                assert outcome not in outcome.extensions[EARLIER]

    asyncio.run(check())
