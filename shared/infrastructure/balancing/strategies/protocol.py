"""What a strategy sees, and what it has to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from shared.infrastructure.balancing.call import RequestFacts


class Candidate(Protocol):
    """A host, as a strategy sees it.

    Attributes:
        name: Its name.
        weight: Its share of the work relative to the others, as it is now: less in slow start.
        load: Calls it has been given and that are not over, relative to its weight.
        in_flight: Calls it has been given and that are not over.
        priority: Its tier; the lowest number is asked first.
        turn: Virtual time of its next turn; the round robin's own.
    """

    name: str
    weight: float
    load: float
    in_flight: int
    priority: int
    turn: float

    def latency(self, model: str | None, now: float) -> float | None:
        """Return the peak-sensitive mean of its seconds to an answer, or to a first token."""
        ...


C = TypeVar("C", bound=Candidate)


@dataclass(frozen=True, slots=True)
class PickContext:
    """What a pick may depend on beside the candidates.

    Attributes:
        facts: What is asked.
        now: Instant of the pick, on the pool's clock.
    """

    facts: RequestFacts
    now: float


class BalancingStrategy(Protocol):
    """Picks a host; one of your own goes wherever a `LoadBalancingStrategy` does."""

    def pick(self, candidates: Sequence[C], context: PickContext, /) -> C:
        """Return one of `candidates`, of which there is at least one.

        Candidates are the same tuple object as long as nothing speaks against any host: what is
        derived from them can be kept by identity. A pick must not take long: it holds up the loop.
        """
        ...
