"""The main job on real input: read documents, answer questions, and lose a host on the way.

    python -m examples.demo [FOLDER] [--ask QUESTION]... [--picture FILE]

Starts the embedding process and three LLM hosts, embeds the passages of a folder, answers each
question from the passages closest to it, and kills a host in the middle. The exit status is 0 only
if every question was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from examples.demo.documents import read_passages, read_questions
from examples.demo.story import Story
from examples.demo.view import closing_report, make_view
from shared.infrastructure import ServiceError

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
INTERRUPTED = 130


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", nargs="?", type=Path, default=CORPUS, help="documents to read")
    parser.add_argument("--ask", action="append", metavar="QUESTION", help="instead of its own")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="SVG of the middle of the run")
    options = parser.parse_args()
    try:
        return asyncio.run(run(options.folder, options.ask, options.picture))
    except ServiceError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("demo: interrupted; everything is stopped", file=sys.stderr)
        return INTERRUPTED


async def run(folder: Path, questions: list[str] | None, picture: Path | None) -> int:
    """Tell the whole story once and return the exit status."""
    task = asyncio.current_task()
    if task is not None:  # a SIGTERM unwinds like a Ctrl-C, and stops what was started
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    passages = read_passages(folder)
    questions = questions or read_questions(folder, passages)
    with make_view(sys.stdout, picture) as view:
        report = await Story(view).tell(passages, questions)
    closing_report(report, sys.stdout)
    return 0 if report.failed == 0 and report.answered == len(questions) else 1


if __name__ == "__main__":
    sys.exit(main())
