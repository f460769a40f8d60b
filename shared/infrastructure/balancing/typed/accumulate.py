"""From the pieces of a streamed answer to the whole of it."""

from __future__ import annotations

from typing import Any, cast

from pydantic import ValidationError

from shared.infrastructure.balancing.call import JSONObject
from shared.infrastructure.balancing.dialects.payloads import as_json, as_objects, parts_text
from shared.infrastructure.balancing.errors import InvalidStreamError
from shared.models import ChatCompletionChunk

# Fields that come whole, however often; other texts come in pieces.
_WHOLE = frozenset({"role", "id", "type", "index"})
# Fields of a chunk that a whole answer has in another form, or not at all.
_OF_CHUNKS = frozenset({"object", "choices", "usage", "obfuscation"})
# Objects inside each other that are put together; what is deeper comes whole.
_MAX_DEPTH = 16


class _Text(list[str]):
    """A text in pieces."""


class _Choice:
    """One of the answers, as far as it has come."""

    __slots__ = ("content", "finish_reason", "logprobs", "message", "parts")

    def __init__(self) -> None:
        self.message: JSONObject = {"role": "assistant", "content": None}
        self.content = _Text()
        self.parts: list[JSONObject] = []
        self.finish_reason: str | None = None
        self.logprobs: JSONObject | None = None


class AnswerBuilder:
    """Puts the pieces of a streamed answer together.

    Attributes:
        usage: Tokens it cost, as the latest piece that says so has them; None until one does.
        model: Model that answers, as its host names it.
        is_plain: Whether all that came is the text of one choice, so that a host which is given
            it could go on with it.
    """

    def __init__(self) -> None:
        self.usage: JSONObject | None = None
        self.model: str | None = None
        self.is_plain = True
        self._head: JSONObject = {}
        self._has_head = False
        self._first = _Choice()
        self._choices: dict[int, _Choice] = {}

    @property
    def text(self) -> str:
        """What the model said so far, in the first choice."""
        return "".join(self._first.content)

    @property
    def length(self) -> int:
        """Characters of that."""
        return sum(map(len, self._first.content))

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Take the next piece.

        Raises:
            InvalidStreamError: It is none.
        """
        data = chunk.data
        # Most pieces are a bit of text and nothing else: nothing is built for them.
        text = _only_text(data.get("choices")) if data.get("usage") is None else None
        if text is None:
            self._add_any(chunk)
            return
        self._first.content.append(text)
        if not self._has_head:
            self._begin(data)
            self._choices.setdefault(0, self._first)
            self._has_head = True

    def _add_any(self, chunk: ChatCompletionChunk) -> None:
        try:
            validated, usage = chunk.choices, chunk.usage
        except ValidationError as exc:
            raise InvalidStreamError(
                f"an event is no chunk of a chat answer: {str(chunk.data)[:200]}"
            ) from exc
        if usage is not None:
            self.usage = chunk.data["usage"]
        self._begin(chunk.data)
        pieces = cast("list[JSONObject]", chunk.data.get("choices") or [])
        for index, piece in zip((one.index for one in validated), pieces, strict=True):
            if index not in self._choices:
                self._choices[index] = _Choice() if index else self._first
                self.is_plain = self.is_plain and not index
            self._add_piece(self._choices[index], piece)

    def _begin(self, data: JSONObject) -> None:
        head = self._head
        for key, value in data.items():
            if value and not head.get(key):  # some leave them empty at first
                head[key] = value
        self.model = data.get("model") or self.model

    def _add_piece(self, choice: _Choice, piece: JSONObject) -> None:
        delta = dict(cast("JSONObject", piece.get("delta") or {}))
        content = delta.pop("content", None)
        if isinstance(content, str):
            choice.content.append(content)
        elif content:
            self.is_plain = False
            self._add_parts(choice, as_objects(content))
        if any(value for key, value in delta.items() if key not in {"role", "annotations"}):
            self.is_plain = False
        _merge(choice.message, delta)
        choice.finish_reason = piece.get("finish_reason") or choice.finish_reason
        if logprobs := cast("JSONObject | None", piece.get("logprobs")):
            self.is_plain = False
            choice.logprobs = choice.logprobs or {}
            for key, tokens in logprobs.items():
                if isinstance(tokens, list):
                    choice.logprobs.setdefault(key, []).extend(tokens)

    def _add_parts(self, choice: _Choice, parts: list[JSONObject]) -> None:
        for part in parts:
            kind = part.get("type")
            if kind == "text" and isinstance(part.get("text"), str):
                choice.content.append(part["text"])
            elif kind == "thinking":
                thought = "".join(parts_text(part.get("thinking")))
                _merge(choice.message, {"reasoning_content": thought})
            else:
                choice.parts.append(part)

    def completion(self) -> JSONObject:
        """Return the whole answer as the JSON it would have come as, unless it was streamed."""
        kept = {key: value for key, value in self._head.items() if key not in _OF_CHUNKS}
        answer: JSONObject = {
            **kept,
            "object": "chat.completion",
            "choices": [
                _plain_choice(index, choice)
                for index, choice in sorted((self._choices or {0: self._first}).items())
            ],
        }
        if self.model is not None:
            answer["model"] = self.model
        if self.usage is not None:
            answer["usage"] = self.usage
        return answer


def _only_text(choices: Any) -> str | None:
    """Return the text of a piece of the first choice that holds nothing else; None of any other."""
    if choices.__class__ is not list or len(choices) != 1 or choices[0].__class__ is not dict:
        return None
    choice: JSONObject = choices[0]
    if choice.get("index") != 0 or choice.get("finish_reason") or choice.get("logprobs"):
        return None
    delta: Any = choice.get("delta")
    if delta.__class__ is not dict:
        return None
    text: str | None = None
    for key, value in delta.items():
        if value is None:
            continue
        if key != "content" or value.__class__ is not str:
            return None
        text = value
    return text


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _merge(into: JSONObject, piece: JSONObject, depth: int = 0) -> None:
    for key, given in piece.items():
        # Some hosts send arguments as an object.
        value: object = as_json(given) if key == "arguments" and not _is_text(given) else given
        before = into.get(key)
        if value is None:
            into.setdefault(key, None)
        elif isinstance(value, str) and key not in _WHOLE:
            text = into[key] = before if isinstance(before, _Text) else _Text()
            if key != "name" or value != "".join(text):  # some hosts repeat it in every piece
                text.append(value)
        elif depth < _MAX_DEPTH and isinstance(value, dict):
            inner = into[key] = cast("JSONObject", before) if isinstance(before, dict) else {}
            _merge(inner, cast("JSONObject", value), depth + 1)
        elif depth < _MAX_DEPTH and isinstance(value, list):
            items = into[key] = cast("list[object]", before) if isinstance(before, list) else []
            for item in cast("list[object]", value):
                if isinstance(item, dict):
                    one = cast("JSONObject", item)
                    _merge(_place(items, one, key), one, depth + 1)
                else:
                    items.append(item)
        else:
            into[key] = value


def _place(items: list[Any], piece: JSONObject, key: str) -> JSONObject:
    """Return the item of a list that a piece belongs to; a new one if to none."""
    index, name = piece.get("index"), piece.get("id")
    objects, known = as_objects(items), list[JSONObject]()
    if index is not None:
        known = [item for item in objects if item.get("index") == index][-1:]
        if key == "tool_calls" and known and _is_another(known[0], piece):
            known = []
    elif key == "tool_calls":
        # Hosts that leave the index out send calls one after another.
        known = [item for item in objects[-1:] if name in {None, item.get("id")}]
    if known:
        return known[0]
    place: JSONObject = {"index": len(items)} if key == "tool_calls" else {}
    items.append(place)
    return place


def _is_another(call: JSONObject, piece: JSONObject) -> bool:
    """Say whether a piece begins a call of its own; some hosts give every piece a new id."""
    name, before = piece.get("id"), call.get("id")
    names = [kind.get("name") for kind in as_objects(list(piece.values()))]
    return bool(name and before and name != before and any(names))


def _plain_choice(index: int, choice: _Choice) -> JSONObject:
    message = _plain(choice.message)
    if choice.content:
        message["content"] = "".join(choice.content)
    if choice.parts:
        texts = [{"type": "text", "text": message["content"]}] if choice.content else []
        message["content"] = [*texts, *choice.parts]
    calls: list[JSONObject] | None = message.get("tool_calls")
    if calls:
        calls.sort(key=lambda call: int(call["index"]))
        message["tool_calls"] = [
            {key: value for key, value in call.items() if key != "index"} for call in calls
        ]
    return {
        "index": index,
        "message": message,
        "finish_reason": choice.finish_reason,
        "logprobs": choice.logprobs,
    }


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, _Text):
        return "".join(value)
    if depth > 2 * _MAX_DEPTH:  # it is as it came
        return value
    if isinstance(value, dict):
        return {key: _plain(part, depth + 1) for key, part in cast("JSONObject", value).items()}
    if isinstance(value, list):
        return [_plain(part, depth + 1) for part in cast("list[object]", value)]
    return value
