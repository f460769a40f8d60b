"""`models`: which models and which libraries are on this machine."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from services.embedding.cli.flags import add_flags, settings_of
from services.embedding.cli.model_finder import FoundModel, backends_here, models_here
from services.embedding.cli.output import tell

SUMMARY = "list the models and the libraries that are on this machine"
DESCRIPTION = (
    "List the models in --model-root, in installed packages and in the hub's cache, by the names "
    "that --model takes, and the libraries that can run them. Nothing is downloaded or loaded."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the model."""
    add_flags(parser, "model")


def run(options: argparse.Namespace) -> int:
    """List."""
    settings = settings_of(options)
    models = list(models_here(settings.model_root))
    backends = backends_here()
    result = {"models": [asdict(model) for model in models], "backends": backends}
    lines = [_line(model) for model in models] or ["no model is on this machine"]
    lines += ["", "backends:"]
    lines += [f"  {name}  {version or 'not installed'}" for name, version in backends.items()]
    tell(result, "\n".join(lines), as_json=options.json)
    return 0


def _line(model: FoundModel) -> str:
    size = f"{model.size_bytes / 2**20:,.0f} MiB"
    if model.problem is not None:
        return f"{model.name}\n  {size}  cannot be used: {model.problem}"
    fingerprint = f"  {model.fingerprint[:12]}" if model.fingerprint else ""
    return (
        f"{model.name}\n  {size}  {model.dimension} numbers, {model.max_length} tokens"
        f"{fingerprint}  {model.path}"
    )
