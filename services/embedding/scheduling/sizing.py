"""How large a batch is worth being, and how long what waits will take."""

from __future__ import annotations

from services.embedding.backends.protocol import BackendFacts
from services.embedding.scheduling.batches import Batch
from services.embedding.scheduling.config import SchedulerConfig
from services.embedding.scheduling.cost_model import CostModel
from services.embedding.scheduling.job import Load

# Share of a backend's largest batch that a batch may always have: were a misjudged model to make
# them tiny, it would see nothing but tiny ones, and never learn better.
_SMALLEST = 0.25
_RECENT = 0.98  # of the weight of earlier jobs, for each further batch
_EFFICIENCIES = (0.1, 2.0)
_FIRST_LENGTH = 64


class Sizing:
    """Turns tokens into seconds and seconds into tokens, by what batches have taken so far.

    Args:
        facts: Of the backend.
        config: Shape of the batches.

    Attributes:
        model: Seconds of a batch.
    """

    def __init__(self, facts: BackendFacts, config: SchedulerConfig) -> None:
        self.facts = facts
        self.model = CostModel()
        self._config = config
        self._recent = Load(1, _FIRST_LENGTH, _FIRST_LENGTH**2)
        # Seconds of work that busy slots have done, of late, and seconds they took.
        self._done = self._took = 0.0

    @property
    def efficiency(self) -> float:
        """Work done in a second by each slot of a busy backend, in seconds of work.

        Below 1, batches are padded, or not as full as they might be.
        """
        if not self._took:
            return 1.0
        lowest, highest = _EFFICIENCIES
        return min(highest, max(lowest, self._done / self._took))

    @property
    def pace(self) -> float:
        """Seconds of work that are done in a second, by all slots together."""
        return self.efficiency * self.facts.concurrency

    def budget(self, length: float, *, brief: bool = False) -> float:
        """Return the tokens of a batch of rows of some length, padding included, at most.

        Args:
            length: Tokens of a row.
            brief: Whether somebody waits who should not wait for long.
        """
        fixed, token, square = self.model.coefficients
        rate = token + square * length
        largest = self.facts.max_tokens
        if rate <= 0:
            return largest
        enough = max(fixed / self._config.fixed_share / rate, _SMALLEST * largest)
        if brief:
            enough = min(enough, self._config.max_beside_seconds / rate)
        return min(enough, largest)

    def filling(self, length: float) -> float:
        """Return the tokens of a batch of such rows that cost as much as the fixed part."""
        fixed, token, square = self.model.coefficients
        rate = token + square * length
        return fixed / rate if rate > 0 else self.facts.max_tokens

    def work(self, load: Load) -> float:
        """Return the seconds some jobs take in batches as full as they may be."""
        if load.tokens <= 0:
            return 0.0
        a, b, c = self.model.coefficients
        budget = self.budget(load.squares / load.tokens)
        batches = max(load.tokens / budget, load.rows / self.facts.max_rows)
        return a * batches + b * load.tokens + c * load.squares

    def typical(self, tokens: float) -> Load:
        """Return a load of so many tokens whose lengths are those of recent jobs."""
        recent = self._recent
        if tokens <= recent.tokens / recent.rows:
            return Load(1, tokens, tokens * tokens)
        share = tokens / recent.tokens
        return Load(share * recent.rows, tokens, share * recent.squares)

    def observe(self, batch: Batch, seconds: float) -> None:
        """Learn from a batch that took `seconds` and was not refused or broken."""
        tokens, squares = batch.cost
        self.model.observe(tokens, squares, seconds)
        recent, load = self._recent, batch.load
        self._recent = Load(
            _RECENT * recent.rows + load.rows,
            _RECENT * recent.tokens + load.tokens,
            _RECENT * recent.squares + load.squares,
        )
        if batch.backlogged:
            self._done = _RECENT * self._done + self.work(load)
            self._took = _RECENT * self._took + seconds
