"""A grammar as a network: nodes joined by steps over bytes, by empty steps, and by calls of other rules.

    rule "list":   o --'['--> o ==call "value"==> o --']'--> (o)
                              ^                   |
                              +------- ',' -------+

Characters become their UTF-8 bytes here, so that a token may begin or end inside a character. Thompson's construction
(1968) with calls: a recursive transition network (Woods 1970).
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter

from groundup.inference.constraint.grammar import Budget, Call, Characters, Grammar, Options, Part, Repeat, Series

MAX_NODES = 100_000

ByteRanges = tuple[tuple[int, int], ...]


def utf8_ranges(low: int, high: int) -> Iterator[ByteRanges]:
    """The UTF-8 forms of the code points low to high, as sequences of byte ranges (Cox 2010, "utf8-ranges").

    >>> list(utf8_ranges(0x7F, 0x80))
    [((127, 127),), ((194, 194), (128, 128))]
    """
    cut = next((last for last in (0x7F, 0x7FF, 0xFFFF) if low <= last < high), None)
    for shift in (6, 12, 18) if cut is None and high > 0x7F else ():
        ones = (1 << shift) - 1
        if cut is None and low & ~ones != high & ~ones:
            cut = low | ones if low & ones else (high & ~ones) - 1 if high & ones != ones else None
    if cut is None:
        yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))
    else:
        yield from utf8_ranges(low, cut)
        yield from utf8_ranges(cut + 1, high)


class Network:
    """The nodes of all rules of a grammar.

    `steps[n]` are (first byte, last byte, node), `empties[n]` nodes, `calls[n]` pairs of a rule and the node to go on
    from; `starts` and `ends` have a node per rule.

    Raises ValueError for a grammar that is too large, calls a rule that is not there, or calls itself before it has
    written anything.
    """

    def __init__(self, grammar: Grammar, budget: Budget) -> None:
        self.steps: list[list[tuple[int, int, int]]] = []
        self.empties: list[list[int]] = []
        self.calls: list[list[tuple[str, int]]] = []
        self._budget = budget
        self.starts = {rule: self._node() for rule in grammar}
        self.ends = {rule: self._node() for rule in grammar}
        self.end_nodes = set(self.ends.values())
        for rule, part in grammar.items():
            self._build(part, self.starts[rule], self.ends[rule])
        missing = next((rule for calls in self.calls for rule, _ in calls if rule not in grammar), None)
        assert missing is None, f"rule {missing!r} is called and not defined"
        self._refuse_left_recursion()

    def _node(self) -> int:
        if len(self.steps) >= MAX_NODES:
            raise ValueError(f"constraint: too large, its automaton has more than {MAX_NODES:,} nodes; simplify it")
        if len(self.steps) % 256 == 0:
            self._budget.check()
        self.steps.append([])
        self.empties.append([])
        self.calls.append([])
        return len(self.steps) - 1

    def _build(self, part: Part, start: int, end: int) -> None:
        """The part as ways from `start` to `end`. No way leads back to `start` or on from `end`."""
        match part:
            case Characters():
                self._characters(part, start, end)
            case Series():
                self._series(part, start, end)
            case Options():
                for option in part.options:
                    self._build(option, start, end)
            case Repeat():
                self._repeat(part, start, end)
            case Call():
                self.calls[start].append((part.rule, end))

    def _series(self, part: Series, start: int, end: int) -> None:
        if not part.parts:
            self.empties[start].append(end)
        for number, inner in enumerate(part.parts, 1):
            node = end if number == len(part.parts) else self._node()
            self._build(inner, start, node)
            start = node

    def _characters(self, part: Characters, start: int, end: int) -> None:
        rests: dict[ByteRanges, int] = {(): end}  # forms that end alike share their nodes
        for low, high in part.ranges:
            for form in utf8_ranges(low, high):
                for at in range(len(form) - 1, 0, -1):
                    if form[at:] not in rests:
                        node = rests[form[at:]] = self._node()
                        self.steps[node].append((*form[at], rests[form[at + 1 :]]))
                self.steps[start].append((*form[0], rests[form[1:]]))

    def _repeat(self, part: Repeat, start: int, end: int) -> None:
        node = start
        for _ in range(part.at_least):
            start, node = node, self._node()
            self._build(part.part, start, node)
        if part.at_most is None:
            loop = self._node()
            self.empties[node].append(loop)
            self._build(part.part, loop, loop)
            self.empties[loop].append(end)
            return
        for _ in range(part.at_most - part.at_least):
            start, node = node, self._node()
            self.empties[start].append(end)
            self._build(part.part, start, node)
        self.empties[node].append(end)

    def live_nodes(self, usable: Collection[int]) -> set[int]:
        """The nodes from which the end of their rule can be reached by writing usable bytes.

        Only through these does a text ever end, so that an automaton that keeps to them has no dead ends.
        """
        before: dict[int, list[int]] = defaultdict(list)
        for node in range(len(self.steps)):
            for target in self._targets(node, usable):
                before[target].append(node)
        live: set[int] = set()
        todo = list(self.ends.values())
        while todo:
            self._budget.check()
            node = todo.pop()
            if node not in live:
                live.add(node)
                todo += [n for n in before[node] if n not in live and self._leads_on(n, live, usable)]
        return live

    def _targets(self, node: int, usable: Collection[int]) -> Iterator[int]:
        """All nodes on which it depends whether `node` is live."""
        yield from self.empties[node]
        yield from _written(self.steps[node], usable)
        for rule, back in self.calls[node]:
            yield from (self.starts[rule], back)

    def _leads_on(self, node: int, live: set[int], usable: Collection[int]) -> bool:
        return (
            any(target in live for target in self.empties[node])
            or any(target in live for target in _written(self.steps[node], usable))
            or any(back in live and self.starts[rule] in live for rule, back in self.calls[node])
        )

    def _refuse_left_recursion(self) -> None:
        nullable: set[str] = set()
        known = -1
        while known < len(nullable):
            known = len(nullable)
            for rule in reversed(self.starts):  # rules call later ones more often than earlier ones
                self._budget.check()
                if self.ends[rule] in self._before(rule, nullable):
                    nullable.add(rule)
        first = {
            rule: {called for node in self._before(rule, nullable) for called, _ in self.calls[node]}
            for rule in self.starts
        }
        try:
            TopologicalSorter(first).prepare()
        except CycleError as error:
            raise ValueError("constraint: a rule refers to itself before it has written anything") from error

    def _before(self, rule: str, nullable: set[str]) -> set[int]:
        """The nodes that a rule reaches without writing."""
        seen: set[int] = set()
        todo = [self.starts[rule]]
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += self.empties[node]
                todo += [back for called, back in self.calls[node] if called in nullable]
        return seen


def _written(steps: list[tuple[int, int, int]], usable: Collection[int]) -> Iterator[int]:
    return (target for low, high, target in steps if any(byte in usable for byte in range(low, high + 1)))
