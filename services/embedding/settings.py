"""Settings of the embedding service and of its process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AnyHttpUrl, Field, SecretStr, field_validator

from shared.infrastructure.local_embeddings import ModelBackend
from shared.infrastructure.local_embeddings.config import Dtype
from shared.infrastructure.settings import Positive, Seconds, ServerSettings

PREFIX = "EMBEDDING_"


class EmbeddingSettings(ServerSettings, frozen=True, protected_namespaces=()):
    """What to embed with, how much at once, and where the process listens.

    Each field is also an environment variable, `EMBEDDING_` before its upper-case name.

    Attributes:
        model_name: Hub name, directory, or `package:NAME`; with `remote_url`, the model's name
            there; `sentence-transformers/all-MiniLM-L6-v2`.
        model_aliases: Further names under which clients may ask for the model; none.
        backend: Library that runs a local model; `onnx`, the lightest to load.
        device: `auto` (default), `cpu`, `cuda` or `cuda:N`.
        dtype: Number format of a local model's arithmetic; `float32`; also `bfloat16`, `float16`
            and `int8`, where the backend has it.
        threads: CPU threads of one forward pass; None (default) is all that may be used.
        workers: Forward passes at the same time over one local model; None (default) is one a
            processor, up to 4, on a CPU (2 if they are processes), and two on a GPU.
        isolation: Whether workers are threads (`thread`, default) or processes (`process`), which
            may crash without harm.
        batch_size: Texts given to the model at once at most; 32; at least 1.
        max_batch_tokens: Tokens given to the model at once at most, padding included; None
            (default) is what it runs fastest with; at least 1. A longer text goes alone.
        max_text_length: Characters of a text that are read; 8192; at least 1.
        model_root: The only folder local models come from; None (default) is no bound.
        manifest: File of SHA-256 checksums that the model's files must have; None.
        reranker: Cross-encoder for `/rerank`, named like `model_name`; None (default) has none.
        max_queue_seconds: Seconds of work that may wait in the lanes `interactive` and `default`
            before new calls are refused; 4; above 0.
        max_bulk_seconds: The same for the lane `bulk`; 60; above 0.
        bulk_tokens: Tokens from which on a call that names no lane is `bulk`; 8192; at least 1.
        request_timeout: Seconds after which a request to the process that names no deadline is
            given up; 60; above 0.
        cache_size: Vectors kept in memory; 1000; 0 keeps none there.
        cache_bytes: Bytes of the vectors kept in memory; 256 MiB; at least 1.
        cache_policy: `lru` (default) drops what was used longest ago, `sieve` also keeps one long
            scan from washing everything out.
        cache_ttl: Seconds after which a vector is computed anew; None (default) is never; above 0.
        cache_numerics: `exact` (default) keeps nothing of a model whose vectors depend on what is
            embedded beside them; `approximate` does.
        cache_file: SQLite file of vectors that outlive the process; None (default) has none.
        cache_file_bytes: Size of that file at most; 1 GiB; at least 1 MiB.
        cache_redis_url: Redis that processes share vectors through; None (default) has none.
        cache_redis_timeout: Seconds that looking for 64 vectors there may take; 0.005; above 0.
        cache_dir: Directory of what `calibrate` measured; None (default) is ~/.cache/morgan-sdk.
        remote_url: Base URL of a server that embeds instead of a local model, such as
            `https://api.openai.com/v1`; None (default) embeds here.
        remote_api: What it speaks: `openai` (default), `tei` or `cohere`.
        remote_api_key: Bearer token for that server; None.
        remote_max_items: Texts in one request to it; None (default) is what its API allows.
        remote_max_tokens: Tokens in one request to it, estimated; None is what its API allows.
        remote_hedging: Share of requests that may be sent a second time because they are late;
            0.05; from 0 to 1.
        failure_threshold: Failures in a row after which that server is left alone for a while; 5;
            at least 1.
        max_connections: Connections to that server; 50; at least 1.
        requests_per_second: Rate of requests to that server; 5; above 0.
        burst_size: Requests to that server that may go at once after a quiet time; 10; at least 1.
        api_keys: Bearer tokens the process accepts, separated by commas; none (default) asks for
            none.
        max_items: Texts in one request; 2048; at least 1.
        max_request_tokens: Tokens in one request; 300000; at least 1.
    """

    PREFIX: ClassVar[str] = PREFIX

    model_name: str = Field(default="sentence-transformers/all-MiniLM-L6-v2", min_length=1)
    model_aliases: tuple[str, ...] = ()
    backend: ModelBackend = ModelBackend.ONNX
    device: str = "auto"
    dtype: Dtype = "float32"
    threads: int | None = Field(default=None, ge=1)
    workers: int | None = Field(default=None, ge=1)
    isolation: Literal["thread", "process"] = "thread"
    batch_size: int = Field(default=32, ge=1)
    max_batch_tokens: int | None = Field(default=None, ge=1)
    max_text_length: int = Field(default=8192, ge=1)
    model_root: Path | None = None
    manifest: Path | None = None
    reranker: str | None = Field(default=None, min_length=1)
    max_queue_seconds: Seconds = 4.0
    max_bulk_seconds: Seconds = 60.0
    bulk_tokens: int = Field(default=8192, ge=1)
    request_timeout: Seconds = 60.0
    cache_size: int = Field(default=1000, ge=0)
    cache_bytes: int = Field(default=256 * 2**20, ge=1)
    cache_policy: Literal["lru", "sieve"] = "lru"
    cache_ttl: Seconds | None = None
    cache_numerics: Literal["exact", "approximate"] = "exact"
    cache_file: Path | None = None
    cache_file_bytes: int = Field(default=2**30, ge=2**20)
    cache_redis_url: SecretStr | None = None
    cache_redis_timeout: Seconds = 0.005
    cache_dir: Path | None = None
    remote_url: AnyHttpUrl | None = None
    remote_api: Literal["openai", "tei", "cohere"] = "openai"
    remote_api_key: SecretStr | None = None
    remote_max_items: int | None = Field(default=None, ge=1)
    remote_max_tokens: int | None = Field(default=None, ge=1)
    remote_hedging: float = Field(default=0.05, ge=0, le=1)
    failure_threshold: int = Field(default=5, ge=1)
    max_connections: int = Field(default=50, ge=1)
    requests_per_second: Positive = 5.0
    burst_size: int = Field(default=10, ge=1)
    api_keys: tuple[Annotated[SecretStr, Field(min_length=1)], ...] = ()
    max_items: int = Field(default=2048, ge=1)
    max_request_tokens: int = Field(default=300_000, ge=1)

    @field_validator("model_aliases", "api_keys", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return [item.strip() for item in value.split(",") if item.strip()]
