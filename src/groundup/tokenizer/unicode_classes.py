"""Which characters are letters, numbers, marks and white space: the Unicode table of the split patterns.

The table is that of Unicode 16.0, which tiktoken 0.14 and Hugging Face's tokenizers 0.23 have too; other versions
would cut text with newer characters elsewhere. scripts/make_unicode_classes.py makes the file.
"""

from functools import cache
from importlib import resources

import numpy as np

UNICODE_VERSION = "16.0"
OTHER, WHITE, NUMBER, UPPER, LOWER, LETTER, MARK, UNASSIGNED = range(8)
CODE_POINTS, PAGE = 0x110000, 256


@cache
def class_tables() -> tuple[np.ndarray, np.ndarray]:
    """Two stages: class of a code point = pages[256 * index[code >> 8] + (code & 255)]. (uint16 [4352], uint8)

    White space is `\\s`, UPPER is Lu and Lt, LETTER is Lm and Lo; unassigned code points count as OTHER.
    """
    index, pages = _stored()
    return index, np.where(pages == UNASSIGNED, OTHER, pages).astype(np.uint8)


def unassigned_ranges() -> list[tuple[int, int]]:
    """First and last code point of each range that Unicode 16.0 leaves unassigned, and a newer one may not."""
    index, pages = _stored()
    unassigned = (pages.reshape(-1, PAGE)[index] == UNASSIGNED).ravel()
    edges = np.flatnonzero(np.diff(unassigned, prepend=False, append=False))
    return [(int(first), int(end) - 1) for first, end in edges.reshape(-1, 2)]


def write_tables(classes: np.ndarray) -> bytes:
    """The file of a class for each code point (uint8 [0x110000]): the index, then every page that differs."""
    pages, index = np.unique(classes.reshape(-1, PAGE), axis=0, return_inverse=True)
    return index.astype("<u2").tobytes() + pages.astype(np.uint8).tobytes()


@cache
def _stored() -> tuple[np.ndarray, np.ndarray]:
    data = (resources.files("groundup.tokenizer") / "unicode_classes.bin").read_bytes()
    size = 2 * CODE_POINTS // PAGE
    return np.frombuffer(data[:size], "<u2").astype(np.uint16), np.frombuffer(data[size:], np.uint8)
