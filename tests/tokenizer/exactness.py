r"""The proof of exactness: our ids against those of tiktoken and Hugging Face, on fuzzed strings and on real text.

    python -m tests.tokenizer.exactness --reference tiktoken:cl100k --strings 1000000 --seed 0 --text corpus.txt
    python -m tests.tokenizer.exactness --reference regex:o200k --strings 10000000
    python -m tests.tokenizer.exactness --tables

`--reference` may be repeated; without it, all whose vocabulary is there take their turn (see references.py for
where the files lie). `regex:PATTERN` compares pre-tokens only, with the `regex` module, and needs no vocabulary.
The exit code is 1 after a mismatch. `--tables` lists the code points that the engines count to different classes.

Every string is compared. Where the ids differ, the string has characters that two versions of Unicode count to
different classes, and the ids are equal without those characters, then the string is *excluded*: it says nothing
about our rules, only about the versions. A string that the reference does not survive is a *failure of the reference*.
"""

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import regex

from groundup.tokenizer import Tokenizer
from groundup.tokenizer.fast.front import Splitter
from groundup.tokenizer.normalize import normalize
from groundup.tokenizer.pretokenize import PATTERNS
from tests.tokenizer.fuzzed import fuzzed_strings
from tests.tokenizer.references import CLASSES, PATHS, Ids, Reference, load_reference, vocabulary_path

CODES = [*range(0xD800), *range(0xE000, 0x110000)]  # all code points that text may have

BATCH, JOINED, TEXT_BYTES = 1_000, 200_000, 1 << 20
SHOWN = 5


def scanned(pattern: str, text: str) -> list[str]:
    """The pre-tokens of `text` by our own means: what stands trial against the `regex` module."""
    return [piece.decode() for piece in _splitter(pattern).split(text.encode())]


_splitter = functools.cache(Splitter)


@functools.lru_cache(1 << 17)
def our_class(character: str) -> str:
    """To which class of references.CLASSES our tables count a character, told from how it joins its neighbours."""
    if len(scanned("gpt2", "1" + character)) == 1:
        return "number"
    joins_lower, before_upper = (
        len(scanned("o200k", "a" + character)) == 1,
        len(scanned("o200k", character + "Aa")) == 1,
    )
    if len(scanned("gpt2", "a" + character)) == 1:
        return ("caseless" if before_upper else "lower") if joins_lower else "upper"
    if len(scanned("gpt2", "!" + character)) == 2:
        return "white"
    return "mark" if joins_lower else "other"


@functools.lru_cache(1 << 17)
def regex_class(character: str) -> str:
    """To which class the `regex` module counts a character."""
    return next((name for name, pattern in CLASSES.items() if regex.match(pattern, character)), "other")


@dataclass
class Trial:
    """Two ways to the same result. `class_of` tells the reference's class of a character.

    ours, reference: text -> ids or pieces; the reference may give None, which is its failure.
    normalize: how the reference brings a text to the normal form NFC before anything else, where it does.
    """

    name: str
    ours: Callable[[str], Sequence]
    reference: Callable[[str], Sequence | None]
    reference_batch: Callable[[Sequence[str]], Sequence[Sequence | None]]
    class_of: Callable[[str], str]
    normalize: Callable[[str], str] | None
    explain: Callable[[str], str]

    def differs(self, text: str) -> bool:
        """Whether the results differ; not where the reference fails."""
        expected = self.reference(text)
        return expected is not None and list(self.ours(text)) != list(expected)

    def without_uncertain(self, text: str) -> str:
        """`text` without the characters that ours and the reference count to different classes."""
        return "".join(character for character in text if our_class(character) == self.class_of(character))

    def is_excluded(self, text: str) -> bool:
        """Whether a difference on `text` comes from versions of Unicode, of the classes or of the normal form."""
        certain = self.without_uncertain(text)
        if certain != text:
            return not self.differs(certain) or self._normal_form_differs(certain)
        return self._normal_form_differs(text)

    def _normal_form_differs(self, text: str) -> bool:
        return self.normalize is not None and self.normalize(text) != normalize(text)


@dataclass
class Tally:
    """What a run has found so far."""

    name: str
    strings: int = 0
    size: int = 0
    mismatches: int = 0
    excluded: int = 0
    failures: int = 0
    seconds: float = 0.0
    shown: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.strings:,} strings, {self.size / 1e6:,.1f} MB, {self.mismatches:,} mismatches, "
            f"{self.failures:,} failures of the reference, {self.excluded:,} excluded (Unicode versions), "
            f"{self.strings / max(self.seconds, 1e-9):,.0f} strings/s, "
            f"{self.size / 1e6 / max(self.seconds, 1e-9):,.2f} MB/s"
        )


def ids_trial(name: str) -> Trial:
    """Our ids against those of a reference (a key of references.PATHS)."""
    reference = load_reference(name)
    tokenizer = Tokenizer.load(vocabulary_path(name))
    return Trial(
        f"{name} ({reference.version})",
        tokenizer.encode,
        reference.encode,
        reference.encode_batch,
        functools.lru_cache(1 << 17)(reference.class_of),
        reference.normalize,
        lambda text: _explained(tokenizer, reference, text),
    )


def pieces_trial(pattern: str) -> Trial:
    """Our pre-tokens against those of the `regex` module by a published pattern."""
    find_all = regex.compile(PATTERNS[pattern]).findall
    return Trial(
        f"regex:{pattern} (regex {regex.__version__})",
        functools.partial(scanned, pattern),
        find_all,
        lambda texts: [find_all(text) for text in texts],
        regex_class,
        None,
        lambda text: f"ours:      {scanned(pattern, text)}\nreference: {find_all(text)}",
    )


def trial(name: str) -> Trial:
    """The trial of this name: `regex:PATTERN`, or a key of references.PATHS."""
    library, _, pattern = name.partition(":")
    if library == "regex" and pattern not in PATTERNS:
        raise ValueError(f"reference {name!r}: expected one of {', '.join(f'regex:{known}' for known in PATTERNS)}")
    return pieces_trial(pattern) if library == "regex" else ids_trial(name)


def compare(trial: Trial, texts: Iterable[str], tally: Tally | None = None) -> Tally:
    """Compare the results on every text. What differs is shrunk to the smallest text that still does, and explained."""
    tally = tally or Tally(trial.name)
    start = time.perf_counter()
    for batch in _batched(texts, BATCH):
        for text, expected in zip(batch, trial.reference_batch(batch), strict=True):
            _judge(trial, text, expected, tally)
    tally.seconds += time.perf_counter() - start
    return tally


def compare_fuzzed(trial: Trial, seed: int, count: int, progress: Callable[[Tally], None] | None = None) -> Tally:
    """Compare on fuzzed strings, and on long texts that they make when joined, which no buffer holds at once."""
    tally = Tally(trial.name)
    strings = fuzzed_strings(seed, count)
    while group := list(itertools.islice(strings, 10 * BATCH)):
        compare(trial, group, tally)
        joined = "".join(group)
        compare(trial, (joined[i : i + JOINED] for i in range(0, len(joined), JOINED)), tally)
        if progress:
            progress(tally)
    return tally


def compare_file(trial: Trial, path: Path, progress: Callable[[Tally], None] | None = None) -> Tally:
    """Compare on a text file, a megabyte of whole lines at a time."""
    tally = Tally(f"{trial.name} on {path.name}")
    for part in _parts(path):
        compare(trial, [part], tally)
        if progress:
            progress(tally)
    return tally


def _judge(trial: Trial, text: str, expected: Sequence | None, tally: Tally) -> None:
    tally.strings += 1
    tally.size += len(text.encode())
    if expected is None:
        tally.failures += 1
    elif list(trial.ours(text)) != list(expected):
        lines = [line for line in text.splitlines(keepends=True) if trial.differs(line)] if len(text) > 10_000 else []
        if all(trial.is_excluded(part) for part in lines or [text]):
            tally.excluded += 1
            return
        tally.mismatches += 1
        if len(tally.shown) < SHOWN:
            tally.shown.append(_report(trial, next((part for part in lines if not trial.is_excluded(part)), text)))


def _report(trial: Trial, text: str) -> str:
    certain = trial.without_uncertain(text)
    smallest = shrunk(trial.differs, certain if trial.differs(certain) else text)
    return f"mismatch on {ascii(smallest)}\n{trial.explain(smallest)}"


def shrunk(fails: Callable[[str], bool], text: str) -> str:
    """The shortest text that is found by cutting out halves, quarters, ... of `text` while it still fails.

    >>> shrunk(lambda text: "a" in text and "b" in text, "xxaxxxxxxbxx")
    'ab'
    """
    size = max(1, len(text) // 2)
    while size:
        start = 0
        while start < len(text):
            shorter = text[:start] + text[start + size :]
            if fails(shorter):
                text = shorter
            else:
                start += size
        size //= 2
    return text


def _explained(tokenizer: Tokenizer, reference: Reference, text: str) -> str:
    ours, theirs = tokenizer.encode(text), reference.encode(text) or []
    return "\n".join(
        (
            f"our pieces:      {scanned(tokenizer.pattern, text) if tokenizer.pattern in PATTERNS else '?'}",
            f"their pieces:    {reference.pieces(text) or 'unknown'}",
            f"our ids:         {ours} {_tokens(tokenizer, ours)}",
            f"their ids:       {theirs} {_tokens(tokenizer, theirs)}",
        )
    )


def _tokens(tokenizer: Tokenizer, ids: Ids) -> list[bytes]:
    return [tokenizer.vocab.get(token_id, b"?") for token_id in ids]


def _batched(texts: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    iterator = iter(texts)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


def _parts(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8", newline="") as file:
        while lines := file.readlines(TEXT_BYTES):
            yield "".join(lines)


def table_differences(
    class_of: Callable[[str], str], other: Callable[[str], str], codes: Iterable[int] = CODES
) -> dict[str, list[int]]:
    """ "class -> class": the code points that the first engine counts to the one, and the second to the other."""
    found: dict[str, list[int]] = {}
    for code in codes:
        first, second = class_of(chr(code)), other(chr(code))
        if first != second:
            found.setdefault(f"{first} -> {second}", []).append(code)
    return found


def ranges(codes: Sequence[int]) -> str:
    """Sorted code points as hexadecimal ranges.

    >>> ranges([0x41, 0x42, 0x43, 0x5A])
    '41-43 5A'
    """
    runs = itertools.groupby(enumerate(codes), lambda pair: pair[1] - pair[0])
    spans = [[code for _, code in run] for _, run in runs]
    return " ".join(f"{span[0]:X}-{span[-1]:X}" if len(span) > 1 else f"{span[0]:X}" for span in spans)


def available() -> list[str]:
    """The references whose vocabulary is there, and `regex` for each published pattern."""
    return [*(f"regex:{pattern}" for pattern in PATTERNS), *(name for name in PATHS if _is_there(name))]


def _is_there(name: str) -> bool:
    try:
        return vocabulary_path(name).exists()
    except FileNotFoundError:
        return False


def _show_tables(names: Sequence[str]) -> None:
    for name in names:
        try:
            class_of = trial(name).class_of
        except (OSError, ImportError) as error:
            print(f"{name}: {error}")
            continue
        differences = table_differences(our_class, class_of)
        print(f"ours -> {name}: {sum(map(len, differences.values())):,} code points differ")
        for change, codes in differences.items():
            print(f"  {change}: {len(codes):,}: {ranges(codes)}")


def _show_progress(tally: Tally) -> None:
    print(f"\r{tally}", end="", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", action="append", help=f"{', '.join(PATHS)} or regex:PATTERN; may be repeated")
    parser.add_argument("--strings", type=int, default=100_000, help="fuzzed strings per reference (default 100,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzed strings (default 0)")
    parser.add_argument("--text", type=Path, action="append", default=[], help="a UTF-8 file; may be repeated")
    parser.add_argument("--tables", action="store_true", help="only compare the classes of all code points")
    return parser.parse_args()


def main() -> int:
    """The command line: 0 when every comparison was exact, else 1."""
    arguments = _arguments()
    names = arguments.reference or available()
    if arguments.tables:
        _show_tables([name for name in names if name in ("regex:gpt2", "tiktoken:r50k") or "huggingface" in name])
        return 0
    mismatches = 0
    for name in names:
        subject = trial(name)
        tallies = [compare_fuzzed(subject, arguments.seed, arguments.strings, _show_progress)]
        tallies += [compare_file(subject, path, _show_progress) for path in arguments.text]
        for tally in tallies:
            print(f"\r{tally}", *tally.shown, sep="\n", flush=True)
            mismatches += tally.mismatches
    return 1 if mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
