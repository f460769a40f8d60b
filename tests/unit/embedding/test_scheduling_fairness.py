"""Tenants that keep a model busy together, and how much each of them gets."""

import random
from collections import Counter

import pytest
from scheduling_fakes import Bench

from services.embedding.backends.protocol import Prepared
from services.embedding.options import Lane
from services.embedding.outcome import Outcome
from services.embedding.scheduling import Job

TENANTS = 20
SECONDS = 20.0  # many times the patience of a job


class Callers:
    """Callers of a tenant that ask for the next text when they have the last one."""

    def __init__(self, bench: Bench, tenant: str, lengths: range, served: Counter[str]) -> None:
        self.bench = bench
        self.tenant = tenant
        self.lengths = lengths
        self.served = served
        self.random = random.Random(tenant)
        self.until = bench.clock.now() + SECONDS

    def ask(self) -> None:
        tokens = self.random.choice(self.lengths)

        def told(_: Outcome) -> None:
            self.served[self.tenant] += tokens
            if self.bench.clock.now() < self.until:
                self.ask()

        job = Job(Prepared(tokens, None), told, lane=Lane.DEFAULT, tenant=self.tenant)
        self.bench.scheduler.submit([job])


async def served(lengths: range, *, big: int = 0) -> Counter[str]:
    """Return the tokens of every tenant: 20 with 32 callers, and one with two of `big` tokens."""
    counts: Counter[str] = Counter()
    async with Bench(costs=(0.05, 5e-5, 0.0)) as bench:  # batches of 32 rows, or 1024 tokens
        await bench.learn()
        for number in range(TENANTS):
            callers = Callers(bench, str(number), lengths, counts)
            for _ in range(32):
                callers.ask()
        if big:
            callers = Callers(bench, "big", range(big, big + 1), counts)
            for _ in range(2):
                callers.ask()
        await bench.clock.advance(SECONDS)
        return counts.copy()


@pytest.mark.parametrize("lengths", [range(20, 21), range(8, 26)], ids=["equal", "random"])
async def test_equal_tenants_are_served_equally(lengths: range) -> None:
    counts = await served(lengths)
    assert len(counts) == TENANTS
    assert max(counts.values()) < 1.5 * min(counts.values())


@pytest.mark.parametrize("tokens", [400, 1000])
async def test_a_few_long_texts_get_no_more_than_the_share_of_their_tenant(tokens: int) -> None:
    counts = await served(range(12, 30), big=tokens)
    assert counts["big"] / counts.total() == pytest.approx(1 / (TENANTS + 1), rel=0.4)
