"""Wait while memory is short."""

from __future__ import annotations

import asyncio

from shared.infrastructure.local_embeddings.errors import MemoryPressureError
from shared.infrastructure.local_embeddings.memory.governor import MemoryGovernor
from shared.infrastructure.resilience.clock import Clock

# Seconds that bulk work waits for memory, at most and from one look to the next.
_PATIENCE = 60.0
_PAUSE = 0.25


async def wait_for_memory(governor: MemoryGovernor, device: str, clock: Clock) -> None:
    """Wait until bulk work may begin on a device.

    Raises:
        MemoryPressureError: Memory has been short for a minute.
    """
    deadline = clock.now() + _PATIENCE
    while True:
        try:
            return governor.admit_bulk(device=device)
        except MemoryPressureError as exc:
            if clock.now() >= deadline:
                raise
            # Bulk work may be all that there is: then nobody else calls for relief.
            await asyncio.to_thread(governor.check)
            await clock.sleep(exc.retry_after or _PAUSE)
