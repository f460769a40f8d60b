"""How many tokens a call will cost, before anybody has counted them.

A rule of thumb for all models, corrected by what hosts count for each.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from shared.infrastructure.balancing.accounting.usage import TokenUsage
from shared.infrastructure.balancing.dialects import Dialect
from shared.infrastructure.resilience.histogram import percentile

JSONObject = dict[str, Any]

CountTokens = Callable[[str | None, JSONObject], int]
"""A counter of your own: given a model and a payload, the tokens that will be read."""

# Tokens a character: a quarter in ASCII, 5/8 in two bytes of UTF-8 (Cyrillic), 1 in three (CJK).
_PER_CHARACTER = 0.25
_PER_FURTHER_BYTE = 0.375
_PER_MESSAGE = 4.0
_IMAGE = 1000.0
_SMALL_IMAGE = 85.0
_DOCUMENT = 2000.0
_MEDIA = {
    "image": _IMAGE,
    "image_url": _IMAGE,
    "input_image": _IMAGE,
    "audio": _IMAGE,
    "input_audio": _IMAGE,
    "document": _DOCUMENT,
    "file": _DOCUMENT,
    "input_file": _DOCUMENT,
}
# Of a payload, what the model reads; the keys of a schema are read too.
_READ = ("messages", "system", "prompt", "input", "instructions")
_READ_WITH_KEYS = ("tools", "functions", "response_format", "output_format", "output_config")
_UNREAD = frozenset({"role", "type", "id", "tool_call_id", "tool_use_id", "cache_control"})
# Longer texts and lists are sampled, so that no prompt holds up the loop.
_LONG_TEXT = 4096
_SLICES, _SLICE = 16, 256
_LONG_LIST = 256
_UNKNOWN_OUTPUT = 1000


class Estimate(NamedTuple):
    """Tokens that a call will probably cost.

    Attributes:
        input: Tokens to be read.
        output: Tokens to be written, at most so many in 19 of 20 calls.
        uncorrected: `input` by the rule of thumb alone.
    """

    input: int
    output: int
    uncorrected: int = 0


def estimate_tokens(dialect: Dialect, payload: JSONObject) -> Estimate:
    """Return what a call will probably cost, by the rule of thumb alone.

    Texts of any length take microseconds: the long ones are sampled.
    """
    read = _input_of(payload)
    return Estimate(read, _output_of(dialect, payload, None), read)


class TokenEstimator:
    """Estimates that get better with every answer of which the host counted the tokens.

    By model it keeps the ratio of counted to estimated input, and the latest 64 outputs.

    Args:
        count: Counts the input instead of the rule of thumb, say with the model's tokenizer; it is
            trusted, but still corrected by the ratio.
        max_models: Models remembered; the one unused for longest is forgotten first.
    """

    def __init__(self, count: CountTokens | None = None, *, max_models: int = 256) -> None:
        self._count = count
        self._max_models = max_models
        self._models: OrderedDict[str, _Model] = OrderedDict()

    def estimate(self, dialect: Dialect, payload: JSONObject, model: str | None) -> Estimate:
        """Return what a call will probably cost."""
        raw = _input_of(payload) if self._count is None else self._count(model, payload)
        known = self._models.get(model or "")
        if known is None:
            return Estimate(raw, _output_of(dialect, payload, None), raw)
        output = _output_of(dialect, payload, known.usual_output)
        return Estimate(math.ceil(raw * known.ratio), output, raw)

    def learn(self, model: str | None, estimate: Estimate, usage: TokenUsage) -> None:
        """Take in what a host counted for a call that ended well."""
        if usage.estimated:
            return
        name = model or ""
        known = self._models.get(name)
        if known is None:
            known = self._models[name] = _Model()
            if len(self._models) > self._max_models:
                self._models.popitem(last=False)
        else:
            self._models.move_to_end(name)
        known.learn(estimate.uncorrected, usage)

    def snapshot(self) -> dict[str, Any]:
        """Return by model the `ratio` of counted to estimated input, and the `usual_output`."""
        return {
            name: {"ratio": known.ratio, "usual_output": known.usual_output}
            for name, known in self._models.items()
        }


class _Model:
    """What is known of one model."""

    _SHARE = 0.1
    _BOUNDS = (0.1, 10.0)
    _KEPT, _ENOUGH = 64, 20

    __slots__ = ("_outputs", "_samples", "_usual", "_usual_at", "ratio")

    def __init__(self) -> None:
        self.ratio = 1.0
        self._samples = 0
        self._outputs: deque[int] = deque(maxlen=self._KEPT)
        self._usual: int | None = None
        self._usual_at = 0

    def learn(self, estimated: int, usage: TokenUsage) -> None:
        self._samples += 1
        self._outputs.append(usage.output)
        if estimated > 0 and usage.input > 0:
            low, high = self._BOUNDS
            ratio = min(max(usage.input / estimated, low), high)
            # A mean of the first few, so that one odd call does not set the tone.
            self.ratio += (ratio - self.ratio) * max(self._SHARE, 1.0 / self._samples)

    @property
    def usual_output(self) -> int | None:
        """The output that 95 % of the latest calls did not exceed; None while they are few."""
        if self._samples < self._ENOUGH:
            return None
        if self._usual is None or self._samples - self._usual_at >= 8:
            self._usual = int(percentile(sorted(self._outputs), 95))
            self._usual_at = self._samples
        return self._usual


def _output_of(dialect: Dialect, payload: JSONObject, usual: int | None) -> int:
    if dialect.name.endswith(".embeddings"):
        return 0
    most = dialect.max_output(payload)
    if usual is None:
        return _UNKNOWN_OUTPUT if most is None else most
    return usual if most is None else min(most, usual)


def _input_of(payload: JSONObject) -> int:
    tokens = 0.0
    for key in _READ:
        if value := payload.get(key):
            tokens += _weigh(value, counts_keys=False)
    for key in _READ_WITH_KEYS:
        if value := payload.get(key):
            tokens += _weigh(value, counts_keys=True)
    messages = payload.get("messages")
    if isinstance(messages, list):
        tokens += _PER_MESSAGE * len(cast("list[object]", messages))
    return math.ceil(tokens)


def _weigh(root: object, *, counts_keys: bool) -> float:
    """Return the tokens in a piece of JSON; without recursion, however deep it is."""
    tokens = 0.0
    todo: list[tuple[object, float]] = [(root, 1.0)]
    while todo:
        value, share = todo.pop()
        if isinstance(value, str):
            tokens += share * _text_tokens(value)
        elif isinstance(value, dict):
            one = cast("JSONObject", value)
            if (media := _media_tokens(one)) is not None:
                tokens += share * media
                continue
            if counts_keys:
                tokens += share * sum(1.0 + len(key) * _PER_CHARACTER for key in one)
            todo += [(one[key], share) for key in one if counts_keys or key not in _UNREAD]
        elif isinstance(value, list):
            items = cast("list[object]", value)
            if items and isinstance(items[0], int):
                tokens += share * len(items)  # tokens already
            else:
                taken = items[:: -(-len(items) // _LONG_LIST) or 1]
                share *= len(items) / (len(taken) or 1)
                plain = [text for item in taken if (text := _plain_text(item)) is not None]
                tokens += share * sum(map(_text_tokens, plain))
                if len(plain) < len(taken):
                    todo += [(item, share) for item in taken if _plain_text(item) is None]
        elif value is not None:
            tokens += share
    return tokens


def _plain_text(item: object) -> str | None:
    """Return the text of a message that is nothing else, as most are; None of any other."""
    if not isinstance(item, dict):
        return None
    message = cast("JSONObject", item)
    text = message.get("content")
    return text if isinstance(text, str) and len(message) == 2 and "role" in message else None


def _text_tokens(text: str) -> float:
    length = len(text)
    if text.isascii():  # known of every string: nothing is looked at
        return length * _PER_CHARACTER
    sample = text
    if length > _LONG_TEXT:
        step = length // _SLICES
        sample = "".join(text[at : at + _SLICE] for at in range(0, length, step))
    further = len(sample.encode("utf-8", "surrogatepass")) - len(sample)
    return length * (_PER_CHARACTER + _PER_FURTHER_BYTE * further / len(sample))


def _media_tokens(part: Mapping[str, Any]) -> float | None:
    """Return the tokens of a part that is no text; None if it is text."""
    kind = part.get("type")
    tokens = _MEDIA.get(kind) if isinstance(kind, str) else None
    if tokens is None:
        return None
    source = part.get("source")
    if isinstance(source, dict) and cast("JSONObject", source).get("type") == "text":
        return None
    image = part.get("image_url")
    detail = cast("JSONObject", image).get("detail") if isinstance(image, dict) else None
    return _SMALL_IMAGE if "low" in {detail, part.get("detail")} else tokens
