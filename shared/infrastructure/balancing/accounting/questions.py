"""When two requests ask the same, and when an answer is worth keeping."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import httpx

from shared.infrastructure.balancing.accounting.answer_cache import AnswerCacheConfig
from shared.infrastructure.balancing.call import Call, JSONObject, RequestFacts
from shared.infrastructure.balancing.dialects.payloads import as_object, as_objects

CHAT = "openai.chat"
"""The dialect whose streams and plain answers can be made of each other."""

# They change nothing about what is answered.
_IRRELEVANT = frozenset(
    {
        *("metadata", "model", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
        *("service_tier", "store", "stream", "stream_options", "user"),
    }
)
# An answer to these leaves something behind at the host, or depends on what was left there.
_STATEFUL = ("store", "background", "previous_response_id", "conversation")
# Of a request's headers, those that neither say who asks nor change what is answered.
_SAY_NOTHING = frozenset(
    {
        *("cache-control", "connection", "host", "idempotency-key", "pragma", "te", "traceparent"),
        *("tracestate", "transfer-encoding", "user-agent", "x-request-id"),
    }
)
_SAY_NOTHING_FROM = ("accept", "content-", "x-stainless-")

_ENDED = frozenset({"stop", "end_turn", "stop_sequence", "completed"})
_ENDED_IN_TOOLS = frozenset({"tool_calls", "function_call", "tool_use"})
_UNDER_WAY = frozenset({"in_progress", "queued"})


def is_repeatable(request: httpx.Request, call: Call, config: AnswerCacheConfig) -> bool:
    """Say whether the same question may be given the same answer."""
    facts = call.facts
    payload = facts.payload
    if not call.options.cache or facts.dialect is None or payload is None:
        return False
    if request.method != "POST" or "no-store" in request.headers.get("cache-control", ""):
        return False
    if any(payload.get(key) for key in _STATEFUL):
        return False
    if config.temperature_above_zero or facts.dialect.name.endswith(".embeddings"):
        return True
    temperature = payload.get("temperature")
    return temperature is not None and temperature == 0


def key_of(request: httpx.Request, call: Call, model: str | None) -> bytes:
    """Return what the same questions of the same tenant have in common, and no others.

    Args:
        request: The question.
        call: Its call.
        model: Model that is asked, or that has answered.
    """
    facts, options = call.facts, call.options
    dialect = facts.dialect.name if facts.dialect else ""
    payload = facts.payload or {}
    parts = (
        dialect,
        request.url.raw_path.decode("latin-1"),
        facts.streamed and dialect != CHAT,
        options.tenant,
        list(options.fallbacks or ()),
        sorted(_telling(request.headers)),
        model,
        {key: value for key, value in payload.items() if key not in _IRRELEVANT},
    )
    # A hash, since a key is kept and holds credentials.
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).digest()


def _telling(headers: httpx.Headers) -> Iterator[tuple[str, str]]:
    for name, value in headers.multi_items():
        if name not in _SAY_NOTHING and not name.startswith(_SAY_NOTHING_FROM):
            yield name, value


def is_complete(said: list[JSONObject], facts: RequestFacts, config: AnswerCacheConfig) -> bool:
    """Say whether an answer, or its events, ended by itself, with nothing cut or withheld."""
    dialect = facts.dialect
    if dialect is None:
        return False
    if dialect.name.endswith(".embeddings"):
        return all(one.get("data") for one in said)
    reasons = [reason for one in said for reason in _reasons(one)]
    allowed = _ENDED | _ENDED_IN_TOOLS if config.tool_calls else _ENDED
    return len(reasons) >= dialect.answers(facts.payload or {}) and allowed.issuperset(reasons)


def _reasons(said: JSONObject) -> Iterator[object]:
    """Yield why answers ended, in the words of any dialect."""
    for choice in as_objects(said.get("choices")):
        if reason := choice.get("finish_reason"):
            yield reason
    for holder in (said, as_object(said.get("delta"))):
        if reason := holder.get("stop_reason"):
            yield reason
    whole = as_object(said.get("response", said))
    status = whole.get("status")
    if whole.get("object") == "response" and status not in _UNDER_WAY:
        calls = any("call" in str(item.get("type")) for item in as_objects(whole.get("output")))
        yield "tool_calls" if calls and status == "completed" else status
