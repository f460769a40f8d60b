"""Messages between a process and its worker: pickled, the numbers of their arrays beside them.

Both ends are ours and have the same rights, so that a pickle lets neither do what it could not.
"""

from __future__ import annotations

import contextlib
import copyreg
import io
import pickle
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.local_embeddings.vectors import Vectors

# Length of the pickle and number of arrays; then the length of each array, and the pickle.
_HEAD = struct.Struct("<QQ")
_LENGTH = struct.Struct("<Q")

# A message as the parts in which it is sent.
Packed = list[memoryview]


class ChannelClosedError(Exception):
    """The process at the other end is gone."""


class Channel:
    """One end of a stream socket.

    Attributes:
        lock: Keeps a request and its answer together where several threads ask.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.lock = threading.Lock()
        self._socket = sock
        self._socket.setblocking(False)

    @property
    def has_news(self) -> bool:
        """Whether a message, or the end, has arrived."""
        try:
            return self._poll(select.POLLIN, 0.0)
        except ValueError:  # another thread has closed it
            return True

    def send(self, message: Packed, deadline: float | None = None) -> None:
        """Send what `pack` made of a message; `deadline` is on `time.monotonic`.

        Raises:
            ChannelClosedError: The other end is gone.
            TimeoutError: It did not take the message in time.
        """
        parts = [part for part in message if len(part)]
        while parts:
            try:
                # All in one system call: each would wake the reader.
                sent = self._socket.sendmsg(parts)
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
                continue
            except OSError as exc:
                raise ChannelClosedError from exc
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]

    def receive(self, deadline: float | None = None, into: Vectors | None = None) -> Any:
        """Return the next message; its last array lies in `into`, if it fits exactly.

        Raises:
            ChannelClosedError: The other end is gone.
            TimeoutError: No whole message came in time.
        """
        size, count = _HEAD.unpack(self._read(_HEAD.size, deadline))
        head = self._read(count * _LENGTH.size + size, deadline)
        arrays: list[memoryview] = []
        for (length,) in _LENGTH.iter_unpack(head[: count * _LENGTH.size]):
            is_last = len(arrays) == count - 1
            if is_last and into is not None and _holds(into, length):
                arrays.append(self._fill(into.data.cast("B"), deadline))
            else:
                arrays.append(self._read(length, deadline))
        body = head[count * _LENGTH.size :]
        return pickle.loads(body, buffers=arrays)  # noqa: S301 - the other end is ours

    def hang_up(self) -> None:
        """Let both ends see the end; a thread that waits here wakes up."""
        with contextlib.suppress(OSError):  # the other end may have been quicker
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up, and give the socket back as soon as no thread uses it."""
        self.hang_up()
        with self.lock:
            self._socket.close()

    def _read(self, size: int, deadline: float | None) -> memoryview:
        return self._fill(memoryview(bytearray(size)), deadline)

    def _fill(self, whole: memoryview, deadline: float | None) -> memoryview:
        rest = whole
        while len(rest):
            try:
                received = self._socket.recv_into(rest)
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
                continue
            except OSError as exc:
                raise ChannelClosedError from exc
            if not received:
                raise ChannelClosedError
            rest = rest[received:]
        return whole

    def _wait(self, event: int, deadline: float | None) -> None:
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._poll(event, remaining):
            raise TimeoutError

    def _poll(self, event: int, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._socket, event)
        return bool(poll.poll(None if timeout is None else timeout * 1000))


def pack(message: object) -> Packed:
    """Return a message in the form in which it is sent; arrays are not copied."""
    arrays: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=5, buffer_callback=arrays.append)
    pickler.dispatch_table = _REDUCERS
    pickler.dump(message)
    views = [array.raw() for array in arrays]
    lengths = b"".join(_LENGTH.pack(len(view)) for view in views)
    body = file.getvalue()
    return [memoryview(_HEAD.pack(len(body), len(views)) + lengths + body), *views]


def _holds(array: Vectors, size: int) -> bool:
    return array.nbytes == size > 0 and array.flags.c_contiguous


def _reduce_array(array: NDArray[Any]) -> tuple[Any, ...]:
    if array.dtype.kind not in _NUMBERS:
        return cast("tuple[Any, ...]", array.__reduce_ex__(5))
    # Not of a memoryview: one of another crashes the interpreter if both are garbage in a cycle.
    memory = pickle.PickleBuffer(cast("Any", np.ascontiguousarray(array)))
    return _array, (memory, array.dtype.str, array.shape)


def _array(memory: memoryview, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.frombuffer(memory, kind).reshape(shape)


def _reduce_batch(batch: TokenBatch) -> tuple[Any, ...]:
    return TokenBatch, (batch.ids, batch.offsets, batch.truncated, batch.prompt_tokens)


_NUMBERS = "biuf"  # kinds of dtypes

# The ways in which these pickle themselves take longer than all the rest of a request.
_REDUCERS: dict[type, Callable[[Any], Any]] = {
    **copyreg.dispatch_table,
    np.ndarray: _reduce_array,
    TokenBatch: _reduce_batch,
}
