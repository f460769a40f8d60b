"""sentence-transformers' own modules, fed with our token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.infrastructure.local_embeddings.backends.torch import TorchBackend
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.files import ModelFiles
from shared.infrastructure.local_embeddings.optional import require

if TYPE_CHECKING:
    import torch

    from shared.infrastructure.local_embeddings.backends.torch import Encoder


class SentenceTransformersBackend(TorchBackend):
    """Every module of a `SentenceTransformer`, but for the normalisation at its end."""

    def _load(self, config: LocalEmbeddingConfig, files: ModelFiles, dtype: torch.dtype) -> Encoder:
        library = require("sentence_transformers", extra="torch")
        model = library.SentenceTransformer(
            str(files.root),
            device=self._device,
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
                    dimension = int(files.config["hidden_size"])
                    modules[at] = type(module)(dimension, pooling_mode=config.pooling.value)

        def encode(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            features: dict[str, torch.Tensor] = {"input_ids": ids, "attention_mask": mask}
            for module in modules:
                features = module(features)
            return features["sentence_embedding"]

        return encode


def _kind(module: object) -> str:
    # By name, since the classes have moved between the library's versions.
    return type(module).__name__
