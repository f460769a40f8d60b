import pickle

import numpy as np
import pytest

from shared.infrastructure.local_embeddings import (
    DeviceUnavailableError,
    InferenceError,
    InvalidTextError,
    ModelLoadError,
    ModelNotFoundError,
    NonFiniteVectorError,
    UnsupportedModelError,
)
from shared.infrastructure.local_embeddings.errors import (
    ModelIntegrityError,
    OutOfMemoryError,
    TextTooLongError,
)
from shared.infrastructure.local_embeddings.memory.out_of_memory import is_out_of_memory
from shared.infrastructure.local_embeddings.worker.messages import Failure
from shared.infrastructure.resilience.errors import (
    ConfigurationError,
    MissingExtraError,
    ServiceError,
)


def carried(error: Exception) -> Exception:
    failure = Failure.of(error, InferenceError, "inference failed")
    arrived: Failure = pickle.loads(pickle.dumps(failure))  # noqa: S301
    return arrived.error()


@pytest.mark.parametrize(
    "error",
    [
        ModelNotFoundError("no such model"),
        ModelIntegrityError("not what it was", ("a", "b")),
        UnsupportedModelError("cannot run it"),
        DeviceUnavailableError("no cuda:1"),
        ConfigurationError("wrong", service="s", retry_after=2.0),
        InvalidTextError("text 3 is none", 3),
        TextTooLongError(2, 300, 256),
        MissingExtraError("a local model", "onnx"),
        ModelLoadError("cannot load"),
        InferenceError("failed", (1, 2)),
        NonFiniteVectorError("NaN", (4,)),
        OutOfMemoryError("too much", (5,)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_ours_arrives_as_it_was(error: ServiceError) -> None:
    arrived = carried(error)
    assert type(arrived) is type(error)
    assert isinstance(arrived, ServiceError)
    assert str(arrived) == str(error)
    assert arrived.args == error.args
    assert arrived.to_dict() == error.to_dict()
    unequal = ("trace", "__notes__")
    assert {name: value for name, value in vars(arrived).items() if name not in unequal} == {
        name: value for name, value in vars(error).items() if name not in unequal
    }


def test_an_error_of_a_library_arrives_as_ours_with_its_words_and_where_it_was_raised() -> None:
    with pytest.raises(LookupError) as caught:
        raise LookupError("no such thing")
    arrived = carried(caught.value)
    assert type(arrived) is InferenceError
    assert str(arrived) == "inference failed: LookupError: no such thing"
    assert arrived.indexes == ()
    assert arrived.partial is None
    assert "test_worker_failures.py" in arrived.__notes__[0]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("malloc"),
        np._core._exceptions._ArrayMemoryError((2**60,), np.dtype(np.float32)),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."),
        RuntimeError("Failed to allocate memory for requested buffer of size 1073741824"),
        OutOfMemoryError("no room for text 1"),
    ],
    ids=["python", "numpy", "torch", "onnxruntime", "ours"],
)
def test_that_memory_ran_out_is_still_seen_afterwards(error: Exception) -> None:
    arrived = carried(error)
    assert is_out_of_memory(arrived)
    assert str(error) in str(arrived)


def test_an_error_of_ours_that_has_no_name_elsewhere_arrives_as_words() -> None:
    class LocalError(ServiceError):
        """Known to this function only."""

    unpicklable = InvalidTextError("text 0 is bad", 0)
    vars(unpicklable)["handle"] = lambda: None
    for error in (LocalError("local"), unpicklable):
        arrived = carried(error)
        assert type(arrived) is InferenceError
        assert str(arrived) == f"inference failed: {type(error).__name__}: {error}"
