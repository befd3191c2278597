r"""What takes too long or too much for a test: the time of encoding hostile texts, and the memory of endless streams.

    python -m tests.tokenizer.endurance --vocabulary o200k_base.tiktoken --repeats 1000000
    python -m tests.tokenizer.endurance --search 1800
    python -m tests.tokenizer.endurance --stream 1000000000

repeats: encodes one character, or one short unit, n and 2 n times; the time must grow by no more than 2.3, and every
text must come back. search: mutates strings for so many seconds towards the one that takes the longest per byte, which
must take no more than five times the median of fuzzed strings, the first time that a fresh tokenizer
sees it. stream: encodes so many characters in parts, which must take no more than a megabyte of memory. The exit code
is 1 where something exceeds its bound. Times are those of the process, so that other work on the machine counts little.
Without a vocabulary, small ones are trained.
"""

import argparse
import itertools
import random
import resource
import statistics
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from groundup.tokenizer import PATTERNS, Tokenizer
from tests.tokenizer.fuzzed import SEED_TEXT, fuzzed_strings

MAX_GROWTH, MAX_SLOWNESS, MAX_STREAM_BYTES = 2.3, 5.0, 1 << 20
UNITS = (
    " ",
    "\n",
    "\t",
    "\r\n",
    " \n",
    "\n ",
    "'s",
    "'",
    "aA",
    "Aa",
    "a1",
    "e\u0301",
    "\u0301",
    "!\n",
    "/\n",
    "👩\u200d",
    "你",
)
MUTANT_CHARACTERS = 4_096  # shorter ones measure the cost of a call
_KEEP, _RUNS, _CONFIRMED = 20, 5, 3


def units() -> list[str]:
    """One character of each general category, and units that the rules of the patterns treat specially."""
    found: dict[str, str] = {}
    for character in map(chr, itertools.chain(range(0xD800), range(0xE000, 0x30000))):
        found.setdefault(unicodedata.category(character), character)
    return [*found.values(), *UNITS]


def cpu_seconds(work: Callable[[], object]) -> float:
    """The time of the process that some work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def seconds_for_run(tokenizer: Tokenizer, unit: str, length: int) -> float:
    """The median time of five runs, each a little longer than the one before, so that no cache knows it."""
    texts = [unit * (length + extra) + "a" for extra in range(_RUNS)]
    return statistics.median(cpu_seconds(lambda text=text: tokenizer.encode(text)) for text in texts)


def growth(tokenizer: Tokenizer, unit: str, length: int) -> float:
    """By how much more time twice as long a run takes. ValueError where a run does not come back."""
    text = unit * (2 * length)
    if tokenizer.decode(tokenizer.encode(text)) != text:
        raise ValueError(f"{unit!r} times {2 * length}: does not come back")
    return seconds_for_run(tokenizer, unit, 2 * length) / seconds_for_run(tokenizer, unit, length)


def seconds_per_byte(tokenizer: Tokenizer, text: str) -> float:
    """The time that a text takes the first time, for each byte of it."""
    return cpu_seconds(lambda: tokenizer.encode(text)) / len(text.encode())


def confirmed(tokenizer: Tokenizer, text: str) -> float:
    """The median of three first times: each in a tokenizer whose caches are empty."""
    fresh = (Tokenizer.from_parts(tokenizer.parts()) for _ in range(3))
    return statistics.median(seconds_per_byte(one, text) for one in fresh)


def slowest(tokenizer: Tokenizer, seconds: float, seed: int) -> tuple[float, str]:
    """(seconds per byte, text) of the slowest text that mutation finds in so many seconds."""
    draw = random.Random(seed)
    strings = fuzzed_strings(seed, sys.maxsize)
    first = [_filled(next(strings)) for _ in range(_KEEP)]
    pool = sorted(((seconds_per_byte(tokenizer, text), text) for text in first), reverse=True)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        text = _mutant(draw, [text for _, text in pool], next(strings))
        pool.append((seconds_per_byte(tokenizer, text), text))
        pool = sorted(pool, reverse=True)[:_KEEP]
    return max((confirmed(tokenizer, text), text) for _, text in pool[:_CONFIRMED])


def _filled(text: str) -> str:
    text = text or "a"
    return (text * (MUTANT_CHARACTERS // len(text) + 1))[:MUTANT_CHARACTERS]


def _mutant(draw: random.Random, pool: list[str], other: str) -> str:
    text = draw.choice(pool)
    start = draw.randrange(len(text))
    end = min(len(text), start + draw.choice((1, 2, 8, 64, 512)))
    kind = draw.random()
    if kind < 0.3:  # another string in one place
        return _filled(text[:start] + other + text[end:])
    if kind < 0.6:  # nothing but a part, again and again
        return _filled(text[start:end])
    return _filled(text[:start] + draw.choice(pool)[start:end] + text[end:])


def stream_bytes(tokenizer: Tokenizer, characters: int) -> int:
    """By how many bytes the peak of the process's memory rises while so many characters stream through."""
    strings = list(fuzzed_strings(0, 2_000))
    sum(1 for _ in tokenizer.encode_iterable(_endless(strings, characters // 100)))
    before = _peak_bytes()
    sum(1 for _ in tokenizer.encode_iterable(_endless(strings, characters)))
    return _peak_bytes() - before


def _endless(strings: list[str], characters: int) -> Iterator[str]:
    draw = random.Random(0)
    while characters > 0:
        part = draw.choice(strings) + " word "
        characters -= len(part)
        yield part


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check_repeats(tokenizer: Tokenizer, length: int) -> bool:
    """Whether the time of every run grows in proportion to its length."""
    found = {unit: growth(tokenizer, unit, length // len(unit)) for unit in units()}
    for unit, factor in sorted(found.items(), key=lambda item: -item[1])[:5]:
        print(f"  {ascii(unit)} x {length:,}: twice the length takes {factor:.2f} times as long")
    return max(found.values()) <= MAX_GROWTH


def check_slowness(tokenizer: Tokenizer, seconds: float, seed: int) -> bool:
    """Whether no text that the search finds takes much longer per byte than fuzzed ones do."""
    median = statistics.median(seconds_per_byte(tokenizer, _filled(text)) for text in fuzzed_strings(seed + 1, 200))
    worst, text = slowest(tokenizer, seconds, seed)
    print(f"  median {median * 1e9:.1f} ns/byte, slowest {worst * 1e9:.1f} ({worst / median:.1f} times)")
    print(f"  the slowest begins {ascii(text[:80])}")
    return worst <= MAX_SLOWNESS * median


def check_stream(tokenizer: Tokenizer, characters: int) -> bool:
    """Whether a stream takes no more memory than it may."""
    rise = stream_bytes(tokenizer, characters)
    print(f"  {characters:,} characters in a stream raise the peak of memory by {rise:,} bytes")
    return rise <= MAX_STREAM_BYTES


def _tokenizers(paths: list[Path]) -> Iterator[tuple[str, Tokenizer]]:
    if paths:
        yield from ((path.name, Tokenizer.load(path)) for path in paths)
        return
    text = [SEED_TEXT, *fuzzed_strings(0, 2_000)]
    for pattern in PATTERNS:
        yield pattern, Tokenizer.train_from_iterator(text, 2_000, pattern=pattern)


def main() -> int:
    """The command line: 0 when everything stayed within its bounds, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, action="append", default=[], help="a file to load; may be repeated")
    parser.add_argument("--repeats", type=int, default=0, help="characters in a run")
    parser.add_argument("--search", type=float, default=0.0, help="seconds")
    parser.add_argument("--stream", type=int, default=0, help="characters")
    parser.add_argument("--seed", type=int, default=0, help="of the search (default 0)")
    arguments = parser.parse_args()
    fine = True
    for name, tokenizer in _tokenizers(arguments.vocabulary):
        print(name, flush=True)
        fine &= not arguments.repeats or check_repeats(tokenizer, arguments.repeats)
        fine &= not arguments.search or check_slowness(tokenizer, arguments.search, arguments.seed)
        fine &= not arguments.stream or check_stream(tokenizer, arguments.stream)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
