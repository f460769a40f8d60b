"""Read a model directory the way sentence-transformers reads it.

A model ships up to four different limits and paddings: `tokenizer.json`, `tokenizer_config.json`,
`sentence_bert_config.json` and `config.json` may all disagree. One reading of them, used by every
backend, is what makes their vectors agree.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shared.infrastructure.local_embeddings.config import Pooling
from shared.infrastructure.local_embeddings.errors import UnsupportedModelError

Json = dict[str, Any]

# The names sentence-transformers has given this file, in the order it looks for them.
_ENCODER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_PLAIN_MODULES = {"Transformer", "Pooling", "Normalize"}


@dataclass(frozen=True)
class ModelFiles:
    """The facts in one model directory.

    Attributes:
        root: The directory.
        source: Where it came from, as `resolve` says it.
    """

    root: Path
    source: str = "directory"

    @cached_property
    def modules(self) -> list[tuple[str, Path]]:
        """The sentence-transformers modules: (type without its package, directory)."""
        entries: list[Json] = _read_json(self.root / "modules.json", default=[])
        return [
            (str(entry["type"]).rpartition(".")[2], self.root / str(entry.get("path", "")))
            for entry in entries
        ]

    @cached_property
    def encoder_dir(self) -> Path:
        """Directory of the encoder: its weights, configuration and tokenizer."""
        return next((path for kind, path in self.modules if kind == "Transformer"), self.root)

    @cached_property
    def config(self) -> Json:
        """The encoder's `config.json`."""
        path = self.encoder_dir / "config.json"
        if not path.is_file():
            raise UnsupportedModelError(f"{self.root} is no model directory: it has no config.json")
        config: Json = _read_json(path)
        return config

    @property
    def model_type(self) -> str:
        """Architecture of the encoder, such as `bert`."""
        return str(self.config.get("model_type", "unknown"))

    @cached_property
    def encoder_options(self) -> Json:
        """What sentence-transformers sets for the encoder, such as `max_seq_length`."""
        for name in _ENCODER_CONFIGS:
            options: Json = _read_json(self.encoder_dir / name, default={})
            if options:
                return options
        return {}

    @property
    def tokenizer_file(self) -> Path:
        """The `tokenizer.json` of the model."""
        path = self.encoder_dir / "tokenizer.json"
        if not path.is_file():
            raise UnsupportedModelError(
                f"{self.encoder_dir} has no tokenizer.json: write one with "
                "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
            )
        return path

    @cached_property
    def tokenizer_config(self) -> Json:
        """The tokenizer's `tokenizer_config.json`; empty if there is none."""
        config: Json = _read_json(self.encoder_dir / "tokenizer_config.json", default={})
        return config

    @property
    def max_positions(self) -> int:
        """Tokens the encoder has positions for."""
        positions = int(self.config.get("max_position_embeddings", -1))
        if positions <= 0:  # relative positions (xlnet writes -1): no bound of its own
            return 2**31
        if self.counts_positions_from_padding:
            return positions - int(self.config["pad_token_id"]) - 1
        return positions

    @property
    def counts_positions_from_padding(self) -> bool:
        """Whether the first token has the position after the padding token's id."""
        return self.model_type in {"roberta", "xlm-roberta", "camembert"}

    @cached_property
    def max_length(self) -> int:
        """Tokens of a text that sentence-transformers would read, special tokens included."""
        limit = self.encoder_options.get("max_seq_length")
        if limit is None:
            limit = self.tokenizer_config.get("model_max_length") or self.max_positions
        return int(min(limit, self.max_positions))

    @property
    def truncation_side(self) -> str:
        """End of a text that is cut off if it is too long: `right` or `left`."""
        return str(self.tokenizer_config.get("truncation_side") or "right")

    @cached_property
    def lowercases(self) -> bool:
        """Whether texts are lower-cased before the tokenizer sees them."""
        return bool(self.encoder_options.get("do_lower_case", False))

    @cached_property
    def prompts(self) -> dict[str, str]:
        """Prompts by name, such as `query`; a caller puts them in front of a text."""
        prompts: Json = self._sentence_config.get("prompts") or {}
        return {str(name): str(text) for name, text in prompts.items() if text}

    @cached_property
    def default_prompt(self) -> str:
        """What the model wants in front of every text; usually nothing.

        Raises:
            UnsupportedModelError: The pooling would have to leave the prompt's tokens out.
        """
        prompt = self.prompts.get(self._sentence_config.get("default_prompt_name") or "", "")
        if prompt and not self._pooling_config.get("include_prompt", True):
            raise UnsupportedModelError(f"{self.root} leaves its prompt out of the pooling")
        return prompt

    @cached_property
    def pooling(self) -> str:
        """Name of the pooling, as sentence-transformers names it; `mean` if nothing is said."""
        config = self._pooling_config
        modes = config.get("pooling_mode")
        if modes is None:
            modes = [mode for key, mode in _LEGACY_POOLING.items() if config.get(key)]
        if isinstance(modes, str):
            return modes
        return "+".join(modes) or "mean"

    def plain_pooling(self, override: Pooling | None) -> Pooling:
        """Return the pooling of a model that is an encoder and a pooling, nothing more.

        Raises:
            UnsupportedModelError: It has other modules, or a pooling that is not ours.
        """
        extra = [kind for kind, _ in self.modules if kind not in _PLAIN_MODULES]
        if extra:
            raise UnsupportedModelError(
                f"{self.root} has modules beyond encoder and pooling ({', '.join(extra)}): use "
                "backend SENTENCE_TRANSFORMERS"
            )
        if override is not None:
            return override
        try:
            return Pooling(self.pooling)
        except ValueError:
            raise UnsupportedModelError(
                f"{self.root} pools by {self.pooling!r}: use backend SENTENCE_TRANSFORMERS, or "
                f"set pooling to one of {[mode.value for mode in Pooling]}"
            ) from None

    @cached_property
    def weights(self) -> list[Path]:
        """The safetensors files of all modules, in a fixed order; empty if there are none.

        Raises:
            UnsupportedModelError: A module has its weights only as a pickle.
        """
        directories = {self.encoder_dir, *(path for _, path in self.modules)}
        found: list[Path] = []
        for directory in sorted(directories):
            weights = sorted(directory.glob("*.safetensors"))
            if not weights and (pickles := sorted(directory.glob("pytorch_model*.bin"))):
                raise UnsupportedModelError(
                    f"{pickles[0]} is a pickle, and loading one runs code: convert it to "
                    "safetensors with save_pretrained(DIR)"
                )
            found += weights
        return found

    @property
    def onnx_file(self) -> Path | None:
        """The ONNX graph that came with the model, if one did."""
        names = ("onnx/model.onnx", "model.onnx")
        return next((self.root / name for name in names if (self.root / name).is_file()), None)

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of all safetensors; reads them once."""
        return digest(*map(file_digest, self.weights))

    def fingerprint(self, weights: str, max_length: int, pooling: str, dtype: str) -> str:
        """Return a SHA-256 of all that decides the un-normalised vector of a text.

        The library that runs the model is no part of it: in float32 all give the same vectors, so
        that they can share a cache.

        Args:
            weights: Digest of the weights that run.
            max_length: Tokens of a text that are read.
            pooling: How token vectors become one.
            dtype: Number format of the arithmetic.
        """
        configs = [path / "config.json" for _, path in self.modules if path != self.encoder_dir]
        return digest(
            "embedding-1",
            weights,
            file_digest(self.tokenizer_file),
            json.dumps([self.config, self.lowercases, self.default_prompt, self.truncation_side]),
            *(path.read_text(encoding="utf-8") for path in configs if path.is_file()),
            str(max_length),
            pooling,
            dtype,
        )

    @cached_property
    def _sentence_config(self) -> Json:
        config: Json = _read_json(self.root / "config_sentence_transformers.json", default={})
        return config

    @cached_property
    def _pooling_config(self) -> Json:
        directory = next((path for kind, path in self.modules if kind == "Pooling"), None)
        config: Json = _read_json(directory / "config.json") if directory else {}
        return config


def digest(*fields: str) -> str:
    """Return the SHA-256 of fields, each with its length, so that no two lists of them agree."""
    sha = hashlib.sha256()
    for field in fields:
        data = field.encode()
        sha.update(len(data).to_bytes(8, "big") + data)
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path, default: Any = None) -> Any:
    if default is not None and not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise UnsupportedModelError(f"cannot read {path}: {exc}") from exc
