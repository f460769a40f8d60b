"""Load for a server that speaks HTTP/1.1, from one thread: raw sockets and epoll.

It shares its processors with the server it measures, so a request costs it some 20 microseconds.
"""

import contextlib
import gc
import heapq
import random
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Self

_CHUNK = 1 << 18
_HEAD_END = b"\r\n\r\n"


class Answer(NamedTuple):
    """What became of a request. Times are seconds of `time.perf_counter`.

    Attributes:
        due: When it was to be sent; in a closed loop, when it was.
        sent: When it was sent.
        done: When its answer was whole, or when there could be none any more.
        status: HTTP status; 0 if the connection broke or no answer came.
        retry_after: Seconds after which a refused client was told to come back.
        is_return: Whether it has come back after it was refused.
        request: What was sent.
    """

    due: float
    sent: float
    done: float
    status: int
    retry_after: float | None = None
    is_return: bool = False
    request: bytes = b""

    @property
    def seconds(self) -> float:
        """How long its client has waited, from the moment at which it was to be sent."""
        return self.done - self.due

    @property
    def is_good(self) -> bool:
        return self.status == 200


class Load(NamedTuple):
    """What a turn has shown.

    Attributes:
        answers: Those that came within the turn; of an open loop, all.
        seconds: How long the turn was.
        cpu: Processor seconds that the generator has used within it.
    """

    answers: list[Answer]
    seconds: float
    cpu: float

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.is_good]

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.good) / self.seconds

    @property
    def share(self) -> float:
        """Share of one processor that the generator has used."""
        return self.cpu / self.seconds

    def percentile(self, percent: float) -> float:
        """Return the seconds within which so many percent of the good answers came."""
        return percentile([answer.seconds for answer in self.good], percent)

    def lateness(self, percent: float) -> float:
        """Return by how many seconds so many percent of the requests were sent late at most."""
        return percentile([answer.sent - answer.due for answer in self.answers], percent)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent do not exceed; not a number if none is."""
    if not values:
        return float("nan")
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(0, int(rank) - 1)]


class _Connection:
    """A keep-alive connection with at most one request on its way."""

    __slots__ = ("due", "is_return", "received", "request", "sent", "socket", "unsent")

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(address)
        self.request = self.unsent = self.received = b""
        self.due = self.sent = 0.0
        self.is_return = False


class LoadGenerator:
    """Clients of one server. Use it as a context manager, which closes their connections.

    Args:
        address: Host and port.
        patience: Seconds to wait for answers after the last request was sent.
    """

    def __init__(self, address: tuple[str, int], *, patience: float = 20.0) -> None:
        self._address = address
        self._patience = patience
        self._epoll = select.epoll()
        self._idle: list[_Connection] = []
        self._busy: dict[int, _Connection] = {}
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (*self._idle, *self._busy.values()):
            connection.socket.close()
        self._epoll.close()

    def closed_loop(
        self,
        requests: Iterator[bytes],
        clients: int,
        seconds: float,
        *,
        warm_up: float = 1.0,
        mark: Callable[[], object] = lambda: None,
    ) -> Load:
        """Let each of `clients` send its next request as soon as it has the last answer.

        Args:
            requests: Whole requests, head and body; as many as are asked for.
            clients: Connections.
            seconds: Length of the turn.
            warm_up: Seconds before it, which do not count.
            mark: Called when the turn begins and when it ends.
        """
        answers: list[Answer] = []
        with _no_collections():
            for _ in range(clients):
                self._send(next(requests))
            self._repeat(requests, answers, time.perf_counter() + warm_up)
            answers.clear()
            mark()
            cpu, began = time.process_time(), time.perf_counter()
            self._repeat(requests, answers, began + seconds)
            elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
            mark()
            load = Load(list(answers), elapsed, cpu)
            self._drain(answers)
        return load

    def _repeat(self, requests: Iterator[bytes], answers: list[Answer], until: float) -> None:
        while (left := until - time.perf_counter()) > 0:
            for answer in self._poll(left):
                answers.append(answer)
                self._send(next(requests))

    def open_loop(
        self,
        requests: Iterator[bytes],
        rate: float,
        seconds: float,
        *,
        mark: Callable[[], object] = lambda: None,
        seed: int = 20,
    ) -> Load:
        """Send requests at random moments, whether or not the earlier ones have been answered.

        Who is refused comes back once, with the same request, when he was told to: in the place
        of a new one while the turn lasts, on top of nothing after it. So the rate offered stays
        as it is.

        Args:
            requests: Whole requests, head and body; as many as are asked for.
            rate: Requests a second, on average.
            seconds: Length of the turn; what comes back later is sent after it.
            mark: Called when the turn begins and when it ends.
            seed: Another one gives other moments.
        """
        rng = random.Random(seed)  # noqa: S311 - nothing is secret
        answers: list[Answer] = []
        returns: list[tuple[float, bytes]] = []
        with _no_collections():
            mark()
            cpu, began = time.process_time(), time.perf_counter()
            due = began + rng.expovariate(rate)
            while due < began + seconds:
                while due <= min(time.perf_counter(), began + seconds):
                    if returns and returns[0][0] <= due:
                        self._send(heapq.heappop(returns)[1], due, is_return=True)
                    else:
                        self._send(next(requests), due)
                    due += rng.expovariate(rate)
                self._collect(answers, returns, due - time.perf_counter())
            elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
            mark()
            self._await_returns(answers, returns)
            self._drain(answers)
        return Load(answers, elapsed, cpu)

    def _await_returns(self, answers: list[Answer], returns: list[tuple[float, bytes]]) -> None:
        until = time.perf_counter() + self._patience
        while (returns or self._busy) and (now := time.perf_counter()) < until:
            while returns and returns[0][0] <= now:
                due, request = heapq.heappop(returns)
                self._send(request, due, is_return=True)
            self._collect(answers, returns, min(returns[0][0] if returns else until, until) - now)

    def _collect(
        self, answers: list[Answer], returns: list[tuple[float, bytes]], wait: float
    ) -> None:
        for answer in self._poll(wait):
            answers.append(answer)
            if answer.retry_after is not None and not answer.is_return:
                heapq.heappush(returns, (answer.done + answer.retry_after, answer.request))

    def _send(self, request: bytes, due: float | None = None, *, is_return: bool = False) -> None:
        if self._idle:
            connection = self._idle.pop()
        else:
            connection = _Connection(self._address)
            self._epoll.register(connection.socket, select.EPOLLIN)
        self._busy[connection.socket.fileno()] = connection
        connection.sent = time.perf_counter()
        connection.due = connection.sent if due is None else due
        connection.is_return = is_return
        connection.request = connection.unsent = request
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        try:
            count = connection.socket.send(connection.unsent)
        except BlockingIOError:
            count = 0
        except OSError:
            return  # what is read next says so
        connection.unsent = connection.unsent[count:]
        if connection.unsent:
            self._epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)

    def _poll(self, wait: float) -> Iterator[Answer]:
        for file, event in self._epoll.poll(max(0.0, wait)):
            connection = self._busy.get(file)
            if connection is None:
                self._dismiss(file)
                continue
            if event & select.EPOLLOUT and connection.unsent:
                self._epoll.modify(connection.socket, select.EPOLLIN)
                self._flush(connection)
            if event & ~select.EPOLLOUT and (answer := self._receive(connection)):
                yield answer

    def _dismiss(self, file: int) -> None:
        """Close an idle connection that its server has closed."""
        for connection in self._idle:
            if connection.socket.fileno() == file:
                self._idle.remove(connection)
                connection.socket.close()
                return

    def _receive(self, connection: _Connection) -> Answer | None:
        try:
            chunk = connection.socket.recv(_CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            chunk = b""
        if not chunk:
            return self._finish(connection, 0, keep=False)
        data = connection.received = connection.received + chunk
        head_end = data.find(_HEAD_END)
        if head_end < 0:
            return None
        head = data[: head_end + 2].lower()
        length = _field(head, b"content-length")
        if length is None:
            raise ValueError(f"an answer must say how long it is: {head.decode()!r}")
        if len(data) < head_end + len(_HEAD_END) + int(length):
            return None
        keep = b"\r\nconnection: close\r\n" not in head
        status = int(head[9:12])
        retry_after = _field(head, b"retry-after") if status in {429, 503} else None
        return self._finish(connection, status, retry_after, keep=keep)

    def _finish(
        self, connection: _Connection, status: int, retry_after: bytes | None = None, *, keep: bool
    ) -> Answer:
        del self._busy[connection.socket.fileno()]
        connection.received = b""
        if keep:
            self._idle.append(connection)
        else:
            connection.socket.close()
        return Answer(
            connection.due,
            connection.sent,
            time.perf_counter(),
            status,
            None if retry_after is None else float(retry_after),
            connection.is_return,
            connection.request,
        )

    def _drain(self, answers: list[Answer]) -> None:
        """Wait for what is on its way; what does not come counts as not answered."""
        until = time.perf_counter() + self._patience
        while self._busy and (left := until - time.perf_counter()) > 0:
            answers.extend(self._poll(left))
        lost = list(self._busy.values())
        answers.extend(self._finish(connection, 0, keep=False) for connection in lost)


def _field(head: bytes, name: bytes) -> bytes | None:
    """Return the value of a header field; `head` is in lower case."""
    at = head.find(b"\r\n" + name + b":")
    if at < 0:
        return None
    at += len(name) + 3
    return head[at : head.find(b"\r", at)].strip()


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Collect no garbage: that would come between an answer and the time it came at."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def post(path: str, body: bytes, address: tuple[str, int]) -> bytes:
    """Return a whole request with a JSON body."""
    host = f"{address[0]}:{address[1]}"
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
