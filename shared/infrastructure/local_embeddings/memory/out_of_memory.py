"""Tell a want of memory from other failures: each library has its own way to say it."""

from __future__ import annotations

import errno
import re

from shared.infrastructure.local_embeddings.errors import WorkerCrashedError
from shared.infrastructure.resilience.errors import ServiceError

# Libraries that do not raise MemoryError say it in words only. In this order: torch on a CPU,
# its like on Windows, ONNX Runtime's arena, the C++ library's two names, CUDA and oneDNN, cuBLAS
# and cuDNN.
_WORDS = re.compile(
    r"can't allocate memory"
    r"|not enough memory: you tried to allocate"
    r"|failed to allocate memory"
    r"|bad[_ ]alloc"
    r"|out[_ ]of[_ ]memory"
    r"|STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether `exc`, or an error that it was raised from, says that memory ran out.

    That of a GPU counts as well as that of the machine.
    """
    seen: set[int] = set()
    error: BaseException | None = exc
    while error is not None and id(error) not in seen:
        if _says_so(error):
            return True
        seen.add(id(error))
        error = error.__cause__
    return False


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    # By name: torch's class is not to be imported only to be asked for.
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    if isinstance(error, WorkerCrashedError):
        return error.was_killed
    # Our own errors may quote what a caller wrote.
    if isinstance(error, ServiceError) or not isinstance(error, Exception):
        return False
    return _WORDS.search(str(error)) is not None
