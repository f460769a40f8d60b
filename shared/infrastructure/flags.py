"""A flag for every setting that is no secret, with the help of the settings' own docstrings."""

from __future__ import annotations

import argparse
import enum
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args, get_origin

from pydantic import AnyUrl, BaseModel, SecretStr

from shared.infrastructure.settings import EnvSettings

Settings = TypeVar("Settings", bound=EnvSettings)


class Parser(Protocol):
    """A parser, or a group of its flags."""

    def add_argument(self, *names: str, **options: Any) -> Any:
        """Take one more flag."""
        ...


_METAVARS = ((int, "N"), (float, "X"), (Path, "PATH"), (AnyUrl, "URL"), (tuple, "A,B"))


class Flags(Generic[Settings]):
    """The flags of some settings.

    Args:
        settings: Their class; its docstrings, and those of its bases, are the help.
        short: By setting, what its flag is called instead.
    """

    def __init__(self, settings: type[Settings], short: Mapping[str, str] | None = None) -> None:
        self._settings = settings
        self._fields = settings.model_fields
        self._short = short or {}

    def add(self, parser: Parser, names: Iterable[str] | None = None) -> None:
        """Add the flags of some settings, of all that are no secrets by default."""
        told = _described(self._settings)
        for name in self.names if names is None else names:
            kinds = list(_kinds(self._fields[name].annotation))
            choices = [str(value) for kind in kinds for value in _choices(kind)]
            parser.add_argument(
                self.flag(name),
                dest=name,
                default=argparse.SUPPRESS,
                choices=choices or None,
                metavar=None if choices else _metavar(kinds),
                help=told.get(name, "").replace("%", "%%"),
            )

    def settings_of(self, options: argparse.Namespace) -> Settings:
        """Return the settings of the environment, with the flags that were given before them.

        Raises:
            ConfigurationError: One is wrong.
        """
        return self._settings.from_options(self._given(options))

    def name_flags(self, message: str, options: argparse.Namespace) -> str:
        """Return a message that calls settings given as flags by their flags."""
        for name in self._given(options):
            variable = self._settings.PREFIX + name.upper()
            message = message.replace(f"{variable}:", f"{self.flag(name)}:")
        return message

    def flag(self, name: str) -> str:
        """Return the flag of a setting."""
        return "--" + self._short.get(name, name).replace("_", "-")

    @property
    def names(self) -> list[str]:
        """The settings that have a flag."""
        secrets = self.secrets
        return [name for name in self._fields if name not in secrets]

    @property
    def secrets(self) -> set[str]:
        """The settings that have none, for every user of a machine sees command lines."""
        return {
            name
            for name, field in self._fields.items()
            if SecretStr in set(_kinds(field.annotation))
        }

    def _given(self, options: argparse.Namespace) -> dict[str, Any]:
        return {name: value for name, value in vars(options).items() if name in self._fields}


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation, or a model, is made of; a literal is one."""
    inside = get_args(annotation)
    if get_origin(annotation) is Literal or not inside:
        yield annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            for field in annotation.model_fields.values():
                yield from _kinds(field.annotation)
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


def _described(settings: type[EnvSettings]) -> dict[str, str]:
    """Return what the docstrings of some settings, and of their bases, say of each."""
    told: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        doc = inspect.cleandoc(vars(kind).get("__doc__") or "")
        attributes = doc.partition("Attributes:\n")[2]
        found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, flags=re.MULTILINE)
        told |= {name: " ".join(text.replace("`", "").split()) for name, text in found}
    return told
