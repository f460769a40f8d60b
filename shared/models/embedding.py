"""What embedding a text gives."""

from __future__ import annotations

from pydantic import BaseModel, computed_field


class EmbeddingResult(BaseModel, frozen=True):
    """One embedded text.

    Attributes:
        embedding: The vector, of length 1, as plain floats: it compares, serialises and indexes
            like any list, and `numpy.asarray` takes it. A list costs some 30 bytes a number; for
            many texts at once `ProductionEmbeddingService.embed_batch` gives one float32 array.
        token_count: Tokens the model read.
        truncated: Whether the end of the text was cut off before the model read it.
        cached: Whether the vector came out of the cache.
        model: Name of the model.
    """

    embedding: list[float]
    token_count: int
    truncated: bool = False
    cached: bool = False
    model: str

    @computed_field  # type: ignore[prop-decorator]  # mypy has no support for decorated properties
    @property
    def dimension(self) -> int:
        """Numbers in the vector."""
        return len(self.embedding)
