"""The layer that gives an answer again to the very same question, and asks it once at a time."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, Literal, cast

import httpx

from shared.infrastructure.balancing.accounting.answer_cache import (
    AnswerCache,
    AnswerCacheConfig,
    KeptAnswer,
)
from shared.infrastructure.balancing.accounting.questions import (
    CHAT,
    is_complete,
    is_repeatable,
    key_of,
)
from shared.infrastructure.balancing.accounting.replay import (
    EVENT_STREAM,
    JSON,
    EventSource,
    RecordedStream,
    ReplayedStream,
    answer_of,
    as_events,
    as_json,
    stream_of,
)
from shared.infrastructure.balancing.answers import STREAM
from shared.infrastructure.balancing.call import (
    ATTEMPT,
    CALL,
    FAULT,
    PARSED,
    Call,
    JSONObject,
    call_of,
)
from shared.infrastructure.balancing.dialects.payloads import as_object
from shared.infrastructure.balancing.fallback import FALLBACK_FROM
from shared.infrastructure.http.amend import extended
from shared.infrastructure.resilience import MONOTONIC, Clock, DeadlineExceededError, SingleFlight
from shared.infrastructure.resilience.layer import Inner

CACHED = "cached"
"""Response extension of an answer that was not asked for: `Cached` says why."""

Cached = Literal["hit", "shared"]
"""It was kept ("hit"), or is that of somebody who asked the same at the same time ("shared")."""

_Inner = Inner[httpx.Request, httpx.Response]

# Of an answer that another caller has too: nothing that either might change, or that is another's.
_OF_ITS_OWN = frozenset({ATTEMPT, CALL, PARSED})
_FRAMING = frozenset({"content-length", "transfer-encoding", "content-encoding"})


class AnswerCacheLayer:
    """Give a kept answer again to the same question; ask what many ask at once only once.

    Position: above failover and fallbacks, below what observes calls. The same question is the
    same JSON for the same model, path and tenant, but for fields that change no answer, such as
    `user` and `metadata`. A chat that was streamed answers one that is not, and the other way
    round; other dialects keep streams apart.

    What is kept ended by itself: no error, nothing that was cut at the length, withheld by a filter
    or broken off, and under the name of the model that gave it. Streams are not shared while they
    are under way. `Cache-Control: no-cache` asks anew, and `no-store`, or `CallOptions.cache`,
    goes by the cache altogether.

    Args:
        config: Which answers are kept, how many, and for how long.
        clock: Source of monotonic time.

    Attributes:
        cache: The answers kept.
    """

    def __init__(
        self,
        config: AnswerCacheConfig,
        *,
        clock: Clock = MONOTONIC,
    ) -> None:
        self.cache = AnswerCache(config, clock=clock)
        self._now = clock.now
        self._config = config
        self._flights = SingleFlight[bytes, _Landing]("answer cache")

    def describe(self) -> str:
        """Say in one line how much is kept, and for how long."""
        return f"AnswerCache: {self._config.max_bytes} bytes, {self._config.ttl:g} s"

    def snapshot(self) -> dict[str, Any]:
        """Return counters as plain JSON types."""
        return {**self.cache.snapshot(), "shared_count": self._flights.snapshot()["joined_count"]}

    async def __call__(self, request: httpx.Request, inner: _Inner) -> httpx.Response:
        call = call_of(request.extensions)
        if not is_repeatable(request, call, self._config):
            return await inner.send(request)
        facts = call.facts
        key = key_of(request, call, facts.model)
        if "no-cache" not in request.headers.get("cache-control", ""):
            response = self._kept(key, request, call)
            if response is not None:
                return response
        if facts.streamed:
            return self._recorded(key, request, call, await inner.send(request))
        # The question of all who share it is nobody's call: each of them keeps a deadline of his
        # own, and only who asked first counts the attempts among his.
        shared = Call(facts, call.max_attempts, self._now(), call.hold, call.options)
        asked = extended(request, {CALL: shared})
        try:
            fetch = partial(self._fetch, key, asked, shared, inner)
            landing = await self._flights.do(key, fetch)
            if landing.is_late and landing.asked is not shared:  # who came later has time left
                landing = await self._flights.do(key, fetch)
        finally:
            call.attempts += shared.attempts
            call.answered_by = shared.answered_by or call.answered_by
        return landing.taken(call, request)

    def _kept(self, key: bytes, request: httpx.Request, call: Call) -> httpx.Response | None:
        answer = self.cache.get(key)
        facts = call.facts
        if answer is None or not (answer.has_usage or facts.streamed):
            return None
        extensions: dict[str, Any] = {CALL: call, CACHED: "hit"}
        if not facts.streamed or facts.dialect is None:
            headers = {"content-type": answer.media_type}
            return httpx.Response(
                200, headers=headers, content=answer.content, extensions=extensions, request=request
            )
        content = answer.content
        if facts.dialect.name == CHAT:
            wants_usage = as_object((facts.payload or {}).get("stream_options"))
            has_usage = answer.has_usage and bool(wants_usage.get("include_usage"))
            content = stream_of(json.loads(content), has_usage=has_usage)
        stream = ReplayedStream(content, facts.dialect)
        return httpx.Response(
            200,
            headers={"content-type": EVENT_STREAM},
            stream=stream,
            extensions={**extensions, STREAM: stream},
            request=request,
        )

    async def _fetch(
        self, key: bytes, request: httpx.Request, call: Call, inner: _Inner
    ) -> _Landing:
        try:
            response = await inner.send(request)
            await response.aread()
        except Exception as exc:
            return _Landing(call, exc)
        if response.status_code == 200 and FAULT not in response.extensions:
            said = _object_in(response)
            if said is not None and is_complete([said], call.facts, self._config):
                media_type = response.headers.get("content-type", JSON)
                kept = KeptAnswer(response.content, media_type)
                self.cache.put(_key_of_answer(key, request, call, response), kept)
        return _Landing(call, response)

    def _recorded(
        self, key: bytes, request: httpx.Request, call: Call, response: httpx.Response
    ) -> httpx.Response:
        """Write a stream down on its way."""
        # As they are now: a stream that is continued elsewhere goes on to ask something else.
        facts, dialect = call.facts, call.facts.dialect
        stream: EventSource | None = response.extensions.get(STREAM)
        if stream is None or dialect is None or response.status_code != 200:
            return response
        key = _key_of_answer(key, request, call, response)

        def keep(said: list[JSONObject]) -> None:
            if not is_complete(said, facts, self._config):
                return
            if dialect.name != CHAT:
                self.cache.put(key, KeptAnswer(as_events(dialect.name, said), EVENT_STREAM))
            elif whole := answer_of(said):
                has_usage = whole.get("usage") is not None
                self.cache.put(key, KeptAnswer(as_json(whole), JSON, has_usage))

        recorded = RecordedStream(stream, dialect, self._config.max_answer_bytes, keep)
        response.stream = recorded
        response.extensions = {**response.extensions, STREAM: recorded}
        return response


class _Landing:
    """What came of a question that several may have asked; the first of them has made it."""

    __slots__ = ("_is_taken", "_outcome", "asked")

    def __init__(self, asked: Call, outcome: httpx.Response | Exception) -> None:
        self.asked = asked
        self._outcome = outcome
        self._is_taken = False

    @property
    def is_late(self) -> bool:
        """Whether the time was over before there was an answer."""
        return isinstance(self._outcome, DeadlineExceededError)

    def taken(self, call: Call, request: httpx.Request) -> httpx.Response:
        """Return the response for one of the callers, or raise the error."""
        outcome, is_first = self._outcome, not self._is_taken
        self._is_taken = True
        if isinstance(outcome, Exception):
            raise outcome if is_first else _copy_of(outcome)
        if is_first:
            if outcome.extensions.get(CALL) is self.asked:
                outcome.extensions = {**outcome.extensions, CALL: call}
            return outcome
        headers = [(k, v) for k, v in outcome.headers.multi_items() if k not in _FRAMING]
        kept = {k: v for k, v in outcome.extensions.items() if k not in _OF_ITS_OWN}
        return httpx.Response(
            outcome.status_code,
            headers=headers,
            content=outcome.content,
            extensions={**kept, CALL: call, CACHED: "shared"},
            request=request,
        )


def _key_of_answer(
    key: bytes, request: httpx.Request, call: Call, response: httpx.Response
) -> bytes:
    """Return the key an answer is kept under: that of a fallback is not one of the model asked."""
    if FALLBACK_FROM not in response.extensions:
        return key
    return key_of(request, call, call_of(response.extensions).facts.model)


def _copy_of(error: Exception) -> Exception:
    """Return an error of one's own: who raises one adds a traceback, and notes of its own call."""
    copy = type(error).__new__(type(error))
    copy.__dict__.update(error.__dict__)
    copy.args = error.args
    copy.__cause__ = error.__cause__
    return copy


def _object_in(response: httpx.Response) -> JSONObject | None:
    """Return the JSON object that a response holds."""
    parsed: object = response.extensions.get(PARSED)
    if parsed is None:
        try:
            parsed = json.loads(response.content)
        except (ValueError, RecursionError):
            return None
    return cast("JSONObject", parsed) if isinstance(parsed, dict) else None
