"""Encoding by compiled code against encoding in plain Python."""

import gc
import os
import random
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer import PATTERNS, Tokenizer, ranges
from groundup.tokenizer.fast import encode_context as at
from groundup.tokenizer.fast import file_encoder
from groundup.tokenizer.fast.bridge import Bridge
from groundup.tokenizer.fast.encoder import EncodeContext, FastEncoder, Sizes
from groundup.tokenizer.fast.merge import MERGE_MULTIPLIER
from groundup.tokenizer.fast.vocabulary_tables import hash_of, pair_table
from tests.thorough import one_in, times
from tests.tokenizer.awkward import FRAGMENTS as AWKWARD
from tests.tokenizer.fuzzed import fuzzed_strings

TEXT = " ".join(text.encode("utf-8", "replace").decode() for text in (*AWKWARD, *fuzzed_strings(3, 500)))
SENTENCE = "the cat sat on the mat, and thence the hat's brim's thatch was catching 12345 naïve über-cats 中文字"
WORDS = SENTENCE.split()


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer._plain.encode(text)


@pytest.fixture(scope="module", params=PATTERNS)
def trained(request) -> Tokenizer:
    return Tokenizer.train_from_iterator([TEXT, " ".join(WORDS * 3)], 700, pattern=request.param)


def test_ids_are_those_of_plain_python(trained):
    for text in (*AWKWARD, *fuzzed_strings(11, 2_000), TEXT):
        text = text.encode("utf-8", "replace").decode()
        assert trained.encode(text) == plain(trained, text)


def test_any_way_of_asking_gives_the_same_ids(trained):
    texts = [text.encode("utf-8", "replace").decode() for text in (*AWKWARD, *fuzzed_strings(12, 300))]
    expected = [plain(trained, text) for text in texts]
    assert trained.encode_batch(texts) == expected
    assert trained.encode_batch(texts, workers=3) == expected
    ids, offsets = trained.encode_ragged(texts, workers=1)
    assert [ids[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)] == expected
    assert [trained.encode_array(text).tolist() for text in texts] == expected
    assert ids.dtype == trained.id_type == np.uint16


def test_threads_cut_a_long_text_where_nothing_changes(trained):
    text = TEXT * (1 + 2_000_000 // len(TEXT.encode()))
    ids, offsets = trained.encode_ragged([text, "x", text[:1000]], workers=3)
    expected, ends = trained.encode_ragged([text, "x", text[:1000]], workers=1)
    assert np.array_equal(ids, expected) and np.array_equal(offsets, ends)
    assert ids[offsets[1] :].tolist() == [*plain(trained, "x"), *plain(trained, text[:1000])]


@given(text=st.text())
def test_any_text(text):
    tokenizer = small_tokenizer()
    text = text.encode("utf-8", "replace").decode()
    assert tokenizer.encode(text) == plain(tokenizer, text)


_small: list[Tokenizer] = []


def small_tokenizer() -> Tokenizer:
    if not _small:
        _small.append(Tokenizer.train_from_iterator(WORDS * 5, 400))
    return _small[0]


def random_vocabulary(seed: int, num_merges: int) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """Merges that no text would teach: over few bytes, also of one result in two ways."""
    draw = random.Random(seed)
    tokens = [bytes([byte]) for byte in range(256)]
    pool = [b"a", b"b", b"\0", b" "]
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < num_merges:
        pair = draw.choice(pool), draw.choice(pool)
        if pair in merges or len(pair[0] + pair[1]) > 40:
            continue
        merges.append(pair)
        if pair[0] + pair[1] not in tokens:
            tokens.append(pair[0] + pair[1])
            pool.append(pair[0] + pair[1])
    return dict(enumerate(tokens)), merges


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pattern", ["gpt2", None])
@pytest.mark.parametrize("kind", ["order", "whole", "ranks"])
def test_merges_in_any_order_and_of_any_kind(seed, pattern, kind):
    vocab, merges = random_vocabulary(seed, 120)
    listed = None if kind == "ranks" else merges
    tokenizer = Tokenizer(vocab, listed, [], pattern, ignore_merges=kind == "whole")
    draw = random.Random(seed)
    for size in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 95, 96, 97, 98, 255, 256, 257, 300, 1000):
        for alphabet in ("a", "ab", "ab\0", "ab\0 ", "aab c\n"):
            text = "".join(draw.choice(alphabet) for _ in range(size))
            assert tokenizer.encode(text) == plain(tokenizer, text), (size, alphabet)


def test_ids_of_more_than_sixteen_bits():
    vocab = {byte: bytes([byte]) for byte in range(256)} | {70_000: b"th", 1_000_000: b"the", 300: b" the"}
    tokenizer = Tokenizer(vocab, [(b"t", b"h"), (b"th", b"e"), (b" ", b"the")])
    text = "the theth thethe xyzzy the"
    assert tokenizer.encode(text) == plain(tokenizer, text)
    assert tokenizer.encode_array(text).dtype == np.uint32
    assert tokenizer.decode(tokenizer.encode_array(text)) == text


def test_the_largest_id_of_sixteen_bits_is_not_taken_for_an_empty_lane():
    vocab = {byte: bytes([byte]) for byte in range(256)} | {65_535: b"th"}
    tokenizer = Tokenizer(vocab, [(b"t", b"h")])
    assert tokenizer.encode("th thth") == [65_535, 32, 65_535, 65_535]


def test_too_many_ids_for_the_tables_are_encoded_in_plain_python(caplog):
    tokenizer = Tokenizer({byte: bytes([byte]) for byte in range(256)} | {1 << 21: b"th"}, [(b"t", b"h")])
    assert tokenizer.encode("the") == [1 << 21, 101]
    assert "plain Python" in caplog.text


def test_a_byte_without_a_token_disappears():
    vocab = {byte: bytes([byte]) for byte in range(256) if byte not in b"xq"} | {256: b"th"}
    for kind in (False, True):
        tokenizer = Tokenizer(vocab, [(b"t", b"h")], ignore_merges=kind)
        for text in ("txh x xx xthq", "q", "x" * 300 + "th"):
            assert (
                tokenizer.encode(text) == plain(tokenizer, text) == tokenizer.encode(text.translate({120: "", 113: ""}))
            )
        assert not tokenizer.lossless


TINY = Sizes(1 << 10, 4, (1 << 10, 1 << 10), (1 << 12, 1 << 12), (1 << 11, 1 << 11), (1 << 12, 1 << 12), 64)


def test_tables_that_are_full_forget_everything_and_nothing_is_wrong(trained, monkeypatch):
    forgotten = []
    monkeypatch.setattr(
        EncodeContext, "_forget", lambda self, forget=EncodeContext._forget: forgotten.append(forget(self))
    )
    encoder = FastEncoder(trained.pattern, trained._tables, TINY)
    draw = random.Random(5)
    text = " ".join("".join(draw.choice("abcdefgh") for _ in range(draw.randrange(1, 40))) for _ in range(20_000))
    assert encoder.encode_list(text) == plain(trained, text)
    assert len(forgotten) > 5


def test_ids_come_out_whole_where_the_output_has_to_grow():
    tokenizer = Tokenizer({byte: bytes([byte]) for byte in range(256)}, [])
    text = "\u3042\u3044 x" * 30_000
    assert tokenizer.encode_array(text).tolist() == list(text.encode())


def test_a_custom_pattern_is_split_in_python_and_merged_here(caplog):
    tokenizer = Tokenizer.train_from_iterator([TEXT], 500, pattern=r"\w+|\W")
    assert isinstance(tokenizer._fast, Bridge)
    for text in (TEXT, "", "a" * 3000):
        assert tokenizer.encode(text) == plain(tokenizer, text)
    assert tokenizer.encode_batch(["a b", TEXT], workers=2) == [plain(tokenizer, "a b"), plain(tokenizer, TEXT)]


@pytest.mark.parametrize("unit", [" ", "\t", "\n", "a", "1", "é", "ab", " \n", "'s", "\0", "中"])
@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k"])
def test_a_million_of_one_character(unit, pattern):
    tokenizer = (
        small_tokenizer() if pattern == "gpt2" else Tokenizer.train_from_iterator(WORDS * 5, 400, pattern=pattern)
    )
    text = unit * (1_000_000 // len(unit)) + "x"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    short = unit * 1_000 + "x"
    assert tokenizer.encode(short) == plain(tokenizer, short)


@pytest.mark.parametrize("text", ["", "\ud800", "a\udfff b", "\ufeff", "\0", "\U0010ffff", "e" + "\u0301" * 100_000])
def test_what_is_hardly_text(text):
    tokenizer = small_tokenizer()
    well_formed = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenizer.decode(tokenizer.encode(text)) == well_formed
    assert tokenizer.encode_batch([text, "a"]) == [tokenizer.encode(text), tokenizer.encode("a")]
    assert tokenizer.encode_array(text).tolist() == tokenizer.encode(text)


def test_all_bytes_come_back():
    tokenizer = small_tokenizer()
    for first in range(256):
        assert tokenizer.decode_bytes(tokenizer.encode_bytes(bytes([first]))) == bytes([first])
    data = b"".join(bytes([first, second]) for first in range(256) for second in range(256))
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


@pytest.mark.slow
def test_strings_of_three_bytes_come_back():
    tokenizer = small_tokenizer()
    for first in range(0, 256, one_in(50)):
        threes = np.array([[first, a, b] for a in range(256) for b in range(256)], np.uint8)
        addresses = threes.ctypes.data + 3 * np.arange(1 << 16)
        assert tokenizer._fast is not None
        ids, ends, _ = tokenizer._fast._encoder.encode(addresses, np.full(1 << 16, 3))
        lengths = np.array([len(tokenizer.vocab[token]) for token in range(256 + len(tokenizer.merges))])[ids]
        assert tokenizer.decode_bytes(ids) == threes.tobytes()
        assert (np.diff(np.concatenate([[0], np.cumsum(lengths)[ends - 1]])) == 3).all()


def test_a_file_with_special_tokens_is_its_text(tmp_path):
    tokenizer = small_tokenizer()
    path = tmp_path / "documents.txt"
    for content in (b"", b"the cat", b"<|endoftext|>", b"a<|endoftext|><|endoftext|>the hat\n", b"<|endoftex"):
        path.write_bytes(content)
        assert tokenizer.encode_file(path).tolist() == tokenizer.encode(content.decode(), "all")
        assert tokenizer.encode_file(path, ()).tolist() == tokenizer.encode(content.decode())


@pytest.mark.parametrize("broken", [b"\xff", b"\xe4\xb8", b"a\x80b", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"])
def test_a_file_that_is_not_utf8_is_read_with_replacements(tmp_path, broken):
    tokenizer = small_tokenizer()
    for content in (broken, b"the cat " * 10_000 + broken, broken + b" the cat" * 10_000):
        (tmp_path / "file").write_bytes(content)
        assert tokenizer.encode_file(tmp_path / "file").tolist() == tokenizer.encode(content.decode("utf-8", "replace"))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(file_encoder, "STEP", 1_000)
    monkeypatch.setattr(ranges, "_WINDOW", 64)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_file_of_many_blocks_is_one_text(tmp_path, trained, small_blocks, workers):
    parts = trained.parts()
    tokenizer = Tokenizer(parts.vocab, parts.merges, ["<|endoftext|>", "\n\n---\n", "<|end"], trained.pattern)
    texts = [text.encode("utf-8", "replace").decode() for text in (*AWKWARD, *fuzzed_strings(21, 300), "a" * 5_000)]
    for separator in ("<|endoftext|>", "\n\n---\n", " <|end", " and ", ""):
        text = separator.join(texts)
        (tmp_path / "file").write_bytes(text.encode())
        for allowed in ("all", ["<|end"], ()):
            ids = tokenizer.encode_file(tmp_path / "file", allowed, workers=workers)
            assert ids.tolist() == tokenizer.encode(text, allowed)
            assert ids.dtype == tokenizer.id_type and ids.flags.owndata


@pytest.mark.parametrize("workers", [1, 3])
def test_blocks_that_are_not_utf8_are_read_with_replacements(tmp_path, small_blocks, workers):
    tokenizer, draw = small_tokenizer(), random.Random(9)
    data = b"".join(
        draw.choice(
            [b" the cat", b"<|endoftext|>", b"\xff", b"\xe4\xb8", "\u4e2d\ufffd".encode(), b"\xed\xa0\x80", b"\n"]
        )
        for _ in range(20_000)
    )
    (tmp_path / "file").write_bytes(data)
    ids = tokenizer.encode_file(tmp_path / "file", workers=workers)
    assert ids.tolist() == tokenizer.encode(data.decode("utf-8", "replace"), "all")


def test_special_tokens_that_overlap_are_cut_as_in_one_text(tmp_path, monkeypatch):
    """Where no word ends, files are cut behind special tokens, and only those that no other one shadows."""
    monkeypatch.setattr(file_encoder, "STEP", 200)
    monkeypatch.setattr(ranges, "_WINDOW", 64)
    learned = Tokenizer.train_from_iterator(["<<<>>>||!!?? <<>> " * 500 + ">>>>>>!!! >>>>>>>!!!! ||>>>" * 100], 330, [])
    draw = random.Random(1)
    for _ in range(times(100)):
        left, right = "<" * (size := draw.randint(2, 8)), ">" * size
        tokenizer = Tokenizer(learned.vocab, learned.merges, [left + "|", "|" + right])
        pieces = [left + "|" + right, "!", ">", left, "|", ">>!!", "|" + right]
        text = "".join(draw.choices(pieces, k=draw.randint(60, 200)))
        (tmp_path / "file").write_text(text)
        assert tokenizer.encode_file(tmp_path / "file", workers=1).tolist() == tokenizer.encode(text, "all")


def test_special_tokens_by_the_hundred(tmp_path):
    names = [f"<|reserved_{number}|>" for number in range(300)] + ["<x", "é", "\u4e2d\u6587", "[INST]"]
    tokenizer = Tokenizer.train_from_iterator(WORDS * 5, 700, names)
    draw = random.Random(3)
    text = "".join(draw.choices([*names, *WORDS, "<|reserved_", "<p>", "\u4e2d", "\n", " "], k=20_000))
    (tmp_path / "file").write_text(text)
    assert tokenizer.encode_file(tmp_path / "file").tolist() == tokenizer.encode(text, "all")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo")
def test_a_file_whose_size_is_not_known_before_it_is_read():
    assert len(small_tokenizer().encode_file("/proc/cpuinfo")) > 10


def test_a_file_of_more_ids_than_guessed(tmp_path):
    tokenizer = Tokenizer({byte: bytes([byte]) for byte in range(256)}, [])
    (tmp_path / "file").write_bytes(b"one two " * 400_000)
    assert (
        tokenizer.encode_file(tmp_path / "file").tobytes()
        == np.frombuffer(b"one two " * 400_000, "u1").astype("u2").tobytes()
    )


def test_what_is_no_plain_file_is_read_whole(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit((tmp_path / "pipe").write_bytes, b"the cat<|endoftext|>")
        assert small_tokenizer().encode_file(tmp_path / "pipe").tolist() == small_tokenizer().encode(
            "the cat<|endoftext|>", "all"
        )
        writing.result()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_file_that_becomes_shorter_is_an_error(tmp_path, small_blocks, monkeypatch, workers):
    (tmp_path / "file").write_bytes(b"the cat " * 10_000)
    monkeypatch.setattr(ranges.FileRange, "size", property(lambda self: 10**6))
    with pytest.raises(OSError, match="became shorter"):
        small_tokenizer().encode_file(tmp_path / "file", workers=workers)


def test_normalized_text_is_encoded_between_special_tokens():
    plain_one = small_tokenizer()
    parts = plain_one.parts()
    tokenizer = Tokenizer(parts.vocab, parts.merges, parts.special_tokens, normalizer="NFC")
    assert tokenizer.encode("e\u0301<|endoftext|>e\u0301", "all") == plain_one.encode("é<|endoftext|>é", "all")
    assert tokenizer.encode_batch(["e\u0301"]) == [plain_one.encode("é")]
    assert tokenizer.encode_array("e\u0301").tolist() == plain_one.encode("é")


def test_the_table_of_pairs_holds_each_pair_once_and_ends_empty():
    left, right = np.divmod(np.arange(5_000), 70)
    table, shift = pair_table(left, right, np.arange(5_000))
    filled = table[table != at.NO_PAIR]
    assert sorted((filled & 0xFFFFFF).tolist()) == list(range(5_000))
    assert table[-1] == at.NO_PAIR
    for slot, entry in enumerate(table.tolist()):
        if entry != at.NO_PAIR:
            home = ((entry >> 24) * MERGE_MULTIPLIER % 2**64) >> shift
            assert home <= slot and (table[home : slot + 1] != at.NO_PAIR).all()


@given(data=st.binary(min_size=1, max_size=50))
def test_tokens_are_found_by_the_hash_that_python_made(data):
    vocab = {byte: bytes([byte]) for byte in range(256)} | ({256: data} if len(data) > 1 else {})
    tokenizer = Tokenizer(vocab, [], [], None, ignore_merges=True)
    assert hash_of(data) < 1 << 64
    assert tokenizer.encode_bytes(data) == ([256] if len(data) > 1 and _is_text(data) else tokenizer.encode_bytes(data))
    if _is_text(data):
        assert tokenizer.encode(data.decode()) == ([256] if len(data) > 1 else [data[0]])


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


PORTABLE = """
import sys
from groundup.tokenizer import Tokenizer
from groundup.tokenizer.fast.machine import HAS_BZHI
assert not HAS_BZHI
text = sys.stdin.read()
for pattern in ("gpt2", "cl100k", "o200k"):
    tokenizer = Tokenizer.train_from_iterator([text], 500, pattern=pattern)
    assert tokenizer.encode(text) == tokenizer._plain.encode(text), pattern
    assert tokenizer.decode(tokenizer.encode_array(text)) == text
print("equal")
"""


@pytest.mark.slow
def test_a_plain_processor_gets_the_same_ids(tmp_path):
    """Without any of the instruction sets that this machine has beyond the architecture's first."""
    environment = {"GROUNDUP_PORTABLE": "1", "GROUNDUP_CACHE": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    child = [sys.executable, "-c", PORTABLE]
    done = subprocess.run(
        child, input=TEXT, env=environment, capture_output=True, encoding="utf-8", timeout=600, check=False
    )
    assert done.stdout.strip() == "equal", done.stderr


def test_a_pair_of_surrogates_is_the_character_that_it_stands_for():
    tokenizer = small_tokenizer()
    assert tokenizer.encode("\ud83d\udc4d") == tokenizer.encode("\U0001f44d")
    assert tokenizer.encode_batch(["\ud83d\udc4d\ud83d"]) == [tokenizer.encode("\U0001f44d\ufffd")]


@pytest.mark.parametrize(
    "piece", [[f"w{number:05d}" for number in range(10_000)], ["x" * 20 + str(n) for n in range(9_999)]]
)
def test_a_stream_of_more_words_than_its_tables_hold(piece):
    tokenizer = small_tokenizer()
    text = " ".join(piece)
    assert list(tokenizer.encode_iterable([text])) == plain(tokenizer, text)


def test_many_threads_use_one_tokenizer():
    tokenizer = Tokenizer.train_from_iterator(WORDS * 5, 400)
    draws = [random.Random(seed) for seed in range(8)]
    texts = [
        " ".join("".join(draw.choices("abcdeé中 ", k=draw.randrange(1, 200))) for _ in range(draw.randrange(1, 60)))
        for draw in draws
        for _ in range(12)
    ]
    expected = [plain(tokenizer, text) for text in texts]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            for _ in range(3):
                assert list(pool.map(tokenizer.encode, texts)) == expected
    finally:
        sys.setswitchinterval(before)


def test_short_texts_of_more_words_than_tables_hold_come_from_new_tables(trained):
    encoder = FastEncoder(trained.pattern, trained._tables, replace(TINY, output=1 << 12))
    draw = random.Random(6)
    texts = [
        " ".join("".join(draw.choices("abcdefgh", k=draw.randrange(1, 14))) for _ in range(30)) for _ in range(500)
    ]
    expected = [plain(trained, text) for text in texts]
    first = encoder._strings.to_list
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(encoder.encode_list, texts)) == expected
            assert [ids.tolist() for ids in pool.map(encoder.encode_array, texts)] == expected
    finally:
        sys.setswitchinterval(before)
    assert encoder._strings.to_list is not first


def test_garbage_collected_while_a_list_is_made_may_encode_too():
    encoder = FastEncoder("gpt2", small_tokenizer()._tables)
    encode = encoder._strings.to_list  # itself: what checks types around it would set off most collections
    texts = "the cat sat", "naïve über-cats"
    expected = [plain(small_tokenizer(), text) for text in texts]
    kept, others = [], []  # all lists are kept: one that was let go would be used again, without a collection

    class Encoding:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            others.append(encode(texts[1]) or encoder.encode_long(texts[1]))

    thresholds = gc.get_threshold()
    try:
        for number in range(3_000):
            Encoding()
            Encoding()
            gc.set_threshold(1 + number % 11)  # the collection begins now here, now there
            kept.append(encode(texts[0]))
    finally:
        gc.set_threshold(*thresholds)
    assert len(others) > 1_000 and all(ids == expected[1] for ids in others)
    assert all(ids == expected[0] for ids in kept)


def test_a_tokenizer_is_freed_when_nobody_has_it():
    tokenizer = Tokenizer.train_from_iterator(WORDS * 5, 300)
    tokenizer.encode("the cat")
    encoder = weakref.ref(tokenizer._fast._encoder)
    gc.disable()
    try:
        del tokenizer
        assert encoder() is None
    finally:
        gc.enable()


def test_what_one_long_text_needed_is_given_back(tmp_path):
    tokenizer = Tokenizer.train_from_iterator(WORDS * 5, 300)
    (tmp_path / "file").write_bytes(b"-" * 10_000_000)
    tokenizer.encode_file(tmp_path / "file", workers=1)
    (context,) = tokenizer._fast._encoder._idle
    assert sum(array.nbytes for array in context._kept.values()) < 60_000_000


@pytest.mark.parametrize("text", ["", "x", "the cat", "x" * 70_000, "\u4e2d" * 30_000, "a b " * 30_000, " " * 70_000])
def test_short_and_long_texts_alike(trained, text):
    ids = trained.encode_array(text)
    assert ids.tolist() == trained.encode(text) == plain(trained, text)
    assert ids.dtype == trained.id_type and ids.flags.writeable


def test_words_whose_hashes_collide_are_encoded_all_the_same():
    tokenizer = small_tokenizer()
    words = [f"ab{chr(97 + number % 26)}{number:04d}" + "\x01" * (number % 7) for number in range(3_000)]
    text = " ".join(words * 2)
    assert tokenizer.encode(text) == plain(tokenizer, text)


@pytest.mark.parametrize("wrong", [b"bytes", 5, None])
def test_what_is_no_text(wrong, unchecked):
    with pytest.raises(TypeError, match="expected str"):
        small_tokenizer().encode(wrong)


@pytest.mark.parametrize("pattern", ["gpt2", "o200k", r"\w+|\W+", None])
@pytest.mark.parametrize("workers", [1, 2])
def test_many_bytes_are_encoded_as_each_of_them(pattern, workers):
    tokenizer = Tokenizer({byte: bytes([byte]) for byte in range(256)} | {256: b"th"}, [(b"t", b"h")], (), pattern)
    texts = [b"the cat", b"", b"\xffth\x80", "tätth \u0301".encode(), b"\0th", b"the " * 200_000, b"th"]
    ids, offsets = tokenizer.encode_bytes_ragged(texts, workers=workers)
    assert ids.dtype == tokenizer.id_type and offsets.dtype == np.int64
    found = [ids[start:end].tolist() for start, end in pairwise(offsets)]
    assert found == [tokenizer.encode_bytes(text) for text in texts]
    assert [tokenizer.decode_bytes(text) for text in found] == texts
    assert tokenizer.encode_bytes_ragged([], workers=workers)[1].tolist() == [0]


@pytest.mark.parametrize("wrong", ["text", bytearray(b"the"), 5, None])
@pytest.mark.parametrize("pattern", ["gpt2", None])
def test_what_is_no_bytes(wrong, pattern, unchecked):
    tokenizer = Tokenizer({byte: bytes([byte]) for byte in range(256)}, [], (), pattern)
    with pytest.raises(TypeError, match="bytes"):
        tokenizer.encode_bytes(wrong)
    with pytest.raises(TypeError, match="bytes"):
        tokenizer.encode_bytes_ragged([b"the", wrong])


def test_one_bytes_object_is_no_batch(unchecked):
    with pytest.raises(ValueError, match="got one bytes object"):
        small_tokenizer().encode_bytes_ragged(b"the cat")


def test_one_string_is_no_batch(unchecked):
    with pytest.raises(ValueError, match="got one string"):
        small_tokenizer().encode_batch("the cat")
