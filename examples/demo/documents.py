"""Read a folder of text documents as passages, and the questions to ask about them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from shared.infrastructure.resilience.errors import ConfigurationError

SUFFIXES = {".md", ".rst", ".txt"}
QUESTIONS = "questions.txt"
NOT_DOCUMENTS = {"readme.md", QUESTIONS}

# all-MiniLM-L6-v2 reads 256 tokens; a word of English is about 1.4 of them.
MAX_WORDS = 150
MADE_UP_QUESTIONS = 12

CODE_BLOCK = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.DOTALL | re.MULTILINE)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
HASH_HEADING = re.compile(r"(#{1,6})\s+(.*?)[\s#]*$")
UNDERLINE = re.compile(r"([=\-~^\"'`*+#.:_])\1{2,}\s*$")


class DocumentsError(ConfigurationError):
    """The folder of documents cannot be used; the message names the path and says why."""

    code = "documents_error"


@dataclass(frozen=True)
class Passage:
    """One paragraph of a document.

    Attributes:
        document: Path of the document inside its folder.
        number: Position in the document, from 1.
        heading: The headings it stands under, outermost first, joined by " / "; may be empty.
        text: What to embed and to quote: the heading, a colon, and the paragraph.
    """

    document: str
    number: int
    heading: str
    text: str


def read_passages(folder: Path) -> list[Passage]:
    """Return the passages of every .md, .rst and .txt file below `folder`, in order of path.

    READMEs, `questions.txt` and hidden folders are left out.

    Raises:
        DocumentsError: The folder does not exist, holds no passages, or a file is not UTF-8.
    """
    if not folder.is_dir():
        raise DocumentsError(f"{folder} is not a folder; name one that holds documents")
    passages = [passage for path in _documents(folder) for passage in _read(path, folder)]
    if not passages:
        raise DocumentsError(
            f"{folder} holds no text to read; put {', '.join(sorted(SUFFIXES))} files there"
        )
    return passages


def read_questions(folder: Path, passages: list[Passage]) -> list[str]:
    """Return the lines of the folder's `questions.txt`, or questions made from its headings."""
    path = folder / QUESTIONS
    if path.is_file():
        questions = [line.strip() for line in _decode(path).splitlines() if line.strip()]
        if not questions:
            raise DocumentsError(f"{path} is empty; write a question a line, or remove it")
        return questions
    topics = list(dict.fromkeys(_topic(passage) for passage in passages))
    step = max(1, -(-len(topics) // MADE_UP_QUESTIONS))
    return [f"What does {document} say about {topic}?" for document, topic in topics[::step]]


def _documents(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and path.name.lower() not in NOT_DOCUMENTS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _read(path: Path, folder: Path) -> list[Passage]:
    name = path.relative_to(folder).as_posix()
    pieces = [
        (heading, piece)
        for heading, paragraph in _paragraphs(_decode(path))
        for piece in _split(paragraph)
    ]
    return [
        Passage(name, number, heading, f"{heading}: {piece}" if heading else piece)
        for number, (heading, piece) in enumerate(pieces, 1)
    ]


def _decode(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentsError(
            f"{path} is not UTF-8 text (byte {error.start}); convert it or take it out"
        ) from error
    except OSError as error:
        raise DocumentsError(f"{path} cannot be read: {error.strerror}") from error


def _paragraphs(text: str) -> list[tuple[str, str]]:
    """Split at blank lines; return each paragraph with the headings above it."""
    headings: dict[int, str] = {}
    underlines: list[str] = []  # in reStructuredText the order of first use ranks them
    found: list[tuple[str, str]] = []
    # Code is left out: it is no prose to quote, and its comments look like headings.
    for block in re.split(r"\n\s*\n", CODE_BLOCK.sub("", text)):
        lines = [line.strip() for line in block.strip().splitlines()]
        while lines and (match := _heading(lines, underlines)):
            level, title, used = match
            headings = {depth: above for depth, above in headings.items() if depth < level}
            headings[level] = title
            lines = lines[used:]
        paragraph = " ".join(lines)
        if any(character.isalnum() for character in paragraph):
            found.append((" / ".join(headings.values()), paragraph))
    return found


def _heading(lines: list[str], underlines: list[str]) -> tuple[int, str, int] | None:
    """Return level, title and number of lines of the heading that `lines` begins with."""
    if match := HASH_HEADING.match(lines[0]):
        return len(match[1]), match[2], 1
    overlined = len(lines) > 2 and bool(UNDERLINE.match(lines[0])) and lines[0] == lines[2]
    title = lines[1:] if overlined else lines
    if len(title) < 2 or UNDERLINE.match(title[0]) or not (line := UNDERLINE.match(title[1])):
        return None
    if line[1] not in underlines:
        underlines.append(line[1])
    return underlines.index(line[1]) + 1, title[0], 3 if overlined else 2


def _split(paragraph: str) -> list[str]:
    """Cut a paragraph into pieces of at most `MAX_WORDS` words, at sentence ends if possible."""
    pieces: list[list[str]] = [[]]
    for sentence in SENTENCE_END.split(paragraph):
        words = sentence.split()
        if len(pieces[-1]) + len(words) > MAX_WORDS:
            pieces.append([])
        while len(words) > MAX_WORDS:
            pieces[-1:] = [words[:MAX_WORDS], []]
            words = words[MAX_WORDS:]
        pieces[-1] += words
    return [" ".join(piece) for piece in pieces if piece]


def _topic(passage: Passage) -> tuple[str, str]:
    """Name what a passage is about: its innermost heading, or else how it begins."""
    if passage.heading:
        return passage.document, passage.heading.rpartition(" / ")[2]
    beginning = " ".join(SENTENCE_END.split(passage.text)[0].split()[:8])
    return passage.document, f'"{beginning.rstrip(".,;:!?")}"'
