from pathlib import Path

import pytest

from examples.demo.documents import MAX_WORDS, DocumentsError, read_passages, read_questions

CORPUS = Path(__file__).parents[3] / "examples" / "corpus"


def texts(folder: Path) -> list[str]:
    return [passage.text for passage in read_passages(folder)]


def test_the_shipped_corpus_has_at_least_sixty_passages_that_carry_their_headings() -> None:
    passages = read_passages(CORPUS)
    assert len(passages) >= 60
    assert len({passage.document for passage in passages}) >= 6
    assert passages[0].heading == "Coral Reefs / The animal and its guests"
    assert passages[0].text.startswith(
        "Coral Reefs / The animal and its guests: A reef coral is a colony"
    )
    assert len(read_questions(CORPUS, passages)) == 12


def test_a_heading_replaces_its_equals_and_everything_below_it(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n\n## B\n\none\n\n### C\ntwo\n\n## D\n\nthree\n")
    assert texts(tmp_path) == ["A / B: one", "A / B / C: two", "A / D: three"]


def test_underlined_headings_rank_by_first_use(tmp_path: Path) -> None:
    (tmp_path / "a.rst").write_text("====\nBook\n====\n\nOne\n---\n\nfirst\n\nTwo\n---\nsecond\n")
    assert texts(tmp_path) == ["Book / One: first", "Book / Two: second"]


def test_code_blocks_and_rules_are_no_passages(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("before\n\n```sh\n# no heading\n\nmake\n```\n\n---\n\nafter\n")
    assert texts(tmp_path) == ["before", "after"]


def test_long_paragraphs_are_cut_at_sentence_ends(tmp_path: Path) -> None:
    sentence = " ".join(["word"] * 59) + " end."
    (tmp_path / "a.txt").write_text(" ".join([sentence] * 5))
    pieces = texts(tmp_path)
    assert [len(piece.split()) for piece in pieces] == [120, 120, 60]
    assert all(piece.endswith("end.") for piece in pieces)


def test_a_sentence_longer_than_a_passage_loses_no_word(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(2 * MAX_WORDS + 10)]
    (tmp_path / "a.txt").write_text("Short one. " + " ".join(words))
    pieces = texts(tmp_path)
    assert " ".join(pieces) == "Short one. " + " ".join(words)
    assert all(len(piece.split()) <= MAX_WORDS for piece in pieces)


def test_readmes_questions_hidden_folders_and_other_files_are_left_out(tmp_path: Path) -> None:
    for name in ("README.md", "questions.txt", ".git/x.md", "image.png", "sub/kept.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("text")
    assert [passage.document for passage in read_passages(tmp_path)] == ["sub/kept.txt"]


def test_without_a_file_of_questions_they_are_made_from_headings_or_beginnings(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.md").write_text("# Tea\n\nLeaves.\n\nMore leaves.\n")
    (tmp_path / "b.txt").write_text("Water boils at a hundred degrees, at sea level. Not higher.")
    assert read_questions(tmp_path, read_passages(tmp_path)) == [
        "What does a.md say about Tea?",
        'What does b.txt say about "Water boils at a hundred degrees, at sea"?',
    ]


def test_made_up_questions_stay_few_and_spread_over_the_folder(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}.md").write_text(f"# Topic {number}\n\ntext\n")
    questions = read_questions(tmp_path, read_passages(tmp_path))
    assert len(questions) == 10
    assert questions[-1] == "What does 27.md say about Topic 27?"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"caf\xe9", r"a\.md is not UTF-8 text \(byte 3\)"), (b"\n\n", "holds no text")],
)
def test_a_folder_that_cannot_be_read_is_a_typed_error(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.md").write_bytes(content)
    with pytest.raises(DocumentsError, match=message):
        read_passages(tmp_path)


def test_a_missing_folder_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(DocumentsError, match="nowhere is not a folder"):
        read_passages(tmp_path / "nowhere")
