"""Which hosts have read which beginnings of prompts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence

BLOCK = 512
"""Characters in a block."""

MAX_BLOCKS = 64
"""Blocks of a prompt that are looked at: the first 32,768 characters."""

_OWNERS = 4


def blocks_of(prompt: str, salt: str | None = None) -> list[int]:
    """Return a number for each beginning of `prompt` that is a whole number of blocks long.

    The numbers are of this process alone. They differ where `salt` does.
    """
    chain: list[int] = []
    link = hash(salt)
    for at in range(0, min(len(prompt) - BLOCK + 1, BLOCK * MAX_BLOCKS), BLOCK):
        link = hash((link, prompt[at : at + BLOCK]))
        chain.append(link)
    return chain


class PrefixIndex:
    """Remembers the hosts of the beginnings that were seen last.

    Args:
        max_entries: Beginnings remembered; one takes some 250 bytes.
    """

    def __init__(self, max_entries: int = 32_768) -> None:
        self._max_entries = max_entries
        self._owners: OrderedDict[int, tuple[str, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._owners)

    def match(self, blocks: Sequence[int], names: Container[str]) -> tuple[list[str], int]:
        """Return those of `names` that have read most of a prompt, and how many blocks of it."""
        for count in range(len(blocks), 0, -1):
            owners = self._owners.get(blocks[count - 1])
            if owners is not None and (found := [name for name in owners if name in names]):
                return found, count
        return [], 0

    def record(self, blocks: Sequence[int], name: str) -> None:
        """Take note that `name` reads a prompt."""
        index = self._owners
        for block in reversed(blocks):  # what is shared most is forgotten last
            owners = index.get(block)
            if owners is None:
                index[block] = (name,)
                continue
            index.move_to_end(block)
            if owners[0] != name:
                others = [other for other in owners if other != name]
                index[block] = (name, *others[: _OWNERS - 1])
        while len(index) > self._max_entries:
            index.popitem(last=False)
