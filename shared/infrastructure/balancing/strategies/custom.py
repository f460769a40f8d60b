"""Strategies from outside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from shared.infrastructure.balancing.strategies.protocol import C, PickContext
from shared.infrastructure.resilience import ConfigurationError


class Custom:
    """A strategy from outside, whose picks are checked.

    Args:
        strategy: Has `pick(candidates)` or `pick(candidates, context)`.

    Raises:
        ConfigurationError: It has not, or what it picks is no candidate.
    """

    def __init__(self, strategy: object) -> None:
        pick = getattr(strategy, "pick", None)
        if isinstance(strategy, type) or not callable(pick) or inspect.iscoroutinefunction(pick):
            raise ConfigurationError(
                f"{strategy!r} is no strategy: give a LoadBalancingStrategy, or an object whose"
                " method pick returns a host"
            )
        self._name = type(strategy).__name__
        self._pick: Callable[..., Any] = pick
        self._takes_context = _takes_context(pick, self._name)

    def pick(self, candidates: Sequence[C], context: PickContext, /) -> C:
        host = self._pick(candidates, context) if self._takes_context else self._pick(candidates)
        for candidate in candidates:
            if candidate is host:
                return candidate
        raise ConfigurationError(f"{self._name}.pick returned {host!r}, which is no candidate")


def _takes_context(pick: Callable[..., Any], name: str) -> bool:
    try:
        signature = inspect.signature(pick)
    except ValueError:  # one in C does not tell
        return True
    for arguments in (2, 1):
        try:
            signature.bind(*[None] * arguments)
        except TypeError:
            continue
        return arguments == 2
    raise ConfigurationError(f"{name}.pick must take (candidates) or (candidates, context)")
