"""What the README shows is run as it stands, against real hosts on other ports."""

import re
from pathlib import Path

import pytest

from examples.demo.processes import LlamaHost
from tests.snippets import run_example

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs(example: str, llama_hosts: list[LlamaHost]) -> None:
    for port, host in zip((8080, 8081), llama_hosts, strict=False):
        example = example.replace(f"127.0.0.1:{port}", f"127.0.0.1:{host.port}")
    run_example(example)


def test_there_are_four_examples() -> None:
    assert len(EXAMPLES) == 4


def test_every_place_in_the_table_exists_and_every_folder_has_its_row() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", README, flags=re.MULTILINE)
    missing = [place for place in rows if not (ROOT / place).exists()]
    assert missing == []
    for folder in ("shared/infrastructure", "services", "examples"):
        for path in (ROOT / folder).iterdir():
            if path.is_dir() and path.name != "__pycache__":
                assert str(path.relative_to(ROOT)) in rows


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
