"""A flag for every setting that is no secret, with the help of the settings' own docstring."""

from __future__ import annotations

import argparse
import enum
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import AnyUrl, SecretStr

from services.embedding.settings import PREFIX, EmbeddingSettings

_FIELDS = EmbeddingSettings.model_fields
_SHORT = {"model_name": "model"}
_GROUPS = {
    "server": (
        "host",
        "port",
        "model_aliases",
        "reranker",
        "max_items",
        "max_request_tokens",
        "max_body_bytes",
        "header_timeout",
        "body_timeout",
        "drain_delay",
        "drain_timeout",
    ),
    "queue": ("max_queue_seconds", "max_bulk_seconds", "bulk_tokens", "request_timeout"),
    "cache": (
        "cache_size",
        "cache_bytes",
        "cache_policy",
        "cache_ttl",
        "cache_numerics",
        "cache_file",
        "cache_file_bytes",
        "cache_redis_timeout",
    ),
    "remote server": (
        "remote_url",
        "remote_api",
        "remote_max_items",
        "remote_max_tokens",
        "remote_hedging",
        "failure_threshold",
        "max_connections",
        "requests_per_second",
        "burst_size",
    ),
    "model": (
        "model_name",
        "backend",
        "device",
        "dtype",
        "threads",
        "workers",
        "isolation",
        "batch_size",
        "max_batch_tokens",
        "max_text_length",
        "model_root",
        "manifest",
        "cache_dir",
    ),
}
_METAVARS = ((int, "N"), (float, "X"), (Path, "PATH"), (AnyUrl, "URL"), (tuple, "A,B"))


def add_flags(parser: argparse.ArgumentParser, *groups: str) -> None:
    """Add the flags of some groups of settings: model, cache, remote server, queue, server."""
    told = _described()
    for group in groups:
        flags = parser.add_argument_group(group)
        for name in _GROUPS[group]:
            kinds = list(_kinds(_FIELDS[name].annotation))
            choices = [str(value) for kind in kinds for value in _choices(kind)]
            flags.add_argument(
                flag(name),
                dest=name,
                default=argparse.SUPPRESS,
                choices=choices or None,
                metavar=None if choices else _metavar(kinds),
                help=told.get(name, "").replace("%", "%%"),
            )


def settings_of(options: argparse.Namespace) -> EmbeddingSettings:
    """Return the settings of the environment, with the flags that were given before them.

    Raises:
        ConfigurationError: One is wrong.
    """
    return EmbeddingSettings.from_options(_given(options))


def name_flags(message: str, options: argparse.Namespace) -> str:
    """Return a message that calls settings given as flags by their flags."""
    for name in _given(options):
        message = message.replace(PREFIX + name.upper() + ":", f"{flag(name)}:")
    return message


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return "--" + _SHORT.get(name, name).replace("_", "-")


def flagged() -> set[str]:
    """Return the settings that have a flag."""
    return {name for names in _GROUPS.values() for name in names}


def secrets() -> set[str]:
    """Return the settings that have none, for every user of a machine sees command lines."""
    return {name for name, field in _FIELDS.items() if SecretStr in set(_kinds(field.annotation))}


def _given(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name in _FIELDS}


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation is made of; a literal is one."""
    inside = get_args(annotation)
    if get_origin(annotation) is Literal or not inside:
        yield annotation
        return
    if isinstance(get_origin(annotation), type):
        yield get_origin(annotation)
    for part in inside:
        yield from _kinds(part)


def _choices(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) is Literal:
        return get_args(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return tuple(member.value for member in kind)
    return ()


def _metavar(kinds: list[Any]) -> str:
    found = (
        metavar
        for kind, metavar in _METAVARS
        if any(isinstance(each, type) and issubclass(each, kind) for each in kinds)
    )
    return next(found, "NAME")


def _described() -> dict[str, str]:
    """Return what the docstring of the settings says of each."""
    attributes = (inspect.getdoc(EmbeddingSettings) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, flags=re.MULTILINE)
    return {name: " ".join(text.replace("`", "").split()) for name, text in found}
