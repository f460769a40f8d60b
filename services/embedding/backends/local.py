"""The model that runs in this process, or in workers of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from services.embedding.backends.protocol import CANARY, BackendFacts, Prepared
from services.embedding.options import Item, Reading
from services.embedding.outcome import Embedded, Outcome
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.local_embeddings import (
    EmbeddingBatch,
    InvalidTextError,
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    LocalEmbeddingPool,
    NonFiniteVectorError,
    OutOfMemoryError,
    TokenBatch,
    Truncation,
)
from shared.infrastructure.local_embeddings.devices import usable_cpus
from shared.infrastructure.resilience import (
    MONOTONIC,
    PLAIN_CALL,
    Clock,
    HealthConfig,
    HealthLayer,
    HealthMonitor,
    HealthStatus,
    Send,
    stack,
)

# Errors that a text is to blame for, not the model.
_TEXT_FAULTS = (InvalidTextError, NonFiniteVectorError, OutOfMemoryError)

# More would wait for each other's turn of the interpreter.
_MOST_WORKERS = 4
_NVIDIA = Path("/dev/nvidiactl")

# Token ids that are read on the event loop, which takes some 40 nanoseconds each.
_IDS_NOW = 1024


class LocalBackend:
    """A local model, which has breaker and bulkhead of its own, under a health monitor.

    An item is prepared by tokenizing it, so that its tokens are counted exactly, and items of the
    same tokens are known to be the same. The vectors that come of a batch are rows of one array:
    who keeps one for long copies it.

    Args:
        model: The model, or a pool; loaded by `start`, unloaded by `stop`.
        health: How often to check it, and what counts as unhealthy.
        clock: Source of monotonic time.
    """

    def __init__(
        self,
        model: LocalEmbeddingModel,
        *,
        health: HealthConfig | None = None,
        clock: Clock = MONOTONIC,
    ) -> None:
        self._model = model
        self._facts: BackendFacts | None = None
        self._monitor = HealthMonitor(model.config.model_name, self._canary, health, clock=clock)
        self._send: Send[TokenBatch, EmbeddingBatch] = stack(
            self._run, HealthLayer(self._monitor, clock=clock), semantics=PLAIN_CALL
        )

    @property
    def facts(self) -> BackendFacts:
        if self._facts is None:
            raise RuntimeError("the backend has not been started")
        return self._facts

    @property
    def is_healthy(self) -> bool:
        return self._monitor.status is not HealthStatus.UNHEALTHY

    async def start(self) -> None:
        await self._model.load()
        self._facts = _facts_of(self._model)
        await self._canary()
        self._monitor.start()

    async def stop(self) -> None:
        await self._monitor.stop()
        await self._model.unload()

    def prepare_now(
        self, items: Sequence[Item], reading: Reading
    ) -> Sequence[Prepared | Exception] | None:
        if not _all_texts(items):
            if any(isinstance(item, str) for item in items) or sum(map(len, items)) > _IDS_NOW:
                return None
            return self._ids(items, reading)
        try:
            tokens = self._model.tokenize_now(
                items, prompt=reading.prompt, truncation=reading.truncation
            )
        except InvalidTextError:
            return None  # `prepare` tells which
        return None if tokens is None else [_prepared(one) for one in tokens.split()]

    async def prepare(
        self, items: Sequence[Item], reading: Reading
    ) -> Sequence[Prepared | Exception]:
        texts = [item for item in items if isinstance(item, str)]
        rows = [item for item in items if not isinstance(item, str)]
        ids = iter(await asyncio.to_thread(self._ids, rows, reading) if rows else ())
        tokens = iter(
            await self._model.tokenize_each(
                texts, prompt=reading.prompt, truncation=reading.truncation
            )
            if texts
            else ()
        )
        return [_prepared(next(tokens)) if isinstance(item, str) else next(ids) for item in items]

    def token_ids(self, prepared: Prepared) -> NDArray[np.int32]:
        return cast("TokenBatch", prepared.payload).ids

    async def embed(self, batch: Sequence[Prepared]) -> Sequence[Outcome]:
        tokens = TokenBatch.joined([cast("TokenBatch", item.payload) for item in batch])
        embedded = await self._send(tokens)
        failures = embedded.failures
        facts = zip(embedded.vectors, embedded.token_counts, embedded.truncated, strict=True)
        return [failures.get(row) or Embedded(*fact) for row, fact in enumerate(facts)]

    async def check_health(self) -> None:
        await self._monitor.check()

    def snapshot(self) -> dict[str, Any]:
        info = self._model.get_info()
        return {
            "circuit_breaker": {"enabled": True, **info["circuit_breaker"]},
            "rate_limiter": {"enabled": False},
            "bulkhead": {"enabled": True, **info["bulkhead"]},
            "health": self._monitor.snapshot(),
            "memory": info["memory"],
            **({"processes": info["processes"]} if "processes" in info else {}),
        }

    def _ids(self, items: Sequence[Item], reading: Reading) -> list[Prepared | Exception]:
        prepared: list[Prepared | Exception] = []
        for item in items:
            try:
                row = cast("tuple[int, ...]", item)
                tokens = self._model.read_tokens([row], truncation=reading.truncation)
            except InvalidTextError as exc:
                prepared.append(exc)
            else:
                prepared.append(_prepared(tokens))
        return prepared

    async def _canary(self) -> None:
        batch = await self._run(await self._model.tokenize([CANARY]))
        # This text is well: whatever goes wrong with it, the model is to blame.
        if error := batch.error():
            raise error

    async def _run(self, tokens: TokenBatch) -> EmbeddingBatch:
        batch = await self._model.embed_tokens(tokens)
        failed = batch.failures
        # That no text at all could be embedded is evidence against the model.
        if len(failed) == len(batch) and not isinstance(failed[0], _TEXT_FAULTS):
            raise failed[0]
        return batch


def local_config(settings: EmbeddingSettings) -> LocalEmbeddingConfig:
    """Return the local model that settings describe."""
    config = LocalEmbeddingConfig(
        model_name=settings.model_name,
        backend=settings.backend,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        max_batch_tokens=settings.max_batch_tokens,
        model_root=settings.model_root,
        manifest=settings.manifest,
        cache_dir=settings.cache_dir,
    )
    # On a GPU, which tokens keep busy, rows are bounded only if somebody wants it.
    if "batch_size" in settings.model_fields_set:
        config = config.model_copy(update={"batch_size": settings.batch_size})
    return config


def local_backend(settings: EmbeddingSettings) -> LocalBackend:
    """Return the local model that settings describe.

    On a CPU, unless they say otherwise, it has several workers of few threads: for short texts two
    passes beside each other are a fifth faster than one on two threads.
    """
    config = local_config(settings)
    workers = settings.workers or _usual_workers(settings)
    if workers is None:
        return LocalBackend(LocalEmbeddingModel(config))
    return LocalBackend(LocalEmbeddingPool(config, workers, isolation=settings.isolation))


def _usual_workers(settings: EmbeddingSettings) -> int | None:
    """Return how many passes at a time suit this machine; None leaves it to the model."""
    in_processes = settings.isolation == "process"  # where each has a whole copy of the model
    if settings.device.startswith("cuda") or (settings.device == "auto" and _NVIDIA.exists()):
        return 1 if in_processes else None
    most = 2 if in_processes else _MOST_WORKERS
    return max(1, min(most, usable_cpus() // (settings.threads or 1)))


def _facts_of(model: LocalEmbeddingModel) -> BackendFacts:
    info = model.get_info()
    return BackendFacts(
        model_name=info["model_name"],
        fingerprint=info["fingerprint"],
        dimension=info["embedding_dimension"],
        max_length=info["max_length"],
        truncation=Truncation.START if info["truncation_side"] == "left" else Truncation.END,
        prompts=info["prompts"],
        default_prompt=info["default_prompt"],
        batch_invariant=info["batch_invariant"],
        packed=info["packed"],
        concurrency=info["workers"],
        max_rows=info["batch_size"],
        max_tokens=info["max_batch_tokens"],
        details=info,
    )


def _all_texts(items: Sequence[Item]) -> TypeGuard[Sequence[str]]:
    return all(isinstance(item, str) for item in items)


def _prepared(tokens: TokenBatch | InvalidTextError) -> Prepared | Exception:
    """Return an item of one text; what decides its outcome is its identity."""
    if isinstance(tokens, InvalidTextError):
        return tokens
    facts = b"%d %d " % (tokens.truncated[0], tokens.prompt_tokens)
    ids = tokens.ids
    return Prepared(len(ids), tokens, facts + ids.tobytes(), tokens.prompt_tokens)
