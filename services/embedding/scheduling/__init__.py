"""Lanes, batches and admission between callers and a backend."""

from __future__ import annotations

from services.embedding.scheduling.config import SchedulerConfig
from services.embedding.scheduling.cost_model import CostModel
from services.embedding.scheduling.job import Job
from services.embedding.scheduling.scheduler import Scheduler

__all__ = ["CostModel", "Job", "Scheduler", "SchedulerConfig"]
