"""The fields of a JSON body, read by hand: a few tests each, and what is wrong has its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import orjson

from services.embedding.options import Item
from services.embedding.process.big_json import SLICE, TooManyValuesError, loads
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.server import HTTPError

T = TypeVar("T")

_BIGGEST_TOKEN = 2**31 - 1


class Fields:
    """The object that a request's body is, or a part of it is.

    Args:
        values: Its fields.
        settings: Limits.
    """

    def __init__(self, values: Mapping[str, Any], settings: EmbeddingSettings) -> None:
        self._values = values
        self._settings = settings

    @classmethod
    def parse(cls, body: bytes, settings: EmbeddingSettings) -> Fields:
        """Read JSON; of a name that comes twice the last counts.

        Raises:
            HTTPError: It is malformed (400), or has more values than a request may (413).
        """
        limit = settings.max_items + settings.max_request_tokens
        try:
            payload = orjson.loads(body) if len(body) <= SLICE else loads(body, limit)
        except orjson.JSONDecodeError as exc:
            raise HTTPError(400, f"the body is no valid JSON: {exc}", code="invalid_json") from None
        except TooManyValuesError:
            raise HTTPError(413, "the body has too many values", code="too_many_values") from None
        if not isinstance(payload, dict):
            raise HTTPError(400, "the body must be a JSON object", code="invalid_json")
        return cls(cast("dict[str, Any]", payload), settings)

    def only(self, names: frozenset[str]) -> bool:
        """Whether it has no field beside those named."""
        return self._values.keys() <= names

    def has(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return self._values.get(name) is not None

    def inner(self, name: str) -> Fields:
        """Return the object that a field is."""
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise wrong(name, "must be an object")
        return Fields(cast("dict[str, Any]", value), self._settings)

    def without(self, name: str) -> Fields:
        """Return the fields but one."""
        rest = {key: value for key, value in self._values.items() if key != name}
        return Fields(rest, self._settings)

    def string(self, name: str) -> str | None:
        """Return a text; None if it is missing or null."""
        value = self._values.get(name)
        if value is None or isinstance(value, str):
            return value
        raise wrong(name, "must be a string")

    def integer(self, name: str) -> int | None:
        """Return a whole number; None if it is missing or null."""
        value = self._values.get(name)
        if value is None or type(value) is int:
            return value
        raise wrong(name, "must be an integer")

    def timeout(self, name: str) -> float:
        """Return a number of milliseconds above 0 as seconds; the setting's if it is missing."""
        value = self._values.get(name)
        if value is None:
            return self._settings.request_timeout
        if type(value) not in (int, float) or value <= 0:
            raise wrong(name, "must be a number of milliseconds above 0")
        return float(value) / 1000

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false; `default` if it is missing or null."""
        value = self._values.get(name)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        raise wrong(name, "must be true or false")

    def choice(self, name: str, choices: Mapping[str, T], default: T) -> T:
        """Return what a name stands for; `default` if it is missing or null."""
        value = self._values.get(name)
        return default if value is None else chosen(name, value, choices)

    def choices(self, name: str, choices: Mapping[str, T], default: tuple[T, ...]) -> tuple[T, ...]:
        """Return what each name of a list stands for, each once; `default` if it is missing."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, list) or not value:
            raise wrong(name, "must be a list of strings")
        names = cast("list[object]", value)
        return tuple(dict.fromkeys(chosen(name, each, choices) for each in names))

    def required(self, name: str) -> str:
        """Return a text that must be there."""
        value = self.string(name)
        if value is None:
            raise wrong(name, "must be a string")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a text, or several, as a list; it is not empty."""
        value = self._values.get(name)
        if isinstance(value, str):
            return [value]
        texts = self._list(name, value, "a string or a list of strings")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise wrong(f"{name}[{index}]", "must be a string")
        return cast("list[str]", texts)

    def items(self, name: str) -> list[Item]:
        """Return texts, or token ids, as a list; it is not empty."""
        value = self._values.get(name)
        if isinstance(value, str):
            return [value]
        ids = _list_of(int, value)
        if ids is not None:
            # As long as an item may be, not as a request may have items.
            self._bound_tokens(name, len(ids))
            return [_token_ids(name, ids)]
        values = self._list(name, value, "a string, a list of strings, or token ids")
        if isinstance(values[0], list):
            return self._rows(name, values)
        for index, text in enumerate(values):
            if not isinstance(text, str):
                raise wrong(f"{name}[{index}]", "must be a string, as the others")
        return cast("list[Item]", values)

    def _rows(self, name: str, rows: list[Any]) -> list[Item]:
        for index, row in enumerate(rows):
            if not isinstance(row, list) or not row:
                raise wrong(f"{name}[{index}]", "must be a list of token ids, as the others")
        self._bound_tokens(name, sum(map(len, rows)))
        return [_token_ids(f"{name}[{index}]", row) for index, row in enumerate(rows)]

    def _list(self, name: str, value: object, kinds: str) -> list[Any]:
        values = cast("list[object]", value)
        if not isinstance(value, list) or not values:
            raise wrong(name, f"must be {kinds}")
        if len(values) > self._settings.max_items:
            limit = self._settings.max_items
            raise wrong(name, f"has {len(values)} items: send at most {limit}")
        return values

    def _bound_tokens(self, name: str, tokens: int) -> None:
        if tokens > self._settings.max_request_tokens:
            raise too_many_tokens(self._settings.max_request_tokens, name)


def wrong(name: str, message: str) -> HTTPError:
    """Return the error of a field that is not what it must be."""
    return HTTPError(400, f"{name} {message}", param=name)


def chosen(name: str, value: object, choices: Mapping[str, T]) -> T:
    """Return what `value` stands for.

    Raises:
        HTTPError: It is none of the choices.
    """
    if isinstance(value, str) and value in choices:
        return choices[value]
    raise wrong(name, f"must be one of {', '.join(choices)}")


def too_many_tokens(limit: int, param: str | None = None) -> HTTPError:
    """Return the error of a request with more tokens than it may have."""
    return HTTPError(
        413,
        f"a request may have {limit} tokens: send less at once",
        code="too_many_tokens",
        param=param,
    )


def _list_of(kind: type, value: object) -> list[object] | None:
    """Return a list if its first item is of a kind; the others may be of any."""
    if not isinstance(value, list) or not value:
        return None
    items = cast("list[object]", value)
    return items if type(items[0]) is kind else None


def _token_ids(name: str, ids: Sequence[object]) -> tuple[int, ...]:
    if not all(type(token) is int for token in ids):
        raise wrong(name, "must be a list of token ids")
    tokens = cast("tuple[int, ...]", tuple(ids))
    if min(tokens) < 0 or max(tokens) > _BIGGEST_TOKEN:
        raise wrong(name, "has a token id that is none")
    return tokens
