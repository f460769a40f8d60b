"""Fallback chains: other models for a call that one model cannot answer, by the cause."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import httpx

from shared.infrastructure.balancing.call import (
    CALL,
    FAULT,
    Call,
    JSONObject,
    RequestFacts,
    call_of,
)
from shared.infrastructure.balancing.classify import EARLIER, fault_of, status_error
from shared.infrastructure.balancing.config import FallbackConfig
from shared.infrastructure.balancing.errors import NoHostAvailableError, TokenLimitError
from shared.infrastructure.balancing.failover import HAS_FALLBACK
from shared.infrastructure.balancing.faults import RULES, Fault
from shared.infrastructure.balancing.json_request import with_body
from shared.infrastructure.balancing.semantics import may_repeat
from shared.infrastructure.balancing.uploads import form_with_model, is_form
from shared.infrastructure.http.amend import extended
from shared.infrastructure.resilience import (
    ConfigurationError,
    DeadlineExceededError,
    FallbackUsed,
    Listeners,
    RateLimitExceededError,
    ServiceError,
)
from shared.infrastructure.resilience.events import NO_LISTENERS
from shared.infrastructure.resilience.layer import Inner
from shared.infrastructure.resilience.timeout import remaining_time

FALLBACK_FROM = "fallback_from"
"""Response extension: the model that was asked for, where another one answered."""

Outcome = httpx.Response | Exception
Chains = Mapping[str, Sequence[str]]

_NO_CHAINS = FallbackConfig()
# A name of the body, not of what is inside of it, as the bytes show; no string can hold the like.
_MODEL = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*"|[^\s,\[\]{}"]+)')


class FallbackChain:
    """Asks for other models, one after the other, where every host has failed one.

    Position: above failover, so that a model is given up only when every host had its chance, and
    below the deadline, which bounds all models together. Each model has fresh hosts and as many
    attempts as the first; nothing is remembered for the next call, but a restart of this one begins
    at the model that had answered it.

    What leads to another model is what `FallbackConfig` lists for that cause: a request that is too
    long goes to larger models only, and one that a policy forbade is not routed around unless that
    is listed. `CallOptions.fallbacks` stands in for `models` and `rate_limit`.

    If no model answers, the outcome is that of the one that was asked for, and the errors of the
    others are among its `earlier`.

    Args:
        config: Aliases and chains; by default there are none but those that calls bring along.
        name: The pool, in events.
        listeners: Told of every model that is asked in place of another.
    """

    def __init__(
        self,
        config: FallbackConfig = _NO_CHAINS,
        *,
        name: str = "llm",
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self._config = _resolved(config)
        self._name = name
        self._listeners = listeners

    def describe(self) -> str:
        """Say in one line how many models have a chain."""
        return f"FallbackChain: {len(self._config.models)} models"

    async def __call__(
        self, request: httpx.Request, inner: Inner[httpx.Request, httpx.Response]
    ) -> httpx.Response:
        call = call_of(request.extensions)
        facts, given, stand_in = call.facts, call.options.fallbacks, call.stand_in
        allowed = call.max_attempts - len(call.attempts)
        if facts.model is not None and facts.model in self._config.aliases:
            facts = _facts_for(facts, self._config.aliases[facts.model])
        if stand_in is not None:
            stand_in.facts = _facts_for(facts, stand_in.facts.model or "")
            request = _as_call(request, stand_in)
        elif facts is not call.facts:
            request = _as_call(request, replace(call, facts=facts))
        general = self._config.models.get(facts.model or "", ()) if given is None else given
        if general and self._others(general, facts, stand_in):
            request = extended(request, {HAS_FALLBACK: True})
        outcome: Outcome
        try:
            outcome = await inner.send(request)
        except Exception as exc:
            outcome = exc
        else:
            if outcome.status_code < 400 and FAULT not in outcome.extensions:
                call.answered_by = call_of(request.extensions).answered_by
                if stand_in is not None:
                    outcome.extensions = {**outcome.extensions, FALLBACK_FROM: facts.model}
                return outcome
        return await self._go_on(request, inner, outcome, call, facts, allowed)

    async def _go_on(
        self,
        request: httpx.Request,
        inner: Inner[httpx.Request, httpx.Response],
        first: Outcome,
        call: Call,
        facts: RequestFacts,
        allowed: int,
    ) -> httpx.Response:
        others: list[Exception] = []
        last = first
        chain = self._chain(first, facts.model, call.options.fallbacks)
        models = self._others(chain, facts, call.stand_in)
        while models and remaining_time() != 0.0 and may_repeat(request, last):
            model = models.pop(0)
            self._listeners(FallbackUsed(self._name, inner.semantics.describe(request, last)))
            call.max_attempts = len(call.attempts) + allowed
            fresh = replace(call, facts=_facts_for(facts, model), left={}, busy=set())
            try:
                last = await inner.send(_as_call(request, fresh, has_fallback=bool(models)))
            except Exception as exc:
                last = exc
            if (fault := fault_of(last)) is None and not isinstance(last, Exception):
                if not isinstance(first, Exception):
                    await inner.semantics.discard(first)
                call.answered_by, call.stand_in = fresh.answered_by, fresh
                last.extensions = {**last.extensions, FALLBACK_FROM: facts.model}
                return last
            others.append(await _given_up(last, inner))
            if _is_final(last, fault, fault_of(first)):
                break
        return _standing(first, others, len(call.attempts))

    def _others(
        self, chain: Sequence[str], facts: RequestFacts, stand_in: Call | None
    ) -> list[str]:
        """Return the models of a chain that a request can be changed to, and has not been."""
        if not chain or (facts.payload is None and facts.model is None):
            return []
        names = dict.fromkeys(self._config.aliases.get(name, name) for name in chain)
        models = [name for name in names if name != facts.model][: self._config.max_fallbacks]
        current = stand_in and stand_in.facts.model
        return models[models.index(current) + 1 :] if current in models else models

    def _chain(
        self, outcome: Outcome, model: str | None, given: Sequence[str] | None
    ) -> Sequence[str]:
        config, fault, name = self._config, fault_of(outcome), model or ""
        if fault is Fault.CONTEXT_WINDOW:
            return config.context_window.get(name, ())
        if fault is Fault.CONTENT_FILTER:
            return config.content_filter.get(name, ())
        general = config.models.get(name, ()) if given is None else given
        if _is_throttled(outcome, fault):
            return general if given is not None else config.rate_limit.get(name) or general
        is_worth_it = isinstance(outcome, NoHostAvailableError) or (
            fault is not None and RULES[fault].other_model
        )
        return general if is_worth_it else ()


def _resolved(config: FallbackConfig) -> FallbackConfig:
    """Return the config with the chains of an alias as those of the model it stands for."""
    names = config.aliases

    def resolved(chains: Chains) -> Chains:
        return {names.get(name, name): chain for name, chain in chains.items()} | dict(chains)

    return config.model_copy(
        update={
            "models": resolved(config.models),
            "context_window": resolved(config.context_window),
            "content_filter": resolved(config.content_filter),
            "rate_limit": resolved(config.rate_limit),
        }
    )


def _is_throttled(outcome: Outcome, fault: Fault | None) -> bool:
    if isinstance(outcome, NoHostAvailableError):
        return Fault.THROTTLED in outcome.faults.values()
    limited = (TokenLimitError, RateLimitExceededError)
    return fault is Fault.THROTTLED or isinstance(outcome, limited)


def with_model(request: httpx.Request, model: str) -> httpx.Request:
    """Return a copy of a request that asks for `model`; nothing else in its body changes.

    Raises:
        ConfigurationError: Its body is not at hand, or neither a JSON object nor a form.
    """
    if not isinstance(request.stream, httpx.ByteStream):
        raise ConfigurationError("the model of a request whose body is streamed cannot be changed")
    return with_body(request, body_with_model(b"".join(request.stream), model))


def body_with_model(content: bytes, model: str) -> bytes:
    """Return `content`, a JSON object or a form, with another `model`; the rest stays as it is.

    Raises:
        ConfigurationError: It is neither.
    """
    if is_form(content):
        return form_with_model(content, model)
    name = json.dumps(model).encode()
    spans = [found.span(1) for found in _MODEL.finditer(content) if _depth(content, found) == 1]
    if not spans:
        return _rewritten(content, model)
    pieces, end = list[bytes](), 0
    for start, stop in spans:
        pieces += (content[end:start], name)
        end = stop
    return b"".join((*pieces, content[end:]))


def _depth(content: bytes, found: re.Match[bytes]) -> int:
    """Return how many objects and arrays a match is inside of."""
    before = content[: found.start()]
    if b"\\" in before:
        before = before.replace(b"\\\\", b"").replace(b'\\"', b"")
    plain = b"".join(before.split(b'"')[::2])  # what is outside of strings
    return plain.count(b"{") + plain.count(b"[") - plain.count(b"}") - plain.count(b"]")


def _rewritten(content: bytes, model: str) -> bytes:
    try:
        body: object = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ConfigurationError("the body is no JSON object: its model cannot be changed")
    return json.dumps({**cast("JSONObject", body), "model": model}).encode()


def _facts_for(facts: RequestFacts, model: str) -> RequestFacts:
    payload = None if facts.payload is None else {**facts.payload, "model": model}
    return replace(facts, model=model, payload=payload)


def _as_call(request: httpx.Request, call: Call, *, has_fallback: bool = False) -> httpx.Request:
    """Return a copy of a request as one of `call`, for the model of that."""
    extensions = {**request.extensions, CALL: call}
    if not has_fallback:
        extensions.pop(HAS_FALLBACK, None)
    changed = with_model(request, call.facts.model or "")
    changed.extensions = extensions
    return changed


def _is_final(outcome: Outcome, fault: Fault | None, cause: Fault | None) -> bool:
    """Whether an outcome ends the chain: time is up, or a policy speaks that may not be evaded."""
    if isinstance(outcome, DeadlineExceededError):
        return True
    return fault is Fault.CONTENT_FILTER and cause is not fault


async def _given_up(outcome: Outcome, inner: Inner[httpx.Request, httpx.Response]) -> Exception:
    if isinstance(outcome, Exception):
        return outcome
    error = status_error(outcome)
    await inner.semantics.discard(outcome)
    return error


def _standing(first: Outcome, others: Sequence[Exception], attempts: int) -> httpx.Response:
    """Return or raise the outcome of the model that was asked for."""
    if not isinstance(first, Exception):
        if others:
            earlier = (*first.extensions.get(EARLIER, ()), *others)
            first.extensions = {**first.extensions, EARLIER: earlier}
        return first
    if isinstance(first, ServiceError) and others:
        first.attempts = attempts
        first.earlier = (*first.earlier, *others)
    raise first
