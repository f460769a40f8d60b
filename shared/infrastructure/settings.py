"""Read settings from the environment; a `settings.py` is the only place that may."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import BaseModel, Field, SecretStr, ValidationError

from shared.infrastructure.resilience import ConfigurationError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above 0, such as a rate."""

Seconds = Positive
"""A time limit: finite, for what takes no limit says so by None."""

Pause = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Seconds that may also be none at all."""


class EnvSettings(BaseModel, frozen=True, extra="forbid"):
    """Base of a service's settings: each field is also an environment variable.

    The field `burst_size` of settings with the prefix `LLM_` is `LLM_BURST_SIZE`. A list or an
    object is written as JSON.

    Attributes:
        PREFIX: What the variables of these settings begin with.
    """

    PREFIX: ClassVar[str] = ""

    @classmethod
    def from_env(cls, prefix: str | None = None, environ: Mapping[str, str] | None = None) -> Self:
        """Return settings from the variables that begin with `prefix`, defaults for the rest.

        Args:
            prefix: None (default) is that of the class.
            environ: The variables; None (default) is those of the process.

        Raises:
            ConfigurationError: A variable is unknown or its value is wrong; the value itself is
                never part of the message, for it may be a secret.
        """
        prefix = cls.PREFIX if prefix is None else prefix
        fields = {prefix + name.upper(): name for name in cls.model_fields}
        values: dict[str, Any] = {}
        for variable, text in (os.environ if environ is None else environ).items():
            if variable in fields:
                values[fields[variable]] = cls._parse(fields[variable], variable, text)
            elif variable.startswith(prefix):
                near = difflib.get_close_matches(variable, fields, n=1, cutoff=0.0)[0]
                raise ConfigurationError(f"unknown variable {variable}: did you mean {near}?")
        try:
            return cls(**values)
        except ValidationError as exc:
            problems = exc.errors(include_url=False, include_context=False, include_input=False)
        raise ConfigurationError("; ".join(_describe(prefix, **problem) for problem in problems))

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Self:
        """Return settings from the environment, and from options of a command line before it.

        Raises:
            ConfigurationError: As for `from_env`.
        """
        given = {cls.PREFIX + name.upper(): str(value) for name, value in options.items()}
        return cls.from_env(environ={**os.environ, **given})

    @classmethod
    def _parse(cls, name: str, variable: str, text: str) -> Any:
        annotation = cls.model_fields[name].annotation
        is_union = get_origin(annotation) in {Union, UnionType}
        kinds = get_args(annotation) if is_union else (annotation,)
        if str in kinds or SecretStr in kinds or not text.lstrip().startswith(("[", "{")):
            return text
        try:
            return json.loads(text)
        except ValueError:
            raise ConfigurationError(f"{variable} is not valid JSON") from None


class ServerSettings(EnvSettings, frozen=True):
    """Where a process listens, and how patient it is: what every process has to be told.

    Attributes:
        host: Address the process listens on; `127.0.0.1`. Any that is not loopback needs
            `api_keys`.
        port: Port it listens on; 8000; 0 takes a free one.
        max_body_bytes: Size of a request body in bytes; 32 MiB; at least 1.
        header_timeout: Seconds a client may take to send the head of a request; 10; above 0.
        body_timeout: Seconds it may take to send the body, or to read any of an answer; 30; above
            0.
        drain_delay: Seconds the process goes on serving after SIGTERM while it says that it is not
            ready, so that balancers notice; 5; at least 0. SIGINT skips it.
        drain_timeout: Seconds given to requests and streams in flight after that; 30; at least 0.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    max_body_bytes: int = Field(default=32 * 2**20, ge=1)
    header_timeout: Seconds = 10.0
    body_timeout: Seconds = 30.0
    drain_delay: Pause = 5.0
    drain_timeout: Pause = 30.0


def _describe(prefix: str, *, loc: tuple[int | str, ...], msg: str, **_: object) -> str:
    if not loc:  # it is about several settings, which it names itself
        return msg.removeprefix("Value error, ")
    field, *inside = map(str, loc)
    return f"{'.'.join([prefix + field.upper(), *inside])}: {msg}"
