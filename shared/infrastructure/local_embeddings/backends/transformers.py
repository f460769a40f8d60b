"""The bare encoder under torch, with our pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.infrastructure.local_embeddings.backends.torch import TorchBackend
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig, Pooling
from shared.infrastructure.local_embeddings.files import ModelFiles
from shared.infrastructure.local_embeddings.optional import require

if TYPE_CHECKING:
    import torch

    from shared.infrastructure.local_embeddings.backends.torch import Encoder


class TransformersBackend(TorchBackend):
    """`transformers.AutoModel`, then a pooling; for models that are no more than that."""

    def _load(self, config: LocalEmbeddingConfig, files: ModelFiles, dtype: torch.dtype) -> Encoder:
        transformers = require("transformers", extra="torch")
        pooling = files.plain_pooling(config.pooling)
        model = transformers.AutoModel.from_pretrained(
            files.encoder_dir,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
        model.to(self._device).eval()

        def encode(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            tokens = model(input_ids=ids, attention_mask=mask).last_hidden_state
            return _pool(tokens, mask, pooling)

        return encode


def _pool(tokens: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    match pooling:
        case Pooling.MEAN:
            counts = mask.sum(dim=1, keepdim=True).clamp(min=1)
            weights = (mask / counts).to(tokens.dtype).unsqueeze(1)
            return (weights @ tokens).squeeze(1)
        case Pooling.CLS:
            return tokens[:, 0]
        case Pooling.MAX:
            return tokens.masked_fill(mask.unsqueeze(2) == 0, float("-inf")).amax(dim=1)
        case Pooling.LAST_TOKEN:
            rows = mask.new_tensor(range(len(mask)))
            return tokens[rows, mask.sum(dim=1) - 1]
