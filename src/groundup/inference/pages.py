"""Who holds which page of the store: reference counts, and prefixes that requests share.

    page size 4                      blocks known by what they hold
    request A   [7 2 9 9] [1 5 8 3] [6 . . .]      (root, 7 2 9 9) -> page 0   held by A and B
    table A        0         1         4           (0's key, 1 5 8 3) -> page 1   held by A
    request B   [7 2 9 9] [1 5 8 4] [2 2 . .]      (0's key, 1 5 8 4) -> page 3   held by B
    table B        0         3         5           pages 4 and 5 are not full, so nobody else can use them

A page is free, held by requests, or kept: held by nobody, but full and known, so that the next request with the same
beginning can take it up. Kept pages are given away when no page is free, the one that was used longest ago first.

A block is known by its tokens and the block before it. The hash only finds candidates: tokens and predecessor are
compared, so that a collision never shows one request the text of another. Kwon et al. 2023, section 4
(arXiv:2309.06180); sharing of prefixes: Zheng et al. 2023 (arXiv:2312.07104).
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

Parent = int | str
"""The key of the block before, or the salt in place of the first one's."""


def block_hash(parent: Parent, tokens: tuple[int, ...]) -> int:
    """Where to look for a block; equal hashes prove nothing."""
    return hash((parent, tokens))


@dataclass(frozen=True)
class Block:
    """A full page that is known: `key` is its own, and never given to another."""

    key: int
    page: int
    parent: Parent
    tokens: tuple[int, ...]


class Pages:
    """`num_pages` pages of `page_size` tokens each. With `share=False` no block is ever known again."""

    def __init__(self, num_pages: int, page_size: int = 16, share: bool = True) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"{num_pages} pages of {page_size} tokens; expected at least one of one")
        self.num_pages, self.page_size, self.share = num_pages, page_size, share
        self.references = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # held by nobody, least recently used first
        self._known: dict[int, list[Block]] = {}
        self._block_of: dict[int, Block] = {}
        self._next_key = 0

    @property
    def available(self) -> int:
        """Pages that `take` can still give."""
        return len(self._free) + len(self._kept)

    @property
    def cached(self) -> int:
        """Pages that nobody holds and that a beginning could still take up."""
        return len(self._kept)

    @property
    def used(self) -> int:
        """Pages that requests hold."""
        return self.num_pages - self.available

    def take(self) -> int | None:
        """A page for one request, with whatever was in it; None when all are held."""
        if self._free:
            page = self._free.pop()
        elif self._kept:
            page, _ = self._kept.popitem(last=False)
            self._forget(page)
        else:
            return None
        self.references[page] = 1
        return page

    def release(self, pages: Sequence[int], keep: bool = True) -> list[int]:
        """Give up one hold on each page; those that became free. With `keep=False` nothing of them is kept.

        The last pages of a sequence are given away before its first, without which they are of no use.
        """
        freed = []
        for page in reversed(pages):
            assert self.references[page] > 0, f"page {page} is held by nobody"
            self.references[page] -= 1
            if self.references[page]:
                continue
            if page in self._block_of and keep:
                self._kept[page] = None
                continue
            if page in self._block_of:
                self._forget(page)
            self._free.append(page)
            freed.append(page)
        return freed

    def match(self, ids: Sequence[int], salt: str, at_most: int) -> list[Block]:
        """The known blocks with which `ids` begin, up to `at_most` of them."""
        found: list[Block] = []
        parent: Parent = salt
        while self.share and len(found) < at_most:
            start = len(found) * self.page_size
            block = self._find(parent, tuple(ids[start : start + self.page_size]))
            if block is None:
                break
            found.append(block)
            parent = block.key
        return found

    def hold(self, blocks: Sequence[Block]) -> None:
        """One more request uses these."""
        for block in blocks:
            if not self.references[block.page]:
                del self._kept[block.page]
            self.references[block.page] += 1

    def register(self, page: int, parent: Parent, tokens: tuple[int, ...]) -> int:
        """Make a full page known; the key that blocks after it have as parent.

        Two requests may compute the same block at once. The first page is then the known one.
        """
        assert len(tokens) == self.page_size and self.references[page], "only a full page that is held is known"
        same = self._find(parent, tokens)
        if same is not None:
            return same.key
        block = Block(self._next_key, page, parent, tokens)
        self._next_key += 1
        if self.share and page not in self._block_of:
            self._known.setdefault(block_hash(parent, tokens), []).append(block)
            self._block_of[page] = block
        return block.key

    def forget_all(self) -> None:
        """Nothing is known any more, as when the weights have changed; what requests hold stays theirs."""
        self._free.extend(self._kept)
        self._kept.clear()
        self._known.clear()
        self._block_of.clear()

    def _find(self, parent: Parent, tokens: tuple[int, ...]) -> Block | None:
        candidates = self._known.get(block_hash(parent, tokens), ())
        return next((block for block in candidates if block.parent == parent and block.tokens == tokens), None)

    def _forget(self, page: int) -> None:
        block = self._block_of.pop(page)
        address = block_hash(block.parent, block.tokens)
        others = [other for other in self._known[address] if other.page != page]
        if others:
            self._known[address] = others
        else:
            del self._known[address]
