"""A vocabulary as a tree of bytes, so that tokens that begin alike are followed together.

    root --t--> "t" --h--> "th" --e--> "the"        the tokens "the", "then", "to": six nodes, not nine bytes
                 \\--o--> "to"           \\--n--> "then"

Nodes are numbered level by level: one array operation then follows a whole level.
"""

import threading
from collections.abc import Collection, Mapping
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

_lock = threading.Lock()


class Vocabulary(Protocol):
    """What a tokenizer needs for constraints."""

    @property
    def vocab(self) -> dict[int, bytes]: ...

    special_tokens: dict[str, int]
    vocab_size: int


class TokenTree:
    """All ordinary tokens: a special token is no text, and only ends one.

    `levels` are slices of nodes, `parents` and `bytes` say for each node where it comes from; `tokens` are ids, and
    `nodes` the node of each. `usable` are the bytes that have a token of their own.
    """

    def __init__(self, vocab: Mapping[int, bytes], special_tokens: Collection[int], vocab_size: int) -> None:
        self.text = {token: data for token, data in vocab.items() if token not in special_tokens}
        self.vocab_size = vocab_size
        self.usable = frozenset(data[0] for data in self.text.values() if len(data) == 1)
        self.levels: list[slice] = []
        parents, last_bytes = [0], [0]
        node_of = {b"": 0}
        for depth in range(1, max(map(len, self.text.values()), default=0) + 1):
            start = len(parents)
            for data in self.text.values():
                beginning = data[:depth]
                if len(data) >= depth and beginning not in node_of:
                    node_of[beginning] = len(parents)
                    parents.append(node_of[beginning[:-1]])
                    last_bytes.append(beginning[-1])
            self.levels.append(slice(start, len(parents)))
        self.parents = np.array(parents, dtype=np.int64)
        self.bytes = np.array(last_bytes, dtype=np.int64)
        self.tokens = np.array(list(self.text), dtype=np.int64)
        self.nodes = np.array([node_of[data] for data in self.text.values()], dtype=np.int64)


_trees: WeakKeyDictionary[Vocabulary, TokenTree] = WeakKeyDictionary()


def token_tree(tokenizer: Vocabulary) -> TokenTree:
    """The tree of a tokenizer, made once (about a second for a hundred thousand tokens)."""
    with _lock:
        tree = _trees.get(tokenizer)
        if tree is None:
            special = set(tokenizer.special_tokens.values())
            tree = _trees[tokenizer] = TokenTree(tokenizer.vocab, special, tokenizer.vocab_size)
        return tree
