"""Text that comes with the package, so that a first model can be built with no file and no network.

The 233 State of the Union addresses from 1790 to 2021, in the public domain (see the LICENSE beside them).
`scripts/make_bundled_corpus.py` makes the file again from its source.
"""

from pathlib import Path

#: SHA-256 of the compressed file. Another release of zstd may compress the same text to other bytes.
FILE_SHA256 = "8763243536f3461e12bcc84c121243aaea29c8176642e7f1a1372fa5fc48d1ab"
#: SHA-256 of the text inside (the uncompressed JSON lines).
TEXT_SHA256 = "ee71fb96562caea1bb1475434d163b02170685f7e6353e61812a364f299a4567"


def path() -> Path:
    """The bundled corpus: JSON lines with `title`, `year` and `text`, compressed with zstd."""
    return Path(__file__).parent / "state_of_the_union.jsonl.zst"
