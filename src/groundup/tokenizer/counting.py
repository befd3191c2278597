"""Text files and other long texts as pre-token counts, in bounded memory."""

import codecs
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from groundup.tokenizer.pretokenize import Pretokenizer, SpecialSplitter, safe_chunks, well_formed

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
_ENCODED_REPLACEMENT = "\ufffd".encode()


def read_text(path: str | Path, on_bytes: Callable[[int], None] | None = None) -> Iterator[str]:
    """The text of a UTF-8 file, a megabyte at a time; line ends are kept as they are.

    Invalid bytes become U+FFFD as in `bytes.decode("utf-8", "replace")`, and a warning says how many.
    `on_bytes` is told the number of bytes read so far.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    total, replacements, tail = 0, 0, b""
    with open(path, "rb") as file:
        while data := file.read(_READ_BYTES):
            text = decoder.decode(data)
            # A replacement character that the file itself contains may lie across two reads.
            replacements += text.count("\ufffd") - (tail + data).count(_ENCODED_REPLACEMENT)
            tail, total = (tail + data)[-2:], total + len(data)
            if on_bytes:
                on_bytes(total)
            yield text
    rest = decoder.decode(b"", final=True)
    replacements += rest.count("\ufffd")
    if replacements:
        logger.warning("%s: %d invalid UTF-8 sequences were read as U+FFFD", path, replacements)
    if rest:
        yield rest


class PretokenCounter:
    """Counts how often each pre-token occurs, between the special tokens and never across them.

    >>> counter = PretokenCounter("gpt2", ["<|end|>"])
    >>> counter.add(["a cat", " sat<|end|>a c"])
    >>> sorted(counter.counts().items())
    [(b' c', 1), (b' cat', 1), (b' sat', 1), (b'a', 2)]
    """

    def __init__(self, pattern: str | None, special_tokens: Iterable[str]) -> None:
        self._pretokenizer = Pretokenizer(pattern)
        self._specials = SpecialSplitter(list(special_tokens))
        self._counts: Counter[str] = Counter()

    def add(self, parts: Iterable[str]) -> None:
        """Count one text, which comes in consecutive parts: where they are cut makes no difference."""
        for chunk in safe_chunks(map(well_formed, parts), self._pretokenizer, self._specials, _READ_BYTES):
            for part, is_special in self._specials.split(chunk):
                if not is_special:
                    for block in self._pretokenizer.blocks(part):
                        self._counts.update(self._pretokenizer.split(block))

    def counts(self) -> dict[bytes, int]:
        """The counts so far, of UTF-8 bytes."""
        return {piece.encode(): count for piece, count in self._counts.items()}
