"""The part of structured fields (RFC 9651) that signatures and digests are written in.

Dictionaries of items and inner lists; an item is an integer, a string, a token, a byte sequence or
a boolean. A name that comes twice is an error here: two readers could take different ones.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Token(str):
    """A word without quotes."""

    __slots__ = ()


Item = int | str | bytes
"""A token is a `Token`, a boolean a bool."""


class Member(NamedTuple):
    """A member of a dictionary: an item or an inner list of them, and its parameters."""

    value: Item | tuple[Item, ...]
    parameters: Mapping[str, Item]


class FieldSyntaxError(ValueError):
    """A field is not what it should be."""


_KEY = re.compile(r"[a-z*][a-z0-9_\-.*]*")
_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_INTEGER = re.compile(r"(-?[0-9]{1,15})(?![0-9.])")
_BYTES = re.compile(r":([A-Za-z0-9+/=]*):")
_BOOLEAN = re.compile(r"\?([01])")
_TOKEN = re.compile(r"([A-Za-z*][A-Za-z0-9!#$%&'*+\-.^_`|~:/]*)")
_ESCAPED = re.compile(r"\\(.)")
_COMMA = re.compile(r"[ \t]*,[ \t]*")
_SPACES = re.compile(r" *")


def parse_dictionary(text: str) -> dict[str, Member]:
    """Return the members of a dictionary, in their order.

    Raises:
        FieldSyntaxError: It is none.
    """
    text = text.strip(" ")
    reader = _Reader(text)
    members: dict[str, Member] = {}
    while text:
        key = reader.key()
        if key in members:
            raise FieldSyntaxError("a name comes twice in a dictionary")
        value = reader.value() if reader.skip("=") else True
        members[key] = Member(value, reader.parameters())
        if reader.is_at_end:
            break
        reader.take(_COMMA)
    return members


def serialize_item(item: Item) -> str:
    """Return an item as it stands in a field.

    Raises:
        FieldSyntaxError: It is a text with characters that no string may have.
    """
    if isinstance(item, bool):
        return f"?{item:d}"
    if isinstance(item, bytes):
        return f":{b64encode(item).decode('ascii')}:"
    if isinstance(item, (int, Token)):
        return str(item)
    if not (item.isascii() and item.isprintable()):
        raise FieldSyntaxError("a text has characters other than printable ASCII")
    escaped = item.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def serialize_list(items: Sequence[Item], parameters: Mapping[str, Item]) -> str:
    """Return an inner list as it stands in a field.

    Raises:
        FieldSyntaxError: A text in it has characters that no string may have.
    """
    inside = " ".join(map(serialize_item, items))
    after = (
        f";{key}" if value is True else f";{key}={serialize_item(value)}"
        for key, value in parameters.items()
    )
    return f"({inside}){''.join(after)}"


class _Reader:
    """Reads a field from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._text)

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found:
            self._at = found.end()
        return found

    def take(self, pattern: re.Pattern[str]) -> str:
        found = self.match(pattern)
        if not found:
            raise FieldSyntaxError("not a structured field")
        return found[0]

    def skip(self, mark: str) -> bool:
        found = self._text.startswith(mark, self._at)
        self._at += len(mark) * found
        return found

    def key(self) -> str:
        return self.take(_KEY)

    def value(self) -> Item | tuple[Item, ...]:
        if not self.skip("("):
            return self.item()
        items: list[Item] = []
        self.take(_SPACES)
        while not self.skip(")"):
            items.append(self.item())
            # Nor has an item parameters, as in `"x";sf`: nothing that we read has any.
            if not self.take(_SPACES) and not self._text.startswith(")", self._at):
                raise FieldSyntaxError("two items of a list stand together")
        return tuple(items)

    def item(self) -> Item:
        if found := self.match(_STRING):
            return _ESCAPED.sub(r"\1", found[1])
        if found := self.match(_INTEGER):
            return int(found[1])
        if found := self.match(_BYTES):
            try:
                return b64decode(found[1], validate=True)
            except binascii.Error:
                raise FieldSyntaxError("a byte sequence is not base64") from None
        if found := self.match(_BOOLEAN):
            return found[1] == "1"
        return Token(self.take(_TOKEN))

    def parameters(self) -> dict[str, Item]:
        found: dict[str, Item] = {}
        while self.skip(";"):
            self.take(_SPACES)
            key = self.key()
            if key in found:
                raise FieldSyntaxError("a parameter comes twice")
            found[key] = self.item() if self.skip("=") else True
        return found
