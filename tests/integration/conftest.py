from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.redis_server import RedisServer, serving_redis
from tests.workers import Open, opening


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


@pytest.fixture
def open_(tmp_path: Path) -> Iterator[Open]:
    with opening(tmp_path) as open_:
        yield open_


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads
