"""Errors of a local model.

::

    ConfigurationError
    ├── ModelNotFoundError          no directory, package, cache or hub has the model
    ├── UnsupportedModelError       the files are there, but this backend cannot run them
    ├── DeviceUnavailableError      the device asked for is not on this machine
    └── InvalidTextError            an item to embed is no text; `index` says which
    ServiceError
    ├── ModelLoadError              a library failed while it read the model
    └── InferenceError              a library failed while it ran the model
        └── NonFiniteVectorError    the model answered NaN or infinity
"""

from __future__ import annotations

from shared.infrastructure.resilience.errors import ConfigurationError, ServiceError


class ModelNotFoundError(ConfigurationError):
    """No directory, installed package, cache or hub has the model."""

    code = "model_not_found"


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


class ModelLoadError(ServiceError):
    """A library failed while it read the model; `__cause__` is its error."""

    code = "model_load_failed"


class InferenceError(ServiceError):
    """A library failed while it ran the model; `__cause__` is its error."""

    code = "inference_failed"


class NonFiniteVectorError(InferenceError):
    """The model answered NaN or infinity: the text overflows the model's number format.

    Attributes:
        indexes: Positions of the texts to blame; others of the call may not have been tried.
    """

    code = "vector_not_finite"

    def __init__(self, message: str, indexes: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.indexes = indexes
