"""The bare encoder under torch, with our pooling: our own encoder where it knows the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.infrastructure.local_embeddings.backends.torch import (
    PaddedModel,
    TorchBackend,
    TorchModel,
    quiet,
)
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig, Pooling
from shared.infrastructure.local_embeddings.errors import UnsupportedModelError
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.optional import require
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch

if TYPE_CHECKING:
    import torch


class TransformersBackend(TorchBackend):
    """A bare encoder, then a pooling; for models that are no more than that.

    BERT and its kin run in `torch_encoder`, without padding; others in `transformers.AutoModel`.
    """

    def _load(
        self,
        config: LocalEmbeddingConfig,
        files: ModelFiles,
        device: torch.device,
        dtype: torch.dtype,
    ) -> TorchModel:
        pooling = files.plain_pooling(config.pooling)
        room = require("shared.infrastructure.local_embeddings.torch_encoder", extra="torch")
        if not room.Architecture.supports(files.config):
            return _automodel(files, pooling, device, dtype)
        try:
            encoder: TorchModel = room.TorchEncoder.load(
                files.encoder_weights,
                files.config,
                pooling=pooling.value,
                device=device,
                dtype=dtype,
            )
        except room.UnsupportedArchitectureError as exc:
            raise UnsupportedModelError(f"cannot run {files.root}: {exc}") from exc
        return encoder


def _automodel(
    files: ModelFiles, pooling: Pooling, device: torch.device, dtype: torch.dtype
) -> TorchModel:
    transformers = require("transformers", extra="torch")
    pool_texts = require(
        "shared.infrastructure.local_embeddings.torch_encoder.pooling", extra="torch"
    ).pool_texts
    with quiet():
        model = transformers.AutoModel.from_pretrained(
            files.encoder_dir,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    model.to(device).eval()

    def encode(ids: torch.Tensor, mask: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        tokens = model(input_ids=ids, attention_mask=mask).last_hidden_state
        vectors: torch.Tensor = pool_texts(tokens[mask.bool()], batch, pooling.value)
        return vectors

    return PaddedModel(encode, device, files.pad_token_id)
