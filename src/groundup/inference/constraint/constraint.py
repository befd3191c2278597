"""Constrained decoding: a text that is one of several, matches a regular expression, or is JSON of a schema.

    source -> grammar -> network -> automaton over bytes -> a mask over the vocabulary, for each token

The bytes of tokens are followed, so a character may be written in several tokens, and no token can end in what no
further byte would make right: until the text may end there is always a token that can come next.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from groundup.config import nearest
from groundup.inference.constraint.automaton import ACCEPTED, Automaton, Configuration
from groundup.inference.constraint.grammar import START, Budget, Grammar, any_of
from groundup.inference.constraint.network import Network
from groundup.inference.constraint.regex import regex_part
from groundup.inference.constraint.schema import schema_grammar
from groundup.inference.constraint.vocabulary import TokenTree, Vocabulary, token_tree

Kind = Literal["choice", "regex", "json_schema", "json_object"]
KINDS = ("choice", "regex", "json_schema", "json_object")
MAX_SOURCE = 1 << 17
"""Characters of a source."""
MAX_CACHED = 16
COMPILE_SECONDS = 1.0
"""Of the thread's own processor time, that compiling may take."""

_cache: OrderedDict[tuple[str, str, TokenTree], Automaton] = OrderedDict()
_lock = threading.Lock()


class Constraint:
    """Where one text stands. Cheap to make and to copy; the automaton behind it is shared.

    Not for several threads at once: `mask` and `push` fill the automaton's tables.
    """

    def __init__(self, automaton: Automaton, end_ids: Collection[int]) -> None:
        self._automaton = automaton
        self._end_ids = sorted(end_ids)
        self._at: Configuration = automaton.start
        self._ended = False

    @property
    def accepting(self) -> bool:
        """Whether the text may end here."""
        return ACCEPTED in self._at

    @property
    def finished(self) -> bool:
        """Whether the text can only end here: then an end token is all that may come."""
        return self._ended or self._at == {ACCEPTED}

    def mask(self) -> Bool[Tensor, " vocab"]:
        """The tokens that may come next, never none of them; end tokens where the text may end.

        Raises ValueError when the next token cannot be found in bounded time.
        """
        mask = torch.from_numpy(self._automaton.mask(frozenset() if self._ended else self._at))
        mask[self._end_ids] = self.accepting
        return mask

    def push(self, token: int) -> None:
        """Take the token that was chosen. Raises ValueError, changing nothing, for one that the mask forbids."""
        if self.accepting and token in self._end_ids:
            self._ended = True
            return
        following = self._automaton.advance(self._at, self._automaton.tree.text.get(token, b""))
        if self._ended or token not in self._automaton.tree.text or not following:
            raise ValueError(f"constraint: token {token} cannot come next")
        self._at = following

    def copy(self) -> "Constraint":
        """Another one that stands at the same place, to try tokens with."""
        other = Constraint(self._automaton, self._end_ids)
        other._at, other._ended = self._at, self._ended
        return other


def compile_constraint(
    kind: Kind, source: Any, tokenizer: Vocabulary, end_ids: Collection[int], budget_s: float | None = None
) -> Constraint:
    """A constraint at its beginning.

    choice: a list of texts. regex: a pattern for the whole text (the syntax is in `regex`). json_schema:
    a schema as an object or its JSON text (the keywords are in `schema`). json_object: any JSON object;
    source is None.

    The same source for the same tokenizer is compiled once, the last 16 are kept. Raises ValueError for a source that
    is invalid, not supported, satisfied by no text, too large, or that takes more than `budget_s` seconds to compile
    (default: COMPILE_SECONDS).
    """
    if kind not in KINDS:
        raise ValueError(f"constraint: {kind!r} is none{nearest(str(kind), KINDS)}")
    if not end_ids:
        raise ValueError("constraint: a text can only end by an end token, and end_ids is empty")
    tree = token_tree(tokenizer)
    wrong = next((token for token in end_ids if not 0 <= token < tree.vocab_size), None)
    if wrong is not None:
        raise ValueError(f"constraint: end token {wrong} is not in the vocabulary (0 to {tree.vocab_size - 1})")
    key = (kind, _source_text(kind, source), tree)
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return Constraint(_cache[key], end_ids)
    automaton = _compile(kind, key[1], tree, Budget(COMPILE_SECONDS if budget_s is None else budget_s))
    with _lock:
        _cache[key] = automaton
        while len(_cache) > MAX_CACHED:
            _cache.popitem(last=False)
    return Constraint(automaton, end_ids)


def _compile(kind: Kind, source: str, tree: TokenTree, budget: Budget) -> Automaton:
    grammar: Grammar = {}
    match kind:
        case "choice":
            grammar[START] = any_of(json.loads(source), "choice", grammar)
        case "regex":
            grammar[START] = regex_part(source, budget)
        case _:
            grammar = schema_grammar(_parsed(source), budget)
    automaton = Automaton(Network(grammar, budget), tree)
    automaton.mask(automaton.start)  # an automaton that is too large shows here, and not between two tokens
    budget.check()
    return automaton


def _parsed(source: str) -> Any:
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"json_schema: not JSON: {error}") from error


def _source_text(kind: Kind, source: Any) -> str:
    """The source as a text that stands for it in the cache."""
    if kind == "json_object":
        return '{"type": "object"}'
    if kind == "choice":
        if not isinstance(source, Sequence) or isinstance(source, str) or not source:
            raise ValueError("choice: expected a list of at least one text")
        if not all(isinstance(choice, str) for choice in source):
            raise ValueError("choice: expected texts only")
        _check_size(kind, sum(map(len, source)))
        return json.dumps(list(source))
    if kind == "regex" and not isinstance(source, str):
        raise ValueError(f"regex: expected a pattern, got {type(source).__name__}")
    if kind == "json_schema" and not isinstance(source, str):
        if not isinstance(source, (Mapping, bool)):
            raise ValueError(f"json_schema: expected an object, true or false, got {type(source).__name__}")
        try:
            source = json.dumps(source)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"json_schema: not JSON: {error}") from error
    _check_size(kind, len(source))
    return source


def _check_size(kind: str, size: int) -> None:
    if size > MAX_SOURCE:
        raise ValueError(f"{kind}: {size:,} characters; at most {MAX_SOURCE:,}")
