"""Read the command line, run a command, and say in one line what went wrong."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from services.embedding.cli import bench, embed, models, serve, warm
from services.embedding.cli.flags import name_flags
from shared.infrastructure.resilience import ConfigurationError, ServiceError

_PROGRAM = "python -m services.embedding"
_COMMANDS = {"serve": serve, "embed": embed, "bench": bench, "warm": warm, "models": models}
_EPILOG = (
    "Every setting is an environment variable, such as EMBEDDING_MODEL_NAME; a flag goes before "
    "its variable. Secrets are variables only: EMBEDDING_API_KEYS, EMBEDDING_REMOTE_API_KEY, "
    "EMBEDDING_CACHE_REDIS_URL. Exit status: 0, 1 for a failure, 2 for wrong use, 130 for Ctrl-C."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, `serve` if none is named; return the exit status.

    Raises:
        SystemExit: The arguments are wrong (2), or ask for help (0).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0] not in {*_COMMANDS, "-h", "--help"}):
        given.insert(0, "serve")
    options = _parser().parse_args(given)
    try:
        return int(_COMMANDS[options.command].run(options))
    except ServiceError as exc:
        sys.stderr.write(f"error: {name_flags(str(exc), options)}\n")
        return 2 if isinstance(exc, ConfigurationError) else 1
    except BrokenPipeError:
        # Nobody reads on: that is no failure to tell of, also not when the interpreter flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, UnicodeError) as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Embed texts: serve them over HTTP, or do it here. No command means serve.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        told = commands.add_parser(
            name,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            epilog=_EPILOG,
            allow_abbrev=False,
        )
        command.add_arguments(told)
        told.add_argument("--json", action="store_true", help="write JSON to standard output")
    return parser
