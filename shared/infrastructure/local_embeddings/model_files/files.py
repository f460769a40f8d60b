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

from shared.infrastructure.local_embeddings.config import Pooling
from shared.infrastructure.local_embeddings.errors import UnsupportedModelError
from shared.infrastructure.local_embeddings.model_files.model_json import Json, read_json
from shared.infrastructure.local_embeddings.model_files.modules import Module, read_modules
from shared.infrastructure.local_embeddings.model_files.weights import weights_in

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
# Architectures whose first token has the position after the padding token's id.
_POSITIONS_AFTER_PADDING = {
    "camembert",
    "data2vec-text",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
# They say who wrote the files, not what the files mean.
_NOTES = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
_TOKENIZER_OPTIONS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "tokenizer_class")


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
    def modules(self) -> list[Module]:
        """The sentence-transformers modules but for those that only training needs.

        Raises:
            UnsupportedModelError: One would run code that came with the model, or lies outside of
                its directory; or the model is no embedding model.
        """
        kind = self._sentence_config.get("model_type", "SentenceTransformer")
        if kind != "SentenceTransformer":
            raise UnsupportedModelError(f"{self.root} is a {kind}, which gives no embeddings")
        return read_modules(self.root)

    @cached_property
    def encoder_dir(self) -> Path:
        """Directory of the encoder: its weights, configuration and tokenizer."""
        kinds = (module.path for module in self.modules if module.kind == "Transformer")
        return next(kinds, self.root)

    @cached_property
    def config(self) -> Json:
        """The encoder's `config.json`."""
        path = self.encoder_dir / "config.json"
        if not path.is_file():
            raise UnsupportedModelError(f"{self.root} is no model directory: it has no config.json")
        return read_json(path)

    @property
    def model_type(self) -> str:
        """Architecture of the encoder, such as `bert`."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token."""
        pad = self.config.get("pad_token_id")
        return int(self.counts_positions_from_padding if pad is None else pad)

    @property
    def vocabulary(self) -> int | None:
        """How many token ids the encoder has vectors for; None if its configuration is silent."""
        size = self.config.get("vocab_size")
        return size and int(size)

    @cached_property
    def encoder_options(self) -> Json:
        """What sentence-transformers sets for the encoder, such as `max_seq_length`.

        Raises:
            UnsupportedModelError: An option changes tokens or vectors in a way that is not ours.
        """
        for name in _ENCODER_CONFIGS if self.modules else ():
            if options := read_json(self.encoder_dir / name, default={}):
                task = options.get("transformer_task", "feature-extraction")
                if task != "feature-extraction" or options.get("processing_kwargs"):
                    raise UnsupportedModelError(f"{name} of {self.root} has options for {task!r}")
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
        """The tokenizer's `tokenizer_config.json`, and what the encoder's options make of it."""
        config = read_json(self.encoder_dir / "tokenizer_config.json", default={})
        return config | self._tokenizer_options

    @property
    def max_positions(self) -> int:
        """Tokens the encoder has positions for."""
        positions = int(self.config.get("max_position_embeddings", -1))
        if positions <= 0:  # relative positions (xlnet writes -1): no bound of its own
            return 2**31
        if self.counts_positions_from_padding:
            return positions - self.pad_token_id - 1
        return positions

    @property
    def counts_positions_from_padding(self) -> bool:
        """Whether the first token has the position after the padding token's id."""
        return self.model_type in _POSITIONS_AFTER_PADDING

    @cached_property
    def max_length(self) -> int:
        """Tokens of a text that sentence-transformers would read, special tokens included."""
        limits = (
            self._tokenizer_options.get("model_max_length"),
            self.encoder_options.get("max_seq_length"),
            self.tokenizer_config.get("model_max_length"),
            self.tokenizer_config.get("max_len"),
        )
        limit = next((limit for limit in limits if limit is not None), self.max_positions)
        return int(min(limit, self.max_positions))

    @property
    def truncation_side(self) -> str | None:
        """End of a text that is cut off: `right` or `left`; None leaves it to the tokenizer."""
        side = self.tokenizer_config.get("truncation_side")
        return side and str(side)

    @cached_property
    def lowercases(self) -> bool:
        """Whether texts are lower-cased before the tokenizer sees them."""
        return bool(self.encoder_options.get("do_lower_case", False))

    @cached_property
    def prompts(self) -> dict[str, str]:
        """Prompts by name, such as `query`, to be put before a text."""
        prompts: Json = self._sentence_config.get("prompts") or {}
        return {name: str(text or "") for name, text in prompts.items()}

    @cached_property
    def default_prompt(self) -> str:
        """What the model wants before a text whose use is not known; usually nothing.

        Raises:
            UnsupportedModelError: The model names a prompt that it does not have.
        """
        name = self._sentence_config.get("default_prompt_name")
        known = {"query": "", "document": ""} | self.prompts
        if name is not None and name not in known:
            raise UnsupportedModelError(
                f"the default prompt of {self.root}, {name!r}, is not there"
            )
        return "" if name is None else known[name]

    @property
    def include_prompt(self) -> bool:
        """Whether the tokens of a prompt are part of the pooling."""
        return bool(self._pooling_config.get("include_prompt", True))

    @property
    def dimensions(self) -> int | None:
        """How many of a vector's first numbers the model's authors want; None is all."""
        dimensions = self._sentence_config.get("truncate_dim")
        return dimensions and int(dimensions)

    @cached_property
    def pooling(self) -> str:
        """Name of the pooling, as sentence-transformers names it."""
        config = self._pooling_config
        modes = config.get("pooling_mode")
        if modes is None:
            modes = [mode for key, mode in _LEGACY_POOLING.items() if config.get(key)]
        if isinstance(modes, str):
            return modes
        return "+".join(modes) or self._usual_pooling

    def plain_pooling(self, override: Pooling | None) -> Pooling:
        """Return the pooling of a model that is an encoder and a pooling, nothing more.

        Raises:
            UnsupportedModelError: It has other modules, or a pooling that is not ours.
        """
        kinds = [module.kind for module in self._deciding_modules]
        if kinds != ["Transformer", "Pooling"]:
            raise UnsupportedModelError(
                f"{self.root} is not just an encoder and a pooling, but {', '.join(kinds)}: use "
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
            UnsupportedModelError: A module has its weights only as a pickle, or elsewhere.
        """
        directories = {self.encoder_dir, *(module.path for module in self.modules)}
        return [path for directory in sorted(directories) for path in weights_in(directory)]

    @property
    def encoder_weights(self) -> list[Path]:
        """The safetensors files of the encoder alone."""
        return weights_in(self.encoder_dir)

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
        facts = {
            "encoder": {key: self.config[key] for key in self.config.keys() - _NOTES},
            "tokenizer": {key: self.tokenizer_config.get(key) for key in _TOKENIZER_OPTIONS},
            "lowercases": self.lowercases,
            "truncation_side": self.truncation_side,
            "default_prompt": self.default_prompt,
            "include_prompt": self.include_prompt,
            # The pooling's own file says the same in several ways, and may be overridden.
            "modules": [
                [module.kind, {} if module.kind in {"Transformer", "Pooling"} else module.config]
                for module in self._deciding_modules
            ],
        }
        return digest(
            "embedding-2",
            weights,
            file_digest(self.tokenizer_file),
            json.dumps(facts, sort_keys=True),
            str(max_length),
            pooling,
            dtype,
        )

    @property
    def _deciding_modules(self) -> list[Module]:
        """The modules that decide a vector but for its length: we end before the last Normalize."""
        if not self.modules:  # a bare encoder is given the usual pooling
            return [Module("Transformer", self.root), Module("Pooling", self.root)]
        modules = list(self.modules)
        while modules and modules[-1].kind == "Normalize":
            modules.pop()
        return modules

    @property
    def _usual_pooling(self) -> str:
        causal = str((self.config.get("architectures") or [""])[0]).endswith("ForCausalLM")
        bare = not self.modules and self.config.get("is_causal", True)
        return "lasttoken" if causal and bare else "mean"

    @property
    def _tokenizer_options(self) -> Json:
        options = self.encoder_options
        return dict(options.get("tokenizer_args") or options.get("processor_kwargs") or {})

    @cached_property
    def _sentence_config(self) -> Json:
        # Without modules, sentence-transformers reads nothing but the encoder.
        if not (self.root / "modules.json").is_file():
            return {}
        return read_json(self.root / "config_sentence_transformers.json", default={})

    @property
    def _pooling_config(self) -> Json:
        poolings = (module.config for module in self.modules if module.kind == "Pooling")
        return next(poolings, Json())


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
