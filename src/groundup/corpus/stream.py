"""Files as bounded streams of bytes: decompression, cutting at a separator, decoding.

Nothing here holds more than one record in memory, whatever the size of the file or of what it unpacks to.
"""

import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from groundup.config import plural
from groundup.corpus.document import Problem, Unreadable

COMPRESSED = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".xz": lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=2**28),
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj(),
}
_BROKEN = (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError)
_CHUNK = 2**20
# One call unpacks its whole piece. Zstd can turn 4 bytes into 128 KiB, so 2 KiB stay under 64 MiB.
_COMPRESSED_PIECE = 2**11
_BOMB_FREE = 2**26
_MOST_INVALID = 0.3
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Limits:
    """How much a reader takes in before it refuses.

    record_bytes: one JSON record. A longer one is skipped without being held in memory.
    text_bytes: one document of a text file, or one whole .json file.
    expansion: unpacked bytes per compressed byte, from 64 MiB on (text reaches 10; a bomb 1,000 and more).
    """

    record_bytes: int = 2**27
    text_bytes: int = 2**30
    expansion: int = 250


@dataclass(frozen=True)
class Piece:
    """What stands between two separators. `data` is None when it was longer than allowed."""

    offset: int
    data: bytearray | None
    length: int


def chunks(path: Path, limits: Limits) -> Iterator[bytes]:
    """The content of a file in pieces, unpacked when the name ends in .gz, .xz or .zst.

    Raises Unreadable for damaged, cut short or hostile compressed data.
    """
    start = COMPRESSED.get(path.suffix.lower())
    with open(path, "rb") as file:
        if start is None:
            while chunk := file.read(_CHUNK):
                yield chunk
        else:
            yield from _unpack(path, iter(lambda: file.read(_COMPRESSED_PIECE), b""), start, limits)


def _unpack(path: Path, pieces: Iterator[bytes], start: Callable[[], Any], limits: Limits) -> Iterator[bytes]:
    """Unpack a sequence of frames (`cat a.gz b.gz` is a valid file), each checked to be complete."""
    unpacker, consumed, produced, pending = None, 0, 0, bytearray()
    for piece in pieces:
        consumed += len(piece)
        while piece:
            if unpacker is None:
                piece = piece.lstrip(b"\0")  # padding between frames
                if not piece:
                    break
                unpacker = start()
            try:
                out = unpacker.decompress(piece)
            except _BROKEN as error:
                raise Unreadable(f"{path}: broken {path.suffix} data near byte {consumed:,} ({error})") from error
            piece = unpacker.unused_data if unpacker.eof else b""
            unpacker = None if unpacker.eof else unpacker
            produced += len(out)
            if produced > _BOMB_FREE and produced > limits.expansion * consumed:
                raise Unreadable(f"{path}: unpacks to more than {limits.expansion} times its size; refused")
            pending += out
        if len(pending) >= _CHUNK:
            yield bytes(pending)
            pending.clear()
    if pending:
        yield bytes(pending)
    if unpacker is not None:
        raise Unreadable(f"{path}: broken {path.suffix} data: it ends in the middle, after {consumed:,} bytes")


def split(stream: Iterator[bytes], separator: bytes, most_bytes: int) -> Iterator[Piece]:
    """Cut a stream at every separator. The last piece (after the last separator) is given when not empty.

    A piece of more than `most_bytes` is passed over in constant memory and given with `data=None`.
    """
    buffer, offset, searched, passed_over = bytearray(), 0, 0, 0
    overlap = len(separator) - 1
    for chunk in stream:
        buffer += chunk
        start = 0
        while (end := buffer.find(separator, max(start, searched))) >= 0:
            yield _piece(offset + start - passed_over, buffer[start:end], passed_over, most_bytes)
            start = end + len(separator)
            passed_over = 0
        del buffer[:start]
        offset += start
        if len(buffer) > most_bytes + overlap:
            drop = len(buffer) - overlap
            del buffer[:drop]
            offset, passed_over = offset + drop, passed_over + drop
        searched = max(0, len(buffer) - overlap)
    if buffer or passed_over:
        yield _piece(offset - passed_over, buffer, passed_over, most_bytes)


def _piece(offset: int, data: bytearray, passed_over: int, most_bytes: int) -> Piece:
    length = passed_over + len(data)
    return Piece(offset, data if length <= most_bytes else None, length)


def decode(raw: bytes | bytearray, source: str, offset: int = 0) -> tuple[str, Problem | None]:
    """UTF-8 to text, without a byte order mark. Each invalid sequence becomes U+FFFD, and is reported.

    The problem says `dropped` when so much is invalid that this is not UTF-8 text at all.
    """
    if offset == 0 and raw.startswith(_BYTE_ORDER_MARK):
        raw = raw[len(_BYTE_ORDER_MARK) :]
        offset = len(_BYTE_ORDER_MARK)
    try:
        return raw.decode("utf-8"), None
    except UnicodeDecodeError as error:
        first = offset + error.start
    text = raw.decode("utf-8", "replace")
    invalid = text.count(_REPLACEMENT) - raw.count(_REPLACEMENT.encode())
    if invalid > _MOST_INVALID * len(text) and len(text) > 16:
        return text, Problem(source, "not UTF-8 text", f"{invalid:,} invalid bytes, the first at {first:,}")
    detail = f"{plural(invalid, 'sequence')}, the first at byte {first:,}, became U+FFFD"
    return text, Problem(source, "invalid UTF-8", detail, dropped=False)


def without_lone_surrogates(text: str, source: str) -> tuple[str, Problem | None]:
    r"""JSON can spell half a character (`"\ud800"`), which no encoding can write: it becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        mended = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        detail = f"the first at character {error.start:,}, became U+FFFD"
        return mended, Problem(source, "lone surrogate", detail, dropped=False)
    return text, None
