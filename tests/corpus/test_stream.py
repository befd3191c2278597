"""Bounded streams: the same bytes whatever the compression and the chunks, and no bomb goes off."""

import bz2
import contextlib
import gzip
import lzma
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus import Limits, Unreadable
from groundup.corpus.stream import chunks, decode, split, without_lone_surrogates

PACK = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(level=3).compress,
}
KINDS = sorted(PACK)


def content(path, **limits):
    return b"".join(chunks(path, Limits(**limits)))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_unpacked_is_what_was_packed(tmp_path, kind):
    data = b"".join(b"line %d of some text\n" % i for i in range(20_000))
    path = tmp_path / f"a.txt{kind}"
    path.write_bytes(PACK[kind](data))
    assert content(path) == data
    assert max(map(len, chunks(path, Limits()))) < 2**23


def test_several_frames_and_padding(tmp_path, kind):
    path = tmp_path / f"a.txt{kind}"
    path.write_bytes(PACK[kind](b"one ") + PACK[kind](b"") + PACK[kind](b"two") + b"\0" * 8)
    assert content(path) == b"one two"


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.99])
def test_cut_short(tmp_path, kind, keep):
    packed = PACK[kind](bytes(range(256)) * 100 + b"end")
    path = tmp_path / f"a.txt{kind}"
    path.write_bytes(packed[: max(1, int(len(packed) * keep))])
    with pytest.raises(Unreadable, match=r"a\.txt.*broken"):
        content(path)


def test_every_flipped_byte_is_an_error_or_harmless(tmp_path):
    data = b"some text that is packed with a checksum " * 20
    path = tmp_path / "a.txt.gz"
    packed = gzip.compress(data, mtime=0)
    for at in range(len(packed)):
        damaged = bytearray(packed)
        damaged[at] ^= 0x55
        path.write_bytes(damaged)
        with contextlib.suppress(Unreadable):
            assert content(path) == data, at


def test_not_what_the_name_says(tmp_path, kind):
    path = tmp_path / f"a.txt{kind}"
    path.write_bytes(bz2.compress(b"other"))
    with pytest.raises(Unreadable, match=kind):
        content(path)


def test_a_bomb_is_refused(tmp_path, kind):
    path = tmp_path / f"bomb.txt{kind}"
    path.write_bytes(PACK[kind](bytes(80 * 2**20)))
    with pytest.raises(Unreadable, match="more than 250 times"):
        for chunk in chunks(path, Limits()):
            assert len(chunk) < 2**27
    assert len(content(path, expansion=10**6)) == 80 * 2**20


def test_very_compressible_text_of_ordinary_size_is_no_bomb(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(zlib.compress(b"a" * 10**6, wbits=31))
    assert len(content(path)) == 10**6


@given(
    data=st.binary(max_size=60).map(lambda b: bytes(b"ab|-"[x % 4] for x in b)),
    cuts=st.lists(st.integers(0, 60)),
    separator=st.sampled_from([b"|", b"|-", b"a|b"]),
    most=st.integers(0, 12),
)
def test_split_is_bytes_split_for_any_chunks(data, cuts, separator, most):
    edges = sorted({0, len(data), *(c for c in cuts if c <= len(data))})
    stream = (data[a:b] for a, b in zip(edges, edges[1:], strict=False))
    expected = data.split(separator)
    if not expected[-1]:
        expected.pop()
    pieces = list(split(stream, separator, most))
    assert [p.length for p in pieces] == [len(e) for e in expected]
    at = 0
    for piece, part in zip(pieces, expected, strict=True):
        assert piece.offset == at
        assert piece.data == (part if len(part) <= most else None)
        at += len(part) + len(separator)


def test_a_piece_that_is_too_long_takes_no_memory():
    seen = []
    stream = (b"x" * 1000 for _ in range(1000))
    for piece in split(stream, b"\n", most_bytes=10):
        seen.append((piece.length, piece.data))
    assert seen == [(1_000_000, None)]


def test_decode_counts_what_it_replaces():
    assert decode(b"plain", "f") == ("plain", None)
    assert decode(b"\xef\xbb\xbfmarked", "f") == ("marked", None)
    text, problem = decode(b"caf\xe9 \xef\xbf\xbd and so on and on", "f", offset=100)
    assert text == "caf\ufffd \ufffd and so on and on"
    assert problem is not None and not problem.dropped
    assert problem.detail.startswith("1 sequence, the first at byte 103")


def test_decode_says_when_it_is_no_utf8_at_all():
    _, problem = decode("Съешь же ещё этих мягких булок".encode("koi8-r"), "f")
    assert problem is not None and problem.dropped


def test_lone_surrogates_are_replaced_and_pairs_are_joined():
    assert without_lone_surrogates("né", "f") == ("né", None)
    text, problem = without_lone_surrogates("a\ud800b\udc00 \ud83d\ude00", "f")
    assert text == "a\ufffdb\ufffd 😀"
    assert problem is not None and not problem.dropped
