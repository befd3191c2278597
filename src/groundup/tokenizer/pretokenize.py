r"""Cutting text into pre-tokens: the pieces inside which byte-pair merges may happen, and not across them.

A *pattern* is one of the published ones (`PATTERNS`), "none" (the whole text is one piece), or a
regular expression of your own. The `regex` module matches, so `\p{L}` and `\s` follow its Unicode tables.
"""

from collections.abc import Collection, Iterable, Iterator
from functools import cache
from itertools import accumulate, pairwise

import regex

from groundup.config import nearest
from groundup.tokenizer.unicode_classes import unassigned_ranges

PATTERNS = {
    # Radford et al. 2019, in the equivalent possessive form that tiktoken runs for r50k_base and p50k_base.
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    # GPT-4: numbers in groups of three, case-insensitive contractions, newlines stay with what they follow.
    "cl100k": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    # GPT-4o: words also break where lower case turns to upper; contractions stay with their word.
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    # Llama 3: cl100k as it was first published. "a\n  " is a, \n and two spaces here, and only two pieces there.
    "llama3": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    # Qwen 2 and later: the same with single digits.
    "qwen2": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    # SmolLM, StarCoder: digits are cut out first, each by itself, and gpt2 sees the stretches in between as texts.
    "smollm": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s+(?![^\s\p{N}])|\s+",
}
# `tokenizer.json` is matched with Oniguruma, where `{1,3}+` repeats instead of being possessive, and `$` is the
# end of any line. These forms, most of them the first that were published, mean the same to both engines.
PORTABLE_PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s+(?![\s\S])|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "o200k": PATTERNS["o200k"],
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "smollm": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
}
PATTERN_NAMES = {text: name for table in (PATTERNS, PORTABLE_PATTERNS) for name, text in table.items()} | {
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2"
}
NO_PATTERN = "none"
ALIASES = {"gpt4": "cl100k", "gpt4o": "o200k", "r50k": "gpt2", "p50k": "gpt2"}

# After a letter or number that no character follows which could continue its pre-token, every published
# pattern ends a piece, whatever comes later: each test that the matcher makes there fails as it does at the
# end of the text, and no pattern looks behind. (`'` as o200k keeps contractions, marks as it joins them.)
# Letters that NFC takes apart into a letter and a mark are left out: the cut holds before and after it.
_TAKEN_APART = (
    r"\u0958-\u095f\u09dc\u09dd\u09df\u0a33\u0a36\u0a59-\u0a5b\u0a5e\u0b5c\u0b5d"
    r"\u0f43\u0f4d\u0f52\u0f57\u0f5c\u0f69\ufb1d-\ufb4e"
)


@cache
def _boundary() -> regex.Pattern:
    return regex.compile(rf"(?r)(?![{_TAKEN_APART}{_unassigned()}])[\p{{L}}\p{{N}}](?=[^\p{{L}}\p{{N}}\p{{M}}'])")


@cache
def after_boundary() -> regex.Pattern:
    """What matches the character behind a place where a cut changes no piece by any published pattern."""
    return regex.compile(rf"(?<=[\p{{L}}\p{{N}}])(?<![{_TAKEN_APART}{_unassigned()}])[^\p{{L}}\p{{N}}\p{{M}}']")


# `regex` may know a newer Unicode than the table that decides (see unicode_classes). What that leaves unassigned is
# split like a private character, and the one letter whose class changed like another lower-case letter.
_RECLASSIFIED = "\u0295"
_PRIVATE, _LOWER = "\ue000", "\u0250"


def _unassigned() -> str:
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in unassigned_ranges())


@cache
def _newer() -> regex.Pattern:
    return regex.compile(f"[{_unassigned()}]|{_RECLASSIFIED}")


def _with_old_classes(text: str) -> str:
    """The text with a stand-in for each character that the table and `regex` may class differently."""
    if text.isascii():
        return text
    return _newer().sub(lambda match: _LOWER if match.group() == _RECLASSIFIED else _PRIVATE, text)


_BLOCK = 1 << 20  # characters split at once: bounds the memory of the list of pieces
_SECONDS, _SECONDS_PER_CHARACTER = 5.0, 5e-6  # what a custom pattern may take: a published one takes 1e-7
_MAX_CHARACTERS = 4096
_FOREIGN = regex.compile(r"\[\[:|&&|\\[hRXK]")
_FOREIGN_OUTSIDE_SETS = regex.compile(r"\^|\$|\{\d*,?\d*\}\+")
_ESCAPE_OR_SET = regex.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]")


class Pretokenizer:
    r"""Splits text by a pattern; the pieces joined are the text again.

    >>> Pretokenizer("gpt2").split("I'll pay 1000  dollars")
    ['I', "'ll", ' pay', ' 1000', ' ', ' dollars']
    >>> Pretokenizer("cl100k").split("I'll pay 1000  dollars")
    ['I', "'ll", ' pay', ' ', '100', '0', ' ', ' dollars']

    A custom regular expression keeps what it does not match as pieces of their own, and runs under a time
    limit (ValueError), because a pattern that came in a file may backtrack for ever.
    """

    def __init__(self, pattern: str | None) -> None:
        self.pattern = canonical(pattern)
        self.is_published = self.pattern in PATTERNS
        self._regex = None if self.pattern == NO_PATTERN else _compiled(self.pattern)

    def split(self, text: str) -> list[str]:
        """The pre-tokens of `text`, in order."""
        if self._regex is None:
            return [text] if text else []
        return _split_published(self._regex, text) if self.is_published else _split_custom(self._regex, text)

    def blocks(self, text: str) -> Iterator[str]:
        """`text` in consecutive parts of bounded length whose pieces are the pieces of the whole."""
        start, size = 0, _BLOCK
        while len(text) - start > size:
            cut = self.last_boundary(text, start, start + size)
            if cut > start:
                yield text[start:cut]
                start, size = cut, _BLOCK
            else:
                size *= 2
        yield text[start:] if start else text

    def last_boundary(self, text: str, start: int, end: int) -> int:
        """The last place in (start, end] where a cut changes no piece of `text`; `start` if none is known."""
        if not self.is_published:
            return start
        match = _boundary().search(text, start, min(end + 1, len(text)))
        return match.end() if match else start


def canonical(pattern: str | None) -> str:
    """The name of a pattern (also of its text), or a custom one as it is. ValueError for an unknown name."""
    if pattern is None:
        return NO_PATTERN
    pattern = PATTERN_NAMES.get(pattern, ALIASES.get(pattern, pattern))
    if is_name(pattern) and pattern not in (*PATTERNS, NO_PATTERN):
        known = nearest(pattern, (*PATTERNS, *ALIASES, NO_PATTERN))
        raise ValueError(f"pattern {pattern!r}: no such name{known}")
    return pattern


def is_name(pattern: str) -> bool:
    """Whether this is written like the name of a pattern, and not like a regular expression."""
    return regex.fullmatch(r"[\w.-]*", pattern) is not None


def well_formed(text: str) -> str:
    r"""`text` without surrogate code points, which UTF-8 cannot express.

    A pair becomes the character that it stands for, as in UTF-16 (and in tiktoken), any other surrogate U+FFFD.

    >>> well_formed("a\ud800b") == "a\ufffdb"
    True
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class SpecialSplitter:
    """Finds special tokens in text: leftmost first, and the longest of those that start at the same place.

    >>> list(SpecialSplitter(["<a>", "<a><b>"]).split("x<a><b>y<a>"))
    [('x', False), ('<a><b>', True), ('y', False), ('<a>', True)]
    """

    def __init__(self, tokens: Collection[str]) -> None:
        self.tokens = longest_first = sorted(tokens, key=len, reverse=True)
        self.longest = len(longest_first[0]) if longest_first else 0
        self._regex = regex.compile("|".join(map(regex.escape, longest_first))) if longest_first else None

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """(part, is it a special token) in order, without empty parts."""
        start = 0
        for match in self._regex.finditer(text) if self._regex else ():
            if match.start() > start:
                yield text[start : match.start()], False
            yield match.group(), True
            start = match.end()
        if start < len(text):
            yield text[start:], False

    def last_end(self, text: str) -> int:
        """Where the last special token ends that no continuation of `text` can change, or 0."""
        known = len(text) - self.longest  # one that starts later might still grow into a longer one
        ends = (m.end() for m in self._regex.finditer(text) if m.start() <= known) if self._regex else ()
        return max(ends, default=0)


def safe_chunks(
    texts: Iterable[str], pretokenizer: Pretokenizer, specials: SpecialSplitter, size: int
) -> Iterator[str]:
    """Join consecutive `texts` and cut them anew: the pieces of the chunks are the pieces of the whole.

    Memory is about `size` characters, or the longest stretch without a safe place to cut (after a word, or
    after a special token; only the latter is known for a custom pattern or none).
    """
    buffer, wanted = "", size
    for text in texts:
        buffer += text
        if len(buffer) < wanted:
            continue
        cut = _last_cut(buffer, pretokenizer, specials)
        if cut:
            yield buffer[:cut]
            buffer, wanted = buffer[cut:], size
        else:
            wanted = 2 * len(buffer)  # doubling keeps the repeated search for a cut linear
    if buffer:
        yield buffer


def _last_cut(buffer: str, pretokenizer: Pretokenizer, specials: SpecialSplitter) -> int:
    # A word boundary may lie inside a special token ("<|two words|>"): that token's end is later, and wins.
    limit = min(len(buffer) - 1, len(buffer) - specials.longest)
    boundary = pretokenizer.last_boundary(buffer, 0, limit) if limit > 0 else 0
    return max(boundary, specials.last_end(buffer))


def _compiled(pattern: str) -> regex.Pattern:
    if pattern in PATTERNS:
        return regex.compile(PATTERNS[pattern])
    _check_portable(pattern)
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"pattern {pattern[:80]!r}: not a regular expression ({error})") from error


def _check_portable(pattern: str) -> None:
    """ValueError for what Oniguruma, with which Hugging Face reads tokenizer.json, understands otherwise."""
    shown = f"pattern {pattern[:80]!r}"
    if len(pattern) > _MAX_CHARACTERS:
        raise ValueError(f"{shown}...: {len(pattern)} characters; at most {_MAX_CHARACTERS}")
    found = _FOREIGN.search(pattern) or _FOREIGN_OUTSIDE_SETS.search(_ESCAPE_OR_SET.sub("", pattern))
    if found:
        raise ValueError(f"{shown}: {found.group()!r} does not mean the same in every regular expression engine")


def _split_published(pattern: regex.Pattern, text: str) -> list[str]:
    stood_in = _with_old_classes(text)
    pieces = pattern.findall(stood_in)
    if stood_in is text or stood_in == text:
        return pieces
    ends = accumulate(map(len, pieces), initial=0)
    return [text[start:end] for start, end in pairwise(ends)]


def _split_custom(pattern: regex.Pattern, text: str) -> list[str]:
    pieces, start = [], 0
    try:
        for match in pattern.finditer(text, timeout=_SECONDS + _SECONDS_PER_CHARACTER * len(text)):
            pieces += text[start : match.start()], match.group()
            start = match.end()
    except TimeoutError as error:
        where = f"pattern {pattern.pattern[:80]!r}"
        raise ValueError(f"{where}: too slow on a text of {len(text)} characters") from error
    return [piece for piece in (*pieces, text[start:]) if piece]
