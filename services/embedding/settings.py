"""Settings of the embedding service and of its process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AnyHttpUrl, Field, SecretStr, field_validator

from shared.infrastructure.local_embeddings import ModelBackend
from shared.infrastructure.settings import EnvSettings

PREFIX = "EMBEDDING_"


class EmbeddingSettings(EnvSettings, frozen=True, protected_namespaces=()):
    """What to embed with, how much at once, and where the process listens.

    Each field is also an environment variable, `EMBEDDING_` before its upper-case name.

    Attributes:
        model_name: Hub name, directory, or `package:NAME`; with `remote_url`, the model's name
            there; `sentence-transformers/all-MiniLM-L6-v2`.
        model_aliases: Further names under which clients may ask for the model; none.
        backend: Library that runs a local model; `onnx`, the lightest to load.
        device: `auto` (default), `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads of one forward pass; None (default) is all that may be used.
        batch_size: Texts given to the model at once at most; 32; at least 1.
        max_batch_characters: Characters given to the model at once at most, so that a batch of
            long texts does not hold up short ones; 16384; at least 1. A longer text goes alone.
        max_queue: Texts that may wait for the model before new calls are refused; 2048; at least 1.
        max_text_length: Characters of a text that are read; 8192; at least 1.
        cache_size: Entries of the cache; 1000; 0 switches it off.
        cache_dir: Directory of what `calibrate` measured; None (default) is ~/.cache/morgan-sdk.
        remote_url: Base URL of an OpenAI-compatible server that embeds instead of a local model,
            such as `https://api.openai.com/v1`; None (default) embeds here.
        remote_api_key: Bearer token for that server; None.
        failure_threshold: Failures in a row after which that server is left alone for a while; 5;
            at least 1.
        max_connections: Connections to that server; 50; at least 1.
        requests_per_second: Rate of requests to that server; 5; above 0.
        burst_size: Requests to that server that may go at once after a quiet time; 10; at least 1.
        host: Address the process listens on; `127.0.0.1`. Any that is not loopback needs
            `api_keys`.
        port: Port it listens on; 8000; 0 takes a free one.
        api_keys: Bearer tokens the process accepts, separated by commas; none (default) asks for
            none.
        max_body_bytes: Size of a request body in bytes; 32 MiB; at least 1.
        drain_delay: Seconds the process goes on serving after SIGTERM while it says that it is not
            ready, so that balancers notice; 5; at least 0. SIGINT skips it.
        drain_timeout: Seconds given to requests in flight after that; 30; at least 0.
    """

    model_name: str = Field(default="sentence-transformers/all-MiniLM-L6-v2", min_length=1)
    model_aliases: tuple[str, ...] = ()
    backend: ModelBackend = ModelBackend.ONNX
    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    max_batch_characters: int = Field(default=16_384, ge=1)
    max_queue: int = Field(default=2048, ge=1)
    max_text_length: int = Field(default=8192, ge=1)
    cache_size: int = Field(default=1000, ge=0)
    cache_dir: Path | None = None
    remote_url: AnyHttpUrl | None = None
    remote_api_key: SecretStr | None = None
    failure_threshold: int = Field(default=5, ge=1)
    max_connections: int = Field(default=50, ge=1)
    requests_per_second: float = Field(default=5.0, gt=0)
    burst_size: int = Field(default=10, ge=1)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    api_keys: tuple[Annotated[SecretStr, Field(min_length=1)], ...] = ()
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1)
    drain_delay: float = Field(default=5.0, ge=0)
    drain_timeout: int = Field(default=30, ge=0)

    @classmethod
    def from_env(cls, prefix: str = PREFIX, environ: Mapping[str, str] | None = None) -> Self:
        return super().from_env(prefix, environ)

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Self:
        """Return settings from the environment, and from options of a command line before it."""
        given = {PREFIX + name.upper(): str(value) for name, value in options.items()}
        return cls.from_env(environ={**os.environ, **given})

    @field_validator("model_aliases", "api_keys", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return [item.strip() for item in value.split(",") if item.strip()]
