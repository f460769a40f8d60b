"""What the page on the cache states is what the code has."""

import re
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from services.embedding import EmbeddingSettings
from services.embedding.caching import EmbeddingCache

PAGE = (Path(__file__).parents[2] / "docs" / "embedding-cache.md").read_text()


def keys(snapshot: dict[str, Any]) -> set[str]:
    nested = [keys(value) for value in snapshot.values() if isinstance(value, dict)]
    return set(snapshot).union(*nested)


def test_the_defaults_on_the_page_are_those_of_the_settings() -> None:
    stated = dict(re.findall(r"^\| `(cache_\w+)` \| `(.*?)` \|", PAGE, flags=re.MULTILINE))
    fields = EmbeddingSettings.model_fields
    # `cache_dir` is where calibration is kept.
    assert stated == {
        name: str(field.default)
        for name, field in fields.items()
        if name.startswith("cache_") and name != "cache_dir"
    }


def test_all_that_is_reported_is_on_the_page(tmp_path: Path) -> None:
    settings = EmbeddingSettings(
        cache_file=tmp_path / "cache.db", cache_redis_url=SecretStr("redis://127.0.0.1:1")
    )
    reported = keys(EmbeddingCache.from_settings(settings).snapshot())
    told = PAGE.split("## What it reports")[1]
    assert [key for key in sorted(reported) if f"`{key}`" not in told] == []
