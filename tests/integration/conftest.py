from collections.abc import Iterator

import pytest

from tests.redis_server import RedisServer, serving_redis


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with serving_redis() as server:
        yield server


@pytest.fixture
def redis(redis_server: RedisServer) -> RedisServer:
    """Lend the module's server, emptied."""
    with redis_server.admin() as admin:
        admin.flushall()
    return redis_server
