"""Errors of a local model.

::

    ConfigurationError
    ├── ModelNotFoundError          no directory, package, cache or hub has the model
    ├── ModelOutsideRootError       the name, or a file of the model, leads out of `model_root`
    ├── ModelIntegrityError         the model's files are not those of the manifest
    ├── UnsupportedModelError       the files are there, but this backend cannot run them
    ├── DeviceUnavailableError      the device asked for is not on this machine
    └── InvalidTextError            an item to embed is no text; `index` says which
        ├── InvalidTokensError      an item is no list of the model's token ids
        └── TextTooLongError        a text is longer than the model reads, and none may be cut
    CallRefusedError
    └── MemoryPressureError         memory is short, and bulk work has to wait
    ServiceError
    ├── ModelLoadError              a library failed while it read the model
    └── InferenceError              a library failed while it ran the model
        ├── NonFiniteVectorError    the model answered NaN or infinity
        ├── OutOfMemoryError        no memory even for a single text
        └── WorkerCrashedError      two worker processes in a row died of the same batch
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from shared.infrastructure.resilience.errors import (
    CallRefusedError,
    ConfigurationError,
    ServiceError,
)

if TYPE_CHECKING:
    from shared.infrastructure.local_embeddings.inference import EmbeddingBatch


class ModelNotFoundError(ConfigurationError):
    """No directory, installed package, cache or hub has the model."""

    code = "model_not_found"


class ModelOutsideRootError(ConfigurationError):
    """The name of a model, or one of its files, leads out of the directory that models are in."""

    code = "model_outside_root"


class ModelIntegrityError(ConfigurationError):
    """The files of a model are not those that its manifest lists.

    Attributes:
        files: Paths of the files to blame, relative to the model's directory.
    """

    code = "model_integrity"

    def __init__(self, message: str, files: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.files = files


class UnsupportedModelError(ConfigurationError):
    """The model is there, but the chosen backend cannot run it as its authors meant it."""

    code = "unsupported_model"


class DeviceUnavailableError(ConfigurationError):
    """The device asked for is not on this machine, or the backend cannot use it."""

    code = "device_unavailable"


class InvalidTextError(ConfigurationError):
    """An item to embed is no text.

    Attributes:
        index: Position of the item among the texts, or None if the whole argument is wrong.
    """

    code = "invalid_text"

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index

    def moved(self, by: int) -> Self:
        """Return the same error for a call in which `by` texts come before these."""
        if self.index is None:
            return self
        moved = type(self).__new__(type(self))
        vars(moved).update(vars(self))
        moved.index = self.index + by
        moved.args = (str(self).replace(f"text {self.index}", f"text {moved.index}", 1),)
        return moved


class InvalidTokensError(InvalidTextError):
    """An item is no list of token ids, is an empty one, or has an id the model does not have."""

    code = "invalid_tokens"


class TextTooLongError(InvalidTextError):
    """A text is longer than the model reads, and `Truncation.NONE` forbids to cut it.

    Attributes:
        index: Position of the text among the texts.
        token_count: Its tokens, prompt and special tokens included.
        max_length: Tokens that the model reads.
    """

    code = "text_too_long"

    def __init__(self, index: int, token_count: int, max_length: int) -> None:
        super().__init__(
            f"text {index} has {token_count} tokens, and the model reads {max_length}", index
        )
        self.token_count = token_count
        self.max_length = max_length


class MemoryPressureError(CallRefusedError):
    """Memory is short, and bulk work is not begun until it is not."""

    code = "memory_pressure"


class ModelLoadError(ServiceError):
    """A library failed while it read the model; `__cause__` is its error."""

    code = "model_load_failed"


class InferenceError(ServiceError):
    """A library failed while it ran the model; `__cause__` is its error.

    Attributes:
        indexes: Positions of the texts it failed for; empty if it is not about single texts.
        partial: What came of the other texts of the call, if the call got so far.
    """

    code = "inference_failed"

    def __init__(self, message: str, indexes: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.indexes = indexes
        self.partial: EmbeddingBatch | None = None

    def blamed_on(self, index: int) -> Self:
        """Return the same error as that of one text."""
        blamed = type(self).__new__(type(self))
        vars(blamed).update(vars(self))
        blamed.args, blamed.indexes = self.args, (index,)
        blamed.__cause__, blamed.__traceback__ = self.__cause__, self.__traceback__
        return blamed


class NonFiniteVectorError(InferenceError):
    """The model answered NaN or infinity: the text overflows the model's number format."""

    code = "vector_not_finite"


class OutOfMemoryError(InferenceError):
    """There is not memory enough for a single text: shorten it, or give the process more."""

    code = "out_of_memory"


class WorkerCrashedError(InferenceError):
    """Two worker processes in a row died of the same batch, or none can be started.

    Attributes:
        was_killed: Whether both were killed from outside, as the system does when memory runs out.
        was_silent: Whether one did not answer in time, so that it was killed by us.
    """

    code = "worker_crashed"
    was_killed = False
    was_silent = False
