"""Unicode's form NFC as Hugging Face's tokenizers make it (Qwen's files ask for it).

Their tables are those of Unicode 9.0. A newer one composes more and reorders more marks; the characters that differ
are left alone here, and what stands between them is normalized. Unicode's rule that assigned characters keep their
normalization makes that exact.
"""

import unicodedata
from functools import cache

import regex

# Code points (hexadecimal) which a version after 9.0 began to compose or to reorder.
_NEWER = """
    5c8-5c9 7fd 897-89f 8ca-8d3 9fe c3c d3b-d3c eba 1715 1abf-1af0 1df6-1dfa a82c 105c9 105d2 105da 105e4
    10d24-10d27 10d69-10d6d 10eab-10eac 10ecb-10ecf 10ef0-10efb 10efd-10eff 10f46-10f50 10f82-10f85 11070 1133b
    11382-11385 1138b 1138e 11390-11391 113c2 113c5 113c7-113c8 113ce-113d0 1145e 11839-1183a 11935 11938
    1193d-1193e 11943 119e0 11a34 11a47 11a99 11d42 11d44-11d45 11d97 11f41-11f42 1611e 16121-16129 1612f 16d63
    16d67-16d6a 16ff0-16ff1 1d127-1d128 1d250-1d252 1d25b-1d25c 1d25f 1d280-1d281 1e08f 1e130-1e136 1e2ae
    1e2ec-1e2ef 1e4ec-1e4ef 1e5ee-1e5ef 1e6e3 1e6e6 1e6ee-1e6ef 1e6f5
"""


def normalize(text: str) -> str:
    """`text` in NFC, of Unicode 9.0.

    >>> normalize("e\u0301") == "\u00e9"
    True
    """
    if text.isascii():
        return text
    return "".join(part if number % 2 else unicodedata.normalize("NFC", part) for number, part in _numbered(text))


def _numbered(text: str) -> list[tuple[int, str]]:
    return list(enumerate(_newer().split(text)))  # every other part is one of the newer characters


@cache
def _newer() -> regex.Pattern:
    ranges = "".join("-".join(f"\\U{int(code, 16):08x}" for code in item.split("-")) for item in _NEWER.split())
    return regex.compile(f"([{ranges}])")
