"""What a process and its worker say to each other."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from shared.infrastructure.local_embeddings.backends.protocol import EmbeddingBackend
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.memory.out_of_memory import is_out_of_memory
from shared.infrastructure.resilience.errors import ServiceError

OpenBackend = Callable[[LocalEmbeddingConfig], EmbeddingBackend]


@dataclass(frozen=True, slots=True)
class Start:
    """First message to a worker, answered with the backend's spec or a `Failure`.

    Attributes:
        open: Loads the model; pickled by name, so that it is a function of a module.
        config: What it is given.
        warm_up: Whether to warm up before the answer.
    """

    open: OpenBackend
    config: LocalEmbeddingConfig
    warm_up: bool = False


class Request(NamedTuple):
    """A call of a method of the backend, answered with what it returns or a `Failure`.

    That of `forward` comes without its buffer: the vectors are the answer.
    """

    method: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """An error on its way to another process: one of ours, or a `MemoryError`.

    Attributes:
        kind: Its class.
        message: Its text.
        facts: Its attributes.
        origin: Where it was raised, for people.
    """

    kind: type[Exception]
    message: str
    facts: dict[str, Any]
    origin: str

    @classmethod
    def of(cls, error: Exception, otherwise: type[ServiceError], what: str) -> Failure:
        """Return the failure of an error; one of a library becomes an `otherwise`.

        Args:
            error: What was raised.
            otherwise: A class of ours that is made of a message.
            what: What went wrong, for that message.
        """
        origin = "".join(traceback.format_exception(error))
        if not isinstance(error, ServiceError) and is_out_of_memory(error):
            # Which the message alone would not tell.
            return cls(MemoryError, f"{type(error).__name__}: {error}", {}, origin)
        if not isinstance(error, ServiceError) or not _has_names(error):
            error = otherwise(f"{what}: {type(error).__name__}: {error}")
        return cls(type(error), str(error), _facts(error), origin)

    def error(self) -> Exception:
        """Return the error, to be raised here."""
        # Not by its constructor: some take other things than the message, and write it themselves.
        error = self.kind.__new__(self.kind)
        if isinstance(error, ServiceError):
            ServiceError.__init__(error, self.message)
        else:
            error.args = (self.message,)
        vars(error).update(self.facts)
        error.add_note(f"Raised in a worker process:\n{self.origin}")
        return error


def _facts(error: ServiceError) -> dict[str, Any]:
    kept_here = ("trace", "earlier", "__notes__")
    return {name: value for name, value in vars(error).items() if name not in kept_here}


def _has_names(error: ServiceError) -> bool:
    """Whether another process can find the classes that an error is made of."""
    try:
        pickle.dumps((type(error), _facts(error)))
    except (pickle.PicklingError, TypeError, AttributeError):
        return False
    return True
