"""Token limits that two processes share through a real server."""

import pytest

from shared.infrastructure.balancing.accounting import Estimate, SharedTokenLimits
from shared.infrastructure.balancing.errors import TokenLimitError
from shared.infrastructure.balancing.hosts.config import HostLimits
from shared.infrastructure.resilience import RedisConfig, RedisStore
from tests.redis_server import RedisServer

LIMITS = HostLimits(requests_per_minute=100, tokens_per_minute=60_000)


async def test_what_one_process_took_the_other_has_not(redis: RedisServer) -> None:
    config = RedisConfig(url=redis.redis_url)
    async with RedisStore(config) as first_store, RedisStore(config) as second_store:
        one = SharedTokenLimits.in_redis("host", LIMITS, first_store)
        other = SharedTokenLimits.in_redis("host", LIMITS, second_store)
        held = await one.reserve(Estimate(40_000, 10_000))
        with pytest.raises(TokenLimitError) as refused:
            await other.reserve(Estimate(30_000, 0), max_wait=0.0)
        assert 0.0 < (refused.value.retry_after or 0.0) <= 20.0
        held.settle(10_000, 0)
        (await other.reserve(Estimate(30_000, 0), max_wait=2.0)).cancel()
