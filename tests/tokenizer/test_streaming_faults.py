"""Streams cut anywhere, ids that are none, bytes that are no text, and runs without a place to breathe."""

import itertools
import random
import tracemalloc
import unicodedata

import pytest

from groundup.tokenizer import PATTERNS, StreamDecoder, Tokenizer
from tests.thorough import one_in, times
from tests.tokenizer.fuzzed import fuzzed_strings

STREAM_BYTES = 1 << 20  # that a stream may hold above what the tokenizer itself takes
UNITS = ("'s", "\r\n", " \n", "aA", "Aa", "e\u0301", "1a", "! ", "👩\u200d", "</", "/\n", "ab ")


@pytest.mark.parametrize("pattern", [*PATTERNS, "none"])
def test_a_stream_cut_anywhere_has_the_ids_of_the_whole(trained_by, pattern, unchecked):
    check_random_cuts(trained_by(pattern), seed=0, strings=1_000, streams=4)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_long_stream_cut_anywhere_has_the_ids_of_the_whole(trained_by, pattern, unchecked):
    check_random_cuts(trained_by(pattern), seed=1, strings=times(7_000), streams=5)


def check_random_cuts(tokenizer, seed, strings, streams):
    draw = random.Random(seed)
    found = [f"{string}{draw.choice(('', '<|endoftext|>', '<|user|>'))}" for string in fuzzed_strings(seed, strings)]
    text = "".join(found)
    expected = tokenizer.encode(text, "all")
    assert {tokenizer.special_tokens["<|user|>"], tokenizer.special_tokens["<|endoftext|>"]} <= set(expected)
    for _ in range(streams):
        chunks = random_chunks(text, draw, draw.choice((3, 100, 30_000)))
        assert list(tokenizer.encode_iterable(chunks, "all")) == expected
    assert list(tokenizer.encode_iterable(found, "all")) == expected


def random_chunks(text, draw, longest):
    """Consecutive parts of `text`, some of them empty."""
    start = 0
    while start < len(text):
        end = start + int((longest + 1) * draw.random())
        yield text[start:end]
        start = end


def test_a_stream_holds_less_than_a_megabyte(trained_by, unchecked):
    check_memory(trained_by("o200k"), 300_000)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_long_stream_holds_less_than_a_megabyte(trained_by, pattern, unchecked):
    check_memory(trained_by(pattern), times(2_000_000))


def check_memory(tokenizer, characters):
    draw = random.Random(0)
    strings = list(fuzzed_strings(0, 500))
    stream = itertools.chain.from_iterable((draw.choice(strings), " word ") for _ in itertools.count())
    list(tokenizer.encode_iterable(itertools.islice(stream, 2_000)))  # what is made once, by first use
    size = 0

    def counted():
        nonlocal size
        for part in stream:
            size += len(part)
            if size > characters:
                return
            yield part

    tracemalloc.start()
    count = sum(1 for _ in tokenizer.encode_iterable(counted()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > characters // 8
    assert peak <= STREAM_BYTES


def test_random_ids(trained_by, unchecked):
    check_random_ids(trained_by("o200k"), 10_000)


@pytest.mark.slow
def test_many_random_sequences_of_ids(trained_by, unchecked):
    check_random_ids(trained_by("o200k"), times(35_000))


def check_random_ids(tokenizer, sequences):
    """Ids that exist stream to what they decode to; one that does not is a ValueError, and costs only itself."""
    draw = random.Random(sequences)
    size = tokenizer.vocab_size
    impossible = (-1, -size, size, size + 1, 2**31, 2**32, 2**63, -(2**63), 2**64, 10**30)
    stream = tokenizer.stream()
    for number in range(sequences):
        ids = [int(size * draw.random()) for _ in range(int(1 + 9 * draw.random()))]
        check_stream(tokenizer, stream, ids)
        if number % 4 == 0:
            place = draw.randrange(len(ids) + 1)
            check_refused(tokenizer, ids, place, draw.choice(impossible))


def check_stream(tokenizer, stream, ids):
    whole = tokenizer.decode(ids)
    parts = [stream.push(token) for token in ids]
    assert "".join(parts) + stream.flush() == whole
    if "\ufffd" not in whole:
        assert tokenizer.decode_bytes(ids) == whole.encode()


def check_refused(tokenizer, ids, place, impossible):
    wrong = [*ids[:place], impossible, *ids[place:]]
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        with pytest.raises(ValueError, match=f"id {impossible}: not in the vocabulary"):
            decode(wrong)
    stream = tokenizer.stream()
    parts = [stream.push(token) for token in ids[:place]]
    with pytest.raises(ValueError, match=f"id {impossible}: not in the vocabulary"):
        stream.push(impossible)
    parts += [stream.push(token) for token in ids[place:]]
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids)


@pytest.mark.slow
def test_no_character_comes_in_halves(trained_by):
    """Of code points from all planes, each byte of UTF-8 by itself: nothing is emitted before the last."""
    push = StreamDecoder(lambda token: bytes([token])).push
    for character in map(chr, itertools.chain(range(0xD800), range(0xE000, 0x110000, one_in(5)))):
        *first, last = character.encode()
        assert not any(push(byte) for byte in first)
        assert push(last) == character


@pytest.fixture(scope="session")
def trained_by(trained):
    """pattern -> a small tokenizer; for patterns that the other tests do not train, with the merges of gpt2."""

    def find(pattern: str) -> Tokenizer:
        gpt2 = trained["gpt2"]
        return trained.get(pattern) or Tokenizer(gpt2.vocab, gpt2.merges, gpt2.special_tokens, pattern)

    return find


needs_encode_bytes = pytest.mark.skipif(
    not hasattr(Tokenizer, "encode_bytes"), reason="this tokenizer encodes text only, no bytes"
)


@needs_encode_bytes
@pytest.mark.parametrize("pattern", PATTERNS)
def test_all_strings_of_up_to_two_bytes_come_back(trained_by, pattern, unchecked):
    """Each of the patterns takes others of those of two bytes, so that together they take all."""
    twos = itertools.islice(product(2), list(PATTERNS).index(pattern), None, one_in(len(PATTERNS)))
    check_bytes(trained_by(pattern), map(bytes, itertools.chain(product(0), product(1), twos)))


@needs_encode_bytes
@pytest.mark.parametrize("pattern", PATTERNS)
def test_random_and_truncated_bytes_come_back(trained_by, pattern, unchecked):
    check_bytes(trained_by(pattern), random_bytes(0, 3_000))


@needs_encode_bytes
@pytest.mark.slow
def test_all_strings_of_three_key_bytes_come_back(trained_by, unchecked):
    """Of all bytes they come back too: see test_fast_encode.py, in one call for 65,536 of them."""
    keys = [*b" \n\raA1'!/\0\x7f", 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xDF, *range(0xE0, 0x100)]
    check_bytes(trained_by("o200k"), map(bytes, itertools.product(keys, repeat=3)))


@needs_encode_bytes
@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_many_random_and_truncated_bytes_come_back(trained_by, pattern, unchecked):
    check_bytes(trained_by(pattern), random_bytes(1 + list(PATTERNS).index(pattern), times(12_000)))


def product(length):
    return itertools.product(range(256), repeat=length)


def random_bytes(seed, count):
    """Random bytes, and text with its ends cut off or one byte replaced."""
    draw = random.Random(seed)
    for string in fuzzed_strings(seed, count):
        data = string.encode()
        if draw.random() < 0.3:
            yield draw.randbytes(int(40 * draw.random()))
        elif draw.random() < 0.5 or not data:
            yield data[draw.randrange(3) : max(0, len(data) - draw.randrange(3))]
        else:
            place = draw.randrange(len(data))
            yield data[:place] + draw.randbytes(1) + data[place + 1 :]


def check_bytes(tokenizer, strings):
    for data in strings:
        ids = tokenizer.encode_bytes(data)
        assert tokenizer.decode_bytes(ids) == data
        assert tokenizer.decode(ids) == data.decode("utf-8", "replace")


@pytest.mark.parametrize("pattern", [*PATTERNS, "none"])
def test_every_surrogate_in_every_context_is_the_replacement_character(trained_by, pattern, unchecked):
    tokenizer = trained_by(pattern)
    for before, after in itertools.product(("", "a"), repeat=2):
        expected = tokenizer.encode(f"{before}\ufffd{after}")
        assert all(tokenizer.encode(f"{before}{chr(code)}{after}") == expected for code in range(0xD800, 0xE000))


@pytest.mark.parametrize("pattern", [*PATTERNS, "none"])
def test_long_runs_come_back(trained_by, pattern, unchecked):
    check_runs(trained_by(pattern), 2_000)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [*PATTERNS, "none"])
def test_longer_runs_come_back(trained_by, pattern, unchecked):
    check_runs(trained_by(pattern), 100_000)


def check_runs(tokenizer, length):
    """A run of one character of every category, and of pairs, with nothing, a letter or white space after it."""
    for unit in (*one_of_each_category(), *UNITS):
        run = unit * (length // len(unit))
        for text in (run, run + "x", run + " "):
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert list(tokenizer.encode_iterable([run, "x"])) == tokenizer.encode(run + "x")


def one_of_each_category():
    found = {}
    for character in map(chr, itertools.chain(range(0xD800), range(0xE000, 0x30000))):
        found.setdefault(unicodedata.category(character), character)
    return [*found.values(), " ", "\n", "\t", "\u3000", "é", "你", "🌍", "\u0301"]
