"""What was embedded is not embedded again: an exact cache in memory, in a file and in Redis."""

from services.embedding.caching.disk import DiskTier
from services.embedding.caching.keys import key_function, key_space
from services.embedding.caching.memory import MemoryTier
from services.embedding.caching.redis import RedisTier
from services.embedding.caching.tiers import EmbeddingCache, LowerTier

__all__ = [
    # tiers.py, keys.py
    "EmbeddingCache",
    "LowerTier",
    "key_function",
    "key_space",
    # memory.py, disk.py, redis.py
    "DiskTier",
    "MemoryTier",
    "RedisTier",
]
