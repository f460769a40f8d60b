"""Trends that forebode a failure: errors on the rise, and answers that have stopped coming.

Both compare the service with itself, so neither needs a threshold of its own.

*Errors.* Each outcome adds its log-likelihood ratio, of an error rate at which the odds of failing
are twelve times the usual against the usual one, to a sum that never falls below 0 [CUSUM: Page,
Continuous Inspection Schemes, 1954]. The last instant at which the sum was 0 is when the change
began, so a short burst can be told from a rise.

*Silence.* Every call begun since the last success, and not answered although its kind usually is,
adds minus the logarithm of the probability to wait that long, by the usual latencies taken as
log-normal [after the accrual failure detector: Hayashibara et al., 2004]. So a service that hangs
is found out by what does not happen, long before the first call times out.

Rising latency alone forebodes nothing: a service under load gets slower and goes on answering. It
only makes the silence longer that is still usual.
"""

from __future__ import annotations

import math

from pydantic import BaseModel, Field

# Odds of failing that are looked for, relative to the usual ones.
_ODDS = 12.0
# Error rate that is usual at least: no service is perfect, and a new one has no record.
_LOWEST_RATE = 0.05
# Weight of one outcome in the usual error rate, and in the usual latency; at the beginning more.
_RATE_WEIGHT, _LATENCY_WEIGHT = 0.001, 0.05
# Good outcomes a new service is credited with.
_CREDIT = 100
# Latencies to be seen before silence means anything.
_ENOUGH_LATENCIES = 20
# A silence is no news below this multiple of the median latency.
_USUAL_TIMES = 3.0
# Variance of the logarithm of latency that is assumed at least: however steady a service is, one
# late call must not be evidence enough.
_LEAST_VARIANCE = 0.1


class TrendConfig(BaseModel, frozen=True, extra="forbid"):
    """When a trend is taken for the beginning of a failure.

    Attributes:
        lasting: Seconds for which errors must have been on the rise, or answers missing; 3; above
            0. Also the longest pause of the service, a garbage collection say, that opens nothing.
        evidence: Log-likelihood ratio that is enough; 12, which is odds of 160,000 to 1; above 0.
    """

    lasting: float = Field(default=3.0, gt=0, allow_inf_nan=False)
    evidence: float = Field(default=12.0, gt=0, allow_inf_nan=False)


class Trend:
    """Learns how a service usually does, and says when it begins to do worse.

    Args:
        config: What is enough.
        minimum_waiting: Calls without an answer below which silence means nothing.
    """

    def __init__(self, config: TrendConfig, minimum_waiting: int) -> None:
        self._config = config
        self._minimum_waiting = minimum_waiting
        self._usual_rate = 0.0
        self._outcomes = _CREDIT
        self._rising_since = 0.0
        # Calls begun since the last success and not over, oldest first, with their beginnings.
        self._waiting: dict[object, float] = {}
        self.clear()

    def begin(self, call: object, now: float) -> None:
        """Take note that a call begins."""
        self._waiting[call] = now

    def forget(self, call: object) -> None:
        """Take a call back that came to nothing."""
        self._waiting.pop(call, None)

    def succeed(self, latency: float | None) -> None:
        """Take note of a good answer and the seconds it took, if known."""
        self._waiting.clear()
        self._weigh(failed=False)
        if latency is not None:
            self._learn(math.log(max(latency, 1e-6)))

    def fail(self, call: object, now: float) -> str | None:
        """Take note of a failure; return why it is enough, if it is."""
        self.forget(call)
        if self._score == 0.0:
            self._rising_since = now
        self._weigh(failed=True)
        rising_for = now - self._rising_since
        if self._score >= self._config.evidence and rising_for >= self._config.lasting:
            return f"failures have been on the rise for {rising_for:.1f} s"
        return None

    def silence(self, now: float) -> str | None:
        """Return why the lack of answers is enough, if it is."""
        waiting = self._waiting
        if len(waiting) < self._minimum_waiting or self._latencies < _ENOUGH_LATENCIES:
            return None
        lasted = now - next(iter(waiting.values()))
        usual = _USUAL_TIMES * math.exp(self._log_latency)
        if lasted < max(self._config.lasting, usual):
            return None
        if sum(self._surprise(now - began) for began in waiting.values()) < self._config.evidence:
            return None
        return f"none of {len(waiting)} calls was answered in {lasted:.1f} s"

    def clear(self) -> None:
        """Begin anew; only the usual error rate is remembered.

        A service may be slower after a failure. Its new latency could never be learned if, by the
        old one, its silence was enough before the first answer.
        """
        self._score = 0.0
        self._latencies = 0
        self._log_latency = self._variance = 0.0

    def _weigh(self, *, failed: bool) -> None:
        rate = max(self._usual_rate, _LOWEST_RATE)
        against = math.log(1.0 - rate + _ODDS * rate)
        self._score = max(0.0, self._score - against + (math.log(_ODDS) if failed else 0.0))
        self._outcomes += 1
        weight = max(_RATE_WEIGHT, 1.0 / self._outcomes)
        self._usual_rate += weight * (failed - self._usual_rate)

    def _learn(self, log_latency: float) -> None:
        self._latencies += 1
        weight = max(_LATENCY_WEIGHT, 1.0 / self._latencies)
        off = log_latency - self._log_latency
        self._log_latency += weight * off
        self._variance += weight * (off * (log_latency - self._log_latency) - self._variance)

    def _surprise(self, waited: float) -> float:
        """Return minus the logarithm of the probability that an answer takes longer."""
        if waited <= 0.0:
            return 0.0
        deviation = math.sqrt(2.0 * max(self._variance, _LEAST_VARIANCE))
        longer = math.erfc((math.log(waited) - self._log_latency) / deviation) / 2.0
        return -math.log(longer) if longer > 0.0 else math.inf
