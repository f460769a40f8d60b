"""What `primitives` measures: each entry guards the same call that does nothing."""

# ruff: noqa: PLC0415 - a library that is missing must not keep the others from running

from collections.abc import Awaitable, Callable

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    CallStats,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerLayer,
    EndpointGuard,
    HealthMonitor,
    ObserveLayer,
    RateLimitConfig,
    RetryConfig,
    RetryLayer,
    TokenBucket,
    stack,
)

Call = Callable[[], Awaitable[object]]
Make = Callable[[], Awaitable[Call]]
Acquire = Callable[[], Awaitable[object]]

# No limiter makes anybody wait.
_AMPLE = 100_000_000


async def noop() -> None:
    """Do nothing."""


async def wire(_request: object) -> None:
    """Answer at once."""


async def _our_breaker() -> Call:
    breaker = CircuitBreaker(config=CircuitBreakerConfig())
    send = stack(wire, CircuitBreakerLayer(breaker), semantics=PLAIN_CALL)
    return lambda: send(None)


async def _aiobreaker() -> Call:
    import aiobreaker

    breaker = aiobreaker.CircuitBreaker()
    return lambda: breaker.call_async(noop)


async def _purgatory() -> Call:
    import purgatory

    breaker = await purgatory.AsyncCircuitBreakerFactory().get_breaker("service")

    async def call() -> None:
        async with breaker:
            await noop()

    return call


async def _circuitbreaker() -> Call:
    import circuitbreaker

    return circuitbreaker.CircuitBreaker().decorate(noop)


async def _pybreaker() -> Call:
    import pybreaker

    breaker = pybreaker.CircuitBreaker()

    async def call() -> None:
        with breaker.calling():
            await noop()

    return call


async def _hyx() -> Call:
    from hyx.circuitbreaker import consecutive_breaker

    return consecutive_breaker()(noop)


async def _interlock() -> Call:
    import interlock

    config = interlock.Config(window_type=interlock.WindowType.TIME_BASED, window_size=30)
    breaker = interlock.CircuitBreaker(name="service", config=config)
    return lambda: breaker.call_async(noop)


async def _nopanic() -> Call:
    import nopanic

    return nopanic.circuit_breaker()(noop)


async def _our_limiter() -> Call:
    return TokenBucket(_AMPLE, _AMPLE).acquire


async def _aiolimiter() -> Call:
    import aiolimiter

    return aiolimiter.AsyncLimiter(_AMPLE, 1.0).acquire


async def _pyrate_limiter() -> Call:
    import pyrate_limiter

    limiter = pyrate_limiter.Limiter(pyrate_limiter.Rate(_AMPLE, 1000))
    return lambda: limiter.try_acquire_async("service")


async def _limits() -> Call:
    from limits import RateLimitItemPerSecond
    from limits.aio.storage import MemoryStorage
    from limits.aio.strategies import SlidingWindowCounterRateLimiter

    limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
    item = RateLimitItemPerSecond(_AMPLE)
    return lambda: limiter.hit(item, "service")


async def _asyncio_throttle() -> Call:
    import asyncio_throttle

    return asyncio_throttle.Throttler(_AMPLE).acquire


async def _nopanic_limiter() -> Call:
    import nopanic

    return nopanic.rate_limit(_AMPLE)(noop)


async def _our_retry() -> Call:
    send = stack(wire, RetryLayer(RetryConfig()), semantics=PLAIN_CALL)
    return lambda: send(None)


async def _tenacity() -> Call:
    import tenacity

    return tenacity.retry(stop=tenacity.stop_after_attempt(4))(noop)


async def _stamina() -> Call:
    import stamina

    return stamina.retry(on=Exception, attempts=4)(noop)


async def _nopanic_retry() -> Call:
    import nopanic

    return nopanic.retry(attempts=4)(noop)


async def _our_stack() -> Call:
    guard = EndpointGuard(
        "service",
        health=HealthMonitor("service"),
        circuit_breaker=CircuitBreakerConfig(),
        rate_limit=RateLimitConfig(requests_per_second=_AMPLE),
    )
    layers = [ObserveLayer(CallStats()), RetryLayer(RetryConfig()), *guard.layers]
    send = stack(wire, *layers, semantics=PLAIN_CALL)
    return lambda: send(None)


async def _composed_by_hand() -> Call:
    import aiobreaker
    import aiolimiter
    import tenacity

    breaker = aiobreaker.CircuitBreaker()
    limiter = aiolimiter.AsyncLimiter(_AMPLE, 1.0)

    @tenacity.retry(
        stop=tenacity.stop_after_attempt(4), wait=tenacity.wait_random_exponential(max=60)
    )
    async def call() -> object:
        async with limiter:
            return await breaker.call_async(noop)

    return call


GROUPS: dict[str, dict[str, Make]] = {
    "Circuit breaker around a call": {
        "ours (window of 30 s)": _our_breaker,
        "interlock-cb (window of 30 s)": _interlock,
        "nopanic (window of 30 s)": _nopanic,
        "aiobreaker": _aiobreaker,
        "purgatory": _purgatory,
        "circuitbreaker": _circuitbreaker,
        "pybreaker": _pybreaker,
        "hyx": _hyx,
    },
    "Rate limiter with permits to spare": {
        "ours": _our_limiter,
        "aiolimiter": _aiolimiter,
        "pyrate-limiter": _pyrate_limiter,
        "limits (sliding counter)": _limits,
        "asyncio-throttle": _asyncio_throttle,
        "nopanic": _nopanic_limiter,
    },
    "Retry without a failure": {
        "ours": _our_retry,
        "tenacity": _tenacity,
        "stamina": _stamina,
        "nopanic": _nopanic_retry,
    },
    "All together: observed, retried, limited, broken, its health watched": {
        "ours": _our_stack,
        "tenacity + aiobreaker + aiolimiter": _composed_by_hand,
    },
}


def _our_line(rate: float, burst: int) -> Acquire:
    return TokenBucket(rate, burst).acquire


def _aiolimiter_line(rate: float, burst: int) -> Acquire:
    import aiolimiter

    return aiolimiter.AsyncLimiter(burst, burst / rate).acquire


def _throttle_line(rate: float, burst: int) -> Acquire:
    import asyncio_throttle

    return asyncio_throttle.Throttler(burst, burst / rate).acquire


def _pyrate_line(rate: float, burst: int) -> Acquire:
    import pyrate_limiter

    limiter = pyrate_limiter.Limiter(pyrate_limiter.Rate(burst, round(1000 * burst / rate)))
    return lambda: limiter.try_acquire_async("service")


LINES: dict[str, Callable[[float, int], Acquire]] = {
    "ours": _our_line,
    "aiolimiter": _aiolimiter_line,
    "asyncio-throttle": _throttle_line,
    "pyrate-limiter": _pyrate_line,
}
