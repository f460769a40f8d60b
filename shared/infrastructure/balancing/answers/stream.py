"""A stream of events that is what it says it is, or ends with an error."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import ClassVar, NamedTuple

import httpx

from shared.infrastructure.balancing.answers.sse import MAX_EVENT_BYTES, ServerEvent, SSEParser
from shared.infrastructure.balancing.answers.watchdog import Watchdog
from shared.infrastructure.balancing.call import FAULT, Attempt, Hold, JSONObject
from shared.infrastructure.balancing.classify import fault_of, fault_of_error
from shared.infrastructure.balancing.dialects import Dialect, Event
from shared.infrastructure.balancing.errors import (
    FirstTokenTimeoutError,
    InBandError,
    InvalidStreamError,
    StreamIdleTimeoutError,
    StreamTruncatedError,
)
from shared.infrastructure.balancing.semantics import POOL
from shared.infrastructure.http.errors import ReadTimeoutError
from shared.infrastructure.http.watched import Watched
from shared.infrastructure.resilience import Clock, ServiceError, Verdict
from shared.infrastructure.resilience.layer import summary

# How much of a stream may be held back: until its first content, one event as large as any.
_MAX_HELD: dict[Hold, int] = {"first": MAX_EVENT_BYTES + 2**20, "whole": 64 * 2**20}
# Seconds a stream may take to end after its end mark, so that its connection is reused; after it
# said why every answer ended, for the usage and the verdict of a filter; and after the usage.
_LINGER, _LINGER_FINISHED, _LINGER_USAGE = 0.1, 5.0, 1.0


class AnswerLimits(NamedTuple):
    """How long an answer may take, and from what to what, in seconds.

    Attributes:
        idle: From content to content of a stream.
        idle_bytes: From byte to byte of a stream.
        silence: From byte to byte of a plain answer.
        min_rate: Characters a second that a stream must bring; None is any.
        window: Seconds over which they are counted.
    """

    idle: float
    idle_bytes: float
    silence: float
    min_rate: float | None
    window: float


class StreamTerms(NamedTuple):
    """What makes a stream whole.

    Attributes:
        dialect: How its events are read.
        answers: How many answers it has to finish.
        is_typed: Whether what is no JSON is passed over.
    """

    dialect: Dialect
    answers: int
    is_typed: bool = True


class CheckedStream(Watched, httpx.AsyncByteStream):
    """An event stream whose end is an error, unless it said that it was complete.

    Iterated, it gives the bytes as they came; a second iteration goes on where the first left off.

    Args:
        inner: The body as it comes off the wire.
        terms: What makes it whole.
        limits: How long it may take.
        attempt: Takes note of what comes.
        watchdog: Knows how long it may take.
        clock: Source of monotonic time.

    Attributes:
        error: What it ended with; None as long as nothing is wrong with it.
    """

    is_judged: ClassVar[bool] = True

    def __init__(
        self,
        inner: httpx.AsyncByteStream,
        terms: StreamTerms,
        limits: AnswerLimits,
        attempt: Attempt,
        watchdog: Watchdog,
        clock: Clock,
    ) -> None:
        super().__init__(Verdict.OK)
        self.error: BaseException | None = None
        self._inner = inner
        self._advance = aiter(inner).__anext__
        self._terms = terms
        self._limits = limits
        self._read_event = terms.dialect.read_event
        self._attempt = attempt
        self._watchdog = watchdog
        self._clock = clock
        self._parser = SSEParser()
        self._held: deque[bytes] = deque()
        self._events: list[Event] = []
        self._finished = set[int]()
        self._is_whole = False
        self._is_fickle = False
        self._linger = math.inf
        self._has_begun = self._is_last = False
        self._reported: JSONObject | None = None

    @property
    def held(self) -> bytes:
        """What came and was not handed up yet."""
        return b"".join(self._held)

    async def open(self, hold: Hold) -> JSONObject | None:
        """Read up to the first content, or all of it; return the host's error if one comes."""
        size, most = 0, _MAX_HELD[hold]
        while not self._has_begun or hold == "whole":
            piece = await self._next()
            if self._reported is not None:
                return self._reported
            if piece is None:
                break
            self._held.append(piece)
            size += len(piece)
            if size > most:
                raise InvalidStreamError(f"more than {most} bytes, and no answer yet")
        return None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        held = self._held
        while held:
            yield held.popleft()
        while (piece := await self._next()) is not None:
            yield piece

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield what the events mean, but for the end mark and for what is no JSON.

        Either this or the bytes can be had, not both.

        Raises:
            InBandError: The host reported an error.
            InvalidStreamError: An event is no JSON, or nothing says that the answer is complete.
            SilenceError: The host says nothing any more, or too little.
            UpstreamError: The connection broke.
            DeadlineExceededError: The deadline of the call passed.
        """
        replay = SSEParser()
        while self._held:
            for event in self._meanings(replay.feed(self._held.popleft())):
                yield event
        if self._is_over:
            with contextlib.suppress(InvalidStreamError):  # half an event after all was said
                for event in self._meanings(replay.flush()):
                    yield event
        is_over = False
        while not is_over:
            failure: Exception | None = None
            try:
                is_over = await self._next() is None
            except Exception as exc:
                failure = exc
            for event in self._events:
                yield event
            if failure is not None:
                raise failure

    async def aclose(self) -> None:
        """Want no more of it; upstream is closed at once."""
        reported = self._reported
        await self._close(None if reported is None else self._in_band_error(reported))

    async def _next(self) -> bytes | None:
        """Return the next piece, its events taken note of; None at the end."""
        self._events = []
        if self._is_last:
            return await self._after_last()
        try:
            self._watchdog.wait()
            piece = await self._advance()
            self._watchdog.rest()
            self._take_note(self._parser.feed(piece))
        except StopAsyncIteration:
            return await self._at_end()
        except BaseException as exc:
            await self._at_failure(exc)
            return None
        return piece

    async def _after_last(self) -> bytes | None:
        """Do what there is to do once nothing more is expected; an error is raised again."""
        if self.error is None and not self._is_over:
            if self._reported is not None:
                await self._close(self._in_band_error(self._reported))
            else:
                await self._drain()
        if self.error is not None:
            raise self.error
        return None

    async def _drain(self) -> None:
        try:
            while True:
                self._watchdog.wait()
                await self._advance()
                self._watchdog.rest()
        except StopAsyncIteration:
            await self._close(None)
        except BaseException as exc:
            await self._at_failure(exc)

    async def _at_end(self) -> bytes | None:
        """Take note that nothing comes any more.

        Raises:
            StreamTruncatedError: There should have been more.
        """
        failure: Exception | None = None
        try:
            self._take_note(self._parser.flush())
        except InvalidStreamError as exc:
            failure = exc
        if self._reported is not None:
            return b""
        if not self._is_whole:
            ending = " nor ".join(self._terms.dialect.ending)
            problem = f"the stream ended with neither {ending}"
            error = StreamTruncatedError(problem, host=self._attempt.host)
            await self._close(error)
            raise error from failure
        await self._close(None)
        return None

    async def _at_failure(self, exc: BaseException) -> None:
        """Raise what went wrong; once all has been said, how it ends no longer matters."""
        error = self._watchdog.claim(exc)
        # A host that went on after it had said why it ended may do so again.
        is_doubtful = self._is_fickle and not self._is_last
        if self._is_whole and isinstance(error, Exception) and not is_doubtful:
            await self._close(None)
            return
        if isinstance(error, ReadTimeoutError):
            error = self._silence(error)
        if isinstance(error, ServiceError):
            error.host = self._attempt.host
        await self._close(error)
        if error is exc:
            raise error
        raise error from exc

    def _take_note(self, events: list[ServerEvent]) -> None:
        """Take note of events, up to an error that the host reports."""
        read, attempt = self._read_event, self._attempt
        found, done = self._events, self._finished
        has_content = has_news = False
        for name, data in events:
            event = read(name, data)
            chunk, characters, said, finished, is_end, error, usage = event
            if chunk is None:
                self._pass_over(data, is_end=is_end)
            elif error is not None:
                self._reported, self._is_last = error, True
                return
            else:
                found.append(event)
            if said:
                has_content = True
                attempt.characters += characters
                if done:
                    self._revoke(said)
            if usage is not None or finished or is_end:
                has_news = True
                self._take_note_of_end(event)
        if has_content:
            if self._has_begun:
                self._watchdog.hear(attempt.characters)
            else:
                self._begin()
        if has_news:
            self._finish()

    def _pass_over(self, data: bytes, *, is_end: bool) -> None:
        """Take note of an event that is no JSON: the end mark, or one that nobody is to see."""
        if is_end:
            return
        if not self._terms.is_typed:
            raise InvalidStreamError(f"an event is no JSON: {data[:200]!r}")
        self._attempt.malformed += 1

    def _take_note_of_end(self, event: Event) -> None:
        """Take note of usage, of a finish, or of the end mark."""
        if event.usage is not None:
            self._attempt.usage = {**(self._attempt.usage or {}), **event.usage}
        self._finished.update(event.finished)
        self._is_last = self._is_last or event.is_end

    def _revoke(self, said: tuple[int, ...]) -> None:
        """Take note of content of answers: one that was finished is not, then."""
        if self._is_last or self._finished.isdisjoint(said):
            return
        self._finished.difference_update(said)
        self._is_fickle, self._is_whole = True, False
        self._linger = math.inf
        self._expect_more()

    def _begin(self) -> None:
        """Take note of the first content."""
        attempt = self._attempt
        self._has_begun = True
        attempt.first_token_at = self._clock.now()
        self._expect_more()
        self._watchdog.hear(attempt.characters)

    def _expect_more(self) -> None:
        limits, watchdog = self._limits, self._watchdog
        watchdog.allow(limits.idle, StreamIdleTimeoutError)
        if limits.min_rate is not None:
            watchdog.pace(limits.min_rate, limits.window)

    def _finish(self) -> None:
        """Take note of the end of an answer, or of the stream, or of what came after all answers.

        Raises:
            StreamTruncatedError: There has been no answer.
        """
        if self._is_last and not (self._has_begun or self._finished):
            raise StreamTruncatedError("the stream ended before it had begun")
        self._is_whole = self._is_last or len(self._finished) >= self._terms.answers
        if not self._is_whole:
            return
        self._has_begun = True
        self._watchdog.unpace()
        if self._is_last:
            lasts = _LINGER
        elif self._is_fickle:
            return
        else:
            lasts = _LINGER_FINISHED if self._attempt.usage is None else _LINGER_USAGE
            lasts = min(lasts, self._limits.idle)
        if lasts < self._linger:  # and no frame makes it longer again
            self._linger = lasts
            self._watchdog.allow(lasts, StreamIdleTimeoutError)

    def _meanings(self, events: list[ServerEvent]) -> list[Event]:
        read = self._read_event
        found = [read(name, data) for name, data in events]
        return [event for event in found if event.data is not None]

    def _silence(self, cause: ReadTimeoutError) -> ServiceError:
        kind = StreamIdleTimeoutError if self._has_begun else FirstTokenTimeoutError
        return kind(str(cause), host=self._attempt.host)

    def _in_band_error(self, reported: JSONObject) -> InBandError:
        words = reported.get("message") or str(reported)[:200]
        error = InBandError(f"the host reported an error: {words}", host=self._attempt.host)
        setattr(error, FAULT, fault_of_error(200, reported))
        return error

    async def _close(self, error: BaseException | None) -> None:
        if self._is_over:
            return
        self._is_last = True
        self._watchdog.stop()
        verdict = Verdict.OK
        if error is not None:
            verdict = POOL.judge(error)
            self._attempt.fault, self._attempt.outcome = fault_of(error), summary(error)
        if error is not None and not isinstance(error, Exception):
            # For whoever reads on after a cancellation: it must not look like an end.
            error = StreamTruncatedError("the stream was closed before its end")
        self.error = error
        try:
            await self._inner.aclose()
        finally:
            self._end(verdict)
