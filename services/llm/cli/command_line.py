"""Read the command line, run a command, and say in one line what went wrong."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from services.llm.cli.check import check
from services.llm.settings import LLMProcessSettings
from shared.infrastructure.flags import Flags
from shared.infrastructure.resilience import ConfigurationError, MissingExtraError, ServiceError

_FLAGS = Flags(LLMProcessSettings)
_PROGRAM = "python -m services.llm"
_EPILOG = (
    "Every setting is an environment variable, such as LLM_HOSTS; a flag goes before its variable. "
    "Secrets are variables only: LLM_API_KEY, LLM_API_KEYS, LLM_ADMIN_KEYS. Exit status: 0, 1 for "
    "a failure, 2 for wrong use, 130 for Ctrl-C."
)
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, `serve` if none is named; return the exit status.

    Raises:
        SystemExit: The arguments are wrong (2), or ask for help (0).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in {*_COMMANDS, "-h", "--help"}:
        given.insert(0, "serve")
    options = _parser().parse_args(given)
    try:
        return _COMMANDS[options.command][0](_FLAGS.settings_of(options))
    except ServiceError as exc:
        sys.stderr.write(f"error: {_FLAGS.name_flags(str(exc), options)}\n")
        return 2 if isinstance(exc, ConfigurationError) else 1
    except BrokenPipeError:
        # Nobody reads on: that is no failure to tell of, also not when the interpreter flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return 130


def _serve(settings: LLMProcessSettings) -> int:
    logging.basicConfig(format=_LOG_FORMAT)
    for name in ("services", "shared.infrastructure.server"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        from services.llm.process import serve  # noqa: PLC0415 - an extra's libraries
    except ModuleNotFoundError as exc:
        raise MissingExtraError("the LLM process", "server") from exc
    serve(settings)
    return 0


_COMMANDS = {
    "serve": (_serve, "offer the hosts as one, over HTTP, until SIGTERM (the default)"),
    "check": (check, "ask every host once how it is, and show what they say"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Several LLM hosts as one OpenAI-compatible server. No command means serve.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, summary) in _COMMANDS.items():
        _FLAGS.add(commands.add_parser(name, help=summary, epilog=_EPILOG, allow_abbrev=False))
    return parser
