"""Read settings from the environment; a `settings.py` is the only place that may."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError

from shared.infrastructure.resilience import ConfigurationError


class EnvSettings(BaseModel, frozen=True, extra="forbid"):
    """Base of a service's settings: each field is also an environment variable.

    The field `burst_size` of settings with the prefix `LLM_` is `LLM_BURST_SIZE`. A list or an
    object is written as JSON.
    """

    @classmethod
    def from_env(cls, prefix: str, environ: Mapping[str, str] | None = None) -> Self:
        """Return settings from the variables that begin with `prefix`, defaults for the rest.

        Raises:
            ConfigurationError: A variable is unknown or its value is wrong; the value itself is
                never part of the message, for it may be a secret.
        """
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


def _describe(prefix: str, *, loc: tuple[int | str, ...], msg: str, **_: object) -> str:
    field, *inside = map(str, loc or ("",))
    return f"{'.'.join([prefix + field.upper(), *inside])}: {msg}"
