"""What a scheduler may be told."""

from __future__ import annotations

from pydantic import BaseModel, Field

from services.embedding.options import Lane


class SchedulerConfig(BaseModel, frozen=True, extra="forbid"):
    """Bounds of the queue and shape of the batches.

    Attributes:
        max_queue_seconds: Seconds of work that may be ahead of a call of the lanes `interactive`
            and `default` before it is refused; 4; above 0.
        max_bulk_seconds: The same for the lane `bulk`; 60; above 0.
        interactive_weight: Share of the model for the lane `interactive`; 8; above 0.
        default_weight: The same for `default`; 4.
        bulk_weight: The same for `bulk`; 1.
        patience: Seconds after which the lane of a waiting job of `interactive` or `default` is put
            before its turn; 2; above 0.
        bulk_patience: The same for `bulk`; 10.
        fixed_share: Share of a batch's time that may go into what every batch costs; batches grow
            until it is that small; 0.05; above 0, below 1.
        max_waste: Times the attention of its items that a padded batch may cost; 1.5; at least 1.
        max_beside_seconds: Seconds that a batch may take above its fixed part while interactive
            jobs wait, or one came within the last second; 0.05; above 0.
    """

    max_queue_seconds: float = Field(default=4.0, gt=0)
    max_bulk_seconds: float = Field(default=60.0, gt=0)
    interactive_weight: float = Field(default=8.0, gt=0)
    default_weight: float = Field(default=4.0, gt=0)
    bulk_weight: float = Field(default=1.0, gt=0)
    patience: float = Field(default=2.0, gt=0)
    bulk_patience: float = Field(default=10.0, gt=0)
    fixed_share: float = Field(default=0.05, gt=0, lt=1)
    max_waste: float = Field(default=1.5, ge=1)
    max_beside_seconds: float = Field(default=0.05, gt=0)

    @property
    def weights(self) -> dict[Lane, float]:
        """Share of each lane, the most urgent first."""
        return {
            Lane.INTERACTIVE: self.interactive_weight,
            Lane.DEFAULT: self.default_weight,
            Lane.BULK: self.bulk_weight,
        }

    @property
    def patiences(self) -> dict[Lane, float]:
        """Seconds after which a job of each lane has waited too long."""
        return {
            Lane.INTERACTIVE: self.patience,
            Lane.DEFAULT: self.patience,
            Lane.BULK: self.bulk_patience,
        }

    def max_seconds(self, lane: Lane) -> float:
        """Return the seconds of work that may be ahead of a call of a lane."""
        return self.max_bulk_seconds if lane is Lane.BULK else self.max_queue_seconds
