"""Read the directory of a cross-encoder the way sentence-transformers reads it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from shared.infrastructure.local_embeddings.config import Pooling
from shared.infrastructure.local_embeddings.errors import UnsupportedModelError
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.model_files.model_json import Json
from shared.infrastructure.local_embeddings.model_files.modules import Module, read_modules

_SIGMOID = "Sigmoid"
_IDENTITY = "Identity"


@dataclass(frozen=True)
class CrossEncoderFiles(ModelFiles):
    """The facts in the directory of a cross-encoder."""

    @cached_property
    def modules(self) -> list[Module]:
        """None: the model is all in the directory itself.

        Raises:
            UnsupportedModelError: It has modules beside the model.
        """
        modules = read_modules(self.root)
        if any(module.kind != "Transformer" or module.path != self.root for module in modules):
            raise UnsupportedModelError(
                f"{self.root} is more than a cross-encoder with a classification head"
            )
        return []

    def plain_pooling(self, override: Pooling | None) -> Pooling:
        """Return where the head looks: at the first token."""
        return Pooling.CLS

    @property
    def is_sigmoid(self) -> bool:
        """Whether the scores are put between 0 and 1, as they are if nothing else is said.

        Raises:
            UnsupportedModelError: They are changed in another way.
        """
        options: Json = self.config.get("sentence_transformers") or {}
        path: object = options.get("activation_fn")
        if path is None:
            path = self.config.get("sbert_ce_default_activation_function")
        name = _SIGMOID if path is None else str(path)
        if name.startswith("torch."):
            name = name.rpartition(".")[2]
        if name not in {_SIGMOID, _IDENTITY}:
            raise UnsupportedModelError(f"{self.root} changes its scores by {path!r}")
        return name == _SIGMOID
