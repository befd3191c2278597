"""A grammar at work: which bytes, and so which tokens, can come next.

A *position* is a node of the network and the stack of nodes to go back to; a *configuration* is the set of positions
that the text so far can be at (the subset construction, one configuration at a time as texts need them):

    "[1"    {in the number, after a number before ',' , after a number before ']'}, each inside rule "list"

Configurations get numbers, and the bytes that lead from one to the next a row of a table. A whole vocabulary is then
one look-up for each node of its tree, level by level; the result is kept for the configuration's next visit.

Lazy determinisation: Rabin and Scott 1959; masks over a vocabulary: Willard and Louf 2023 (arXiv:2307.09702); the
stack: Dong et al. 2024 (arXiv:2411.15100).
"""

from collections import OrderedDict
from collections.abc import Iterable
from weakref import WeakValueDictionary

import numpy as np

from groundup.inference.constraint.grammar import START
from groundup.inference.constraint.network import Network
from groundup.inference.constraint.vocabulary import TokenTree

MAX_CONFIGURATIONS = 8_192
"""That are kept with their rows, 1 KB each; then all are forgotten and made again when needed."""
MAX_MASK_BYTES = 4 << 20
MAX_WORK = 500_000
"""Positions and steps that one mask may look at: about half a second."""

DEAD = 0


class Frame:
    """The top of a stack: the node to go on from when the rule ends, and the stack below. Equal ones are one object."""

    __slots__ = ("__weakref__", "back", "below")

    def __init__(self, back: int, below: "Frame | None") -> None:
        self.back, self.below = back, below


Position = tuple[int, Frame | None]
Configuration = frozenset[Position]
ACCEPTED: Position = (-1, None)
"""In a configuration whose text may end here."""


class Automaton:
    """A network over the bytes of one vocabulary. Raises ValueError when no text of it can be written.

    `mask` and `advance` raise ValueError when a step would take more than MAX_WORK.
    """

    def __init__(self, network: Network, tree: TokenTree) -> None:
        live = network.live_nodes(tree.usable)
        if network.starts[START] not in live:
            raise ValueError("constraint: no text can satisfy it (in the bytes that this vocabulary has)")
        self.tree = tree
        self._steps = [[s for s in steps if s[2] in live] for steps in network.steps]
        self._empties = [[n for n in empties if n in live] for empties in network.empties]
        self._calls = [
            [(network.starts[rule], back) for rule, back in calls if back in live and network.starts[rule] in live]
            for calls in network.calls
        ]
        self._ends = network.end_nodes
        self._frames: WeakValueDictionary[tuple[int, int], Frame] = WeakValueDictionary()
        self._masks: OrderedDict[Configuration, np.ndarray] = OrderedDict()
        self._work = 0
        self._forget()
        self.start = self._closure([(network.starts[START], None)])

    def advance(self, configuration: Configuration, text: bytes) -> Configuration:
        """Where the text leads; the empty configuration when it cannot go on so."""
        self._work = 0
        number = self._number(configuration)
        for byte in text:
            self._expand(number)
            number = int(self._table[number, byte])
        return self._configurations[number]

    def mask(self, configuration: Configuration) -> np.ndarray:
        """Which tokens of the vocabulary can come next, as booleans."""
        packed = self._masks.pop(configuration, None)
        if packed is None:
            packed = np.packbits(self._new_mask(configuration))
            while self._masks and (len(self._masks) + 1) * packed.nbytes > MAX_MASK_BYTES:
                self._masks.popitem(last=False)
        self._masks[configuration] = packed  # at the end: the one used last
        return np.unpackbits(packed, count=self.tree.vocab_size).view(np.bool_)

    def _new_mask(self, configuration: Configuration) -> np.ndarray:
        if len(self._configurations) > MAX_CONFIGURATIONS:
            self._forget()
        self._work = 0
        tree = self.tree
        at = np.zeros(len(tree.parents), dtype=np.int32)
        at[0] = self._number(configuration)
        for level in tree.levels:
            before = at[tree.parents[level]]
            unknown = before[~self._expanded[before]]
            for number in np.unique(unknown).tolist() if len(unknown) else ():
                self._expand(number)
            at[level] = self._table[before, tree.bytes[level]]
        mask = np.zeros(tree.vocab_size, dtype=np.bool_)
        mask[tree.tokens] = at[tree.nodes] != DEAD
        return mask

    def _forget(self) -> None:
        self._configurations: list[Configuration] = []
        self._numbers: dict[Configuration, int] = {}
        self._table = np.zeros((64, 256), dtype=np.int32)
        self._expanded = np.zeros(64, dtype=np.bool_)
        self._expanded[self._number(frozenset())] = True

    def _number(self, configuration: Configuration) -> int:
        number = self._numbers.get(configuration)
        if number is None:
            number = self._numbers[configuration] = len(self._configurations)
            self._configurations.append(configuration)
            if number >= len(self._table):
                self._table = np.concatenate([self._table, np.zeros_like(self._table)])
                self._expanded = np.concatenate([self._expanded, np.zeros_like(self._expanded)])
        return number

    def _expand(self, number: int) -> None:
        """Fill in a configuration's row. All bytes between two neighbouring ends of byte ranges lead to one place."""
        if self._expanded[number]:
            return
        changes: dict[int, tuple[list[Position], list[Position]]] = {0: ([], [])}
        for node, stack in self._configurations[number]:
            for low, high, target in self._steps[node] if node >= 0 else ():
                changes.setdefault(low, ([], []))[0].append((target, stack))
                changes.setdefault(high + 1, ([], []))[1].append((target, stack))
        reached: dict[Position, int] = {}
        edges = [*sorted(changes), 256]
        for low, high in zip(edges, edges[1:], strict=False):
            for position in changes[low][1] if low < 256 else ():
                reached[position] -= 1
            for position in changes[low][0] if low < 256 else ():
                reached[position] = reached.get(position, 0) + 1
            targets = [position for position, count in reached.items() if count]
            self._spend(len(reached) + 1)
            self._table[number, low:high] = self._number(self._closure(targets)) if targets else DEAD
        self._expanded[number] = True

    def _closure(self, positions: Iterable[Position]) -> Configuration:
        """Where one is without writing a byte: through empty steps, into rules and out of those that end."""
        seen: set[Position] = set()
        todo = list(positions)
        while todo:
            position = todo.pop()
            if position in seen:
                continue
            seen.add(position)
            node, stack = position
            todo += [(target, stack) for target in self._empties[node]]
            for start, back in self._calls[node]:
                # A call at the end of a rule needs no way back into it.
                todo.append((start, stack if back in self._ends else self._frame(back, stack)))
            if node in self._ends:
                if stack is None:
                    seen.add(ACCEPTED)
                else:
                    todo.append((stack.back, stack.below))
        self._spend(len(seen))
        return frozenset(p for p in seen if p == ACCEPTED or self._steps[p[0]])

    def _frame(self, back: int, below: Frame | None) -> Frame:
        # An id is no other's while its entry lives: the entry's frame holds the one below.
        key = back, id(below)
        frame = self._frames.get(key)
        if frame is None:
            frame = self._frames[key] = Frame(back, below)
        return frame

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > MAX_WORK:
            raise ValueError("constraint: too ambiguous here, one token would take too long; simplify it")
