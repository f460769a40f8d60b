"""Forming a batch: jobs of nearly one length, since what costs time is padding."""

from __future__ import annotations

from collections.abc import Iterable

from services.embedding.scheduling.job import Job, Load


class Batch:
    """Jobs that are given to the model together.

    Args:
        head: Whose turn it is; it is in the batch whatever its length.
        max_rows: Jobs at most.
        max_waste: How many times the attention of its jobs a padded batch may cost, as
            rows * longest^2 / sum(length^2).
        packed: Whether nothing is padded.

    Attributes:
        jobs: The jobs, the head first.
        closed_by: What kept further jobs out: `rows`, `tokens`, `waste`, `oversize` (the head alone
            exceeds the budget) or `empty` (no other job fitted in by its kind, or waited).
        began: When it was given to the model.
        expected: Seconds it is expected to take.
        backlogged: Whether the model had no slot left for jobs that went on waiting.
        failed: Whether it came to nothing, so that its time says nothing either.
    """

    __slots__ = (
        *("backlogged", "began", "closed_by", "expected", "failed", "jobs", "load", "longest"),
        *("max_rows", "max_waste", "packed"),
    )

    def __init__(self, head: Job, *, max_rows: int, max_waste: float, packed: bool) -> None:
        self.jobs = [head]
        self.longest = head.tokens
        self.load = Load()
        self.load.add(head.tokens)
        self.max_rows = max_rows
        self.max_waste = max_waste
        self.packed = packed
        self.closed_by = "empty"
        self.began = 0.0
        self.expected = 0.0
        self.backlogged = False
        self.failed = False

    @property
    def cost(self) -> tuple[float, float]:
        """Tokens the model reads and the sum of their squares, padding included."""
        if self.packed:
            return self.load.tokens, self.load.squares
        tokens = self.load.rows * self.longest
        return tokens, tokens * self.longest

    def grow(self, candidates: Iterable[Job], max_tokens: float) -> None:
        """Add the jobs nearest in length to the head while all limits hold.

        Packed jobs need not be alike: they are added as they come.

        Args:
            candidates: Jobs of the head's group, in their order.
            max_tokens: Tokens of the batch at most, padding included.
        """
        head = self.jobs[0].tokens
        if head > max_tokens:
            self.closed_by = "oversize"
            return
        if self.packed:
            self._pack(candidates, max_tokens)
            return
        # Sorting is stable: among those of one length, the first in line stays first.
        for job in sorted(candidates, key=lambda job: abs(job.tokens - head)):
            if len(self.jobs) >= self.max_rows:
                self.closed_by = "rows"
                return
            reason = self._misfit(job.tokens, max_tokens)
            if not reason:
                self._add(job)
                continue
            self.closed_by = reason
            if reason == "tokens" and job.tokens <= self.longest:
                return  # there is no room for one more, however short

    def _misfit(self, tokens: int, max_tokens: float) -> str:
        rows = len(self.jobs) + 1
        longest = max(self.longest, tokens)
        if rows * longest > max_tokens:
            return "tokens"
        squares = self.load.squares + tokens * tokens
        return "waste" if rows * longest * longest > self.max_waste * squares else ""

    def _pack(self, candidates: Iterable[Job], max_tokens: float) -> None:
        for job in candidates:
            if len(self.jobs) >= self.max_rows:
                self.closed_by = "rows"
                return
            if self.load.tokens + job.tokens > max_tokens:
                self.closed_by = "tokens"
                return
            self._add(job)

    def _add(self, job: Job) -> None:
        self.jobs.append(job)
        self.load.add(job.tokens)
        self.longest = max(self.longest, job.tokens)
