"""One primitive, or one layer, for each key: a breaker per host, a limiter per tenant."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from itertools import islice
from typing import Any, Generic, TypeVar

from shared.infrastructure.resilience.errors import ConfigurationError
from shared.infrastructure.resilience.layer import Inner, Layer, Req, Res

T_co = TypeVar("T_co", covariant=True)

# How many of the least recent entries are asked whether they are in use before one has to go.
_LOOKS = 8


class Keyed(Generic[T_co]):
    """A registry of values by key, each built when it is first asked for, in O(1).

    It is bounded: the value least recently asked for goes when there are too many. What goes while
    it is in use still serves the calls that hold it, but the next call of its key gets a new one.

    Args:
        factory: Builds the value of a key.
        max_keys: Values held at most; 1000; at least 1.
        keep: Says that a value is better not let go yet, such as a breaker that is not closed. The
            eight least recent values are asked; if all are to be kept, the first goes all the same.

    Raises:
        ConfigurationError: `max_keys` is below 1.
    """

    def __init__(
        self,
        factory: Callable[[Any], T_co],
        *,
        max_keys: int = 1000,
        keep: Callable[[T_co], bool] | None = None,
    ) -> None:
        if max_keys < 1:
            raise ConfigurationError(f"max_keys must be at least 1, not {max_keys}")
        self._factory = factory
        self._max_keys = max_keys
        self._keep = keep
        self._values: OrderedDict[Hashable, T_co] = OrderedDict()

    def get(self, key: Hashable) -> T_co:
        """Return the value of `key`, built if need be."""
        if key not in self._values:
            value = self._factory(key)
            if len(self._values) >= self._max_keys:
                self._evict()
            self._values[key] = value
            return value
        self._values.move_to_end(key)
        return self._values[key]

    def discard(self, key: Hashable) -> None:
        """Forget the value of `key`, if there is one."""
        self._values.pop(key, None)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def entries(self) -> dict[Hashable, T_co]:
        """Return the values by key, the least recent first."""
        return dict(self._values)

    def snapshot(self) -> dict[Hashable, Any]:
        """Return the snapshot of every value that has one, by key, least recent first."""
        return {
            key: take()
            for key, value in self._values.items()
            if callable(take := getattr(value, "snapshot", None))
        }

    def _evict(self) -> None:
        oldest = list(islice(self._values, _LOOKS))
        for key in oldest:
            if self._keep is None or not self._keep(self._values[key]):
                del self._values[key]
                return
            # To the end, so that the next eviction asks others.
            self._values.move_to_end(key)
        del self._values[oldest[0]]


class KeyedLayer(Generic[Req, Res]):
    """Apply the layer of the request's key, so that one stack guards many hosts separately.

    Position: where the layers it applies belong; several layers of a key are one `ChainLayer`.

    Args:
        key_of: Reads the key off a request.
        layer_for: Layers by key.
    """

    def __init__(
        self, key_of: Callable[[Req], Hashable], layer_for: Keyed[Layer[Req, Res]]
    ) -> None:
        self._key_of = key_of
        self._layer_for = layer_for

    def __call__(self, request: Req, inner: Inner[Req, Res]) -> Awaitable[Res]:
        return self._layer_for.get(self._key_of(request))(request, inner)

    def describe(self) -> str:
        """Return the name of this layer and how many keys it has."""
        return f"{type(self).__name__} ({len(self._layer_for)} keys)"
