"""Find the weights of a model: safetensors, whole or in shards, and never a pickle."""

from __future__ import annotations

from pathlib import Path

from shared.infrastructure.local_embeddings.errors import UnsupportedModelError
from shared.infrastructure.local_embeddings.model_files.model_json import read_json

_PICKLES = ("pytorch_model*.bin*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


def weights_in(directory: Path) -> list[Path]:
    """Return the safetensors files that make up one module, sorted; none if it has no weights.

    Raises:
        UnsupportedModelError: The weights are there only as a pickle, or a shard is missing or
            named outside of the directory; or they belong to another model that is not there.
    """
    if (directory / "adapter_config.json").is_file():
        raise UnsupportedModelError(
            f"{directory} holds an adapter for a model that lies elsewhere: merge the two, and "
            "save the result with save_pretrained(DIR)"
        )
    whole = directory / "model.safetensors"
    if whole.is_file():
        return [whole]
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return _shards(index)
    for pattern in _PICKLES:
        if pickle := next(iter(sorted(directory.glob(pattern))), None):
            raise UnsupportedModelError(
                f"{pickle} is a pickle, and loading one runs code: convert it to safetensors with "
                "save_pretrained(DIR)"
            )
    return []


def _shards(index: Path) -> list[Path]:
    names = sorted({str(name) for name in dict(read_json(index).get("weight_map", {})).values()})
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UnsupportedModelError(f"{index} names {name!r}, which is not beside it")
        if not name.endswith(".safetensors"):
            raise UnsupportedModelError(f"{index} names {name!r}, which is no safetensors file")
    return [index.parent / name for name in names]
