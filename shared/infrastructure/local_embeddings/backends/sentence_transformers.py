"""sentence-transformers' own modules, fed with our token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.infrastructure.local_embeddings.backends.torch import (
    PaddedModel,
    TorchBackend,
    TorchModel,
    quiet,
)
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.optional import require
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch

if TYPE_CHECKING:
    import torch


class SentenceTransformersBackend(TorchBackend):
    """Every module of a `SentenceTransformer`, but for the normalisation at its end."""

    def _load(
        self,
        config: LocalEmbeddingConfig,
        files: ModelFiles,
        device: torch.device,
        dtype: torch.dtype,
    ) -> TorchModel:
        library = require("sentence_transformers", extra="torch")
        with quiet():
            model = library.SentenceTransformer(
                str(files.root),
                device=str(device),
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": dtype, "use_safetensors": True},
            )
        modules: list[Any] = list(model.eval())
        # Vectors are brought to length 1 at the end of everything, if they are wanted so.
        while _kind(modules[-1]) == "Normalize":
            modules.pop()
        if config.pooling:
            for at, module in enumerate(modules):
                if _kind(module) == "Pooling":
                    modules[at] = type(module)(
                        int(files.config["hidden_size"]),
                        pooling_mode=config.pooling.value,
                        include_prompt=module.include_prompt,
                    )

        def encode(ids: torch.Tensor, mask: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
            features: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
            if batch.prompt_tokens:
                features["prompt_length"] = batch.prompt_tokens
            for module in modules:
                features = module(features)
            vectors: torch.Tensor = features["sentence_embedding"]
            return vectors

        return PaddedModel(encode, device, files.pad_token_id)


def _kind(module: object) -> str:
    # By name, since the classes have moved between the library's versions.
    return type(module).__name__
