"""Merges learned by kernels are those of the readable trainer, whatever the words are."""

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer import bpe

pytest.importorskip("llvmlite")

from groundup.tokenizer.fast import learn_context as fields
from groundup.tokenizer.fast import merges
from groundup.tokenizer.fast.merges import learn_merges, words_of

few_bytes = st.lists(st.sampled_from([b"a", b"b", b"\0", b"\xff", b"aa"]), max_size=12).map(b"".join)
counts = st.integers(1, 5) | st.integers(1, 2**40) | st.just(2**32)
words = st.dictionaries(few_bytes | st.binary(max_size=20), counts, max_size=12)


def random_words(seed, number, letters, longest, most=1000):
    source = random.Random(seed)
    return {
        bytes(source.choices(letters, k=source.randint(1, longest))): source.randint(1, most) for _ in range(number)
    }


@given(words, st.integers(0, 40))
def test_the_merges_are_those_of_the_readable_trainer(word_counts, num_merges):
    assert learn_merges(words_of(word_counts), num_merges) == bpe.learn_merges(word_counts, num_merges)


@pytest.mark.parametrize("symbols_per_pair", [1, 30, 10**9])
def test_so_they_are_from_any_threshold_down(symbols_per_pair, monkeypatch):
    monkeypatch.setattr(merges, "_SYMBOLS_PER_PAIR", symbols_per_pair)
    word_counts = random_words(3, 300, b"abcde ", 30)
    assert learn_merges(words_of(word_counts), 500) == bpe.learn_merges(word_counts, 500)


def test_so_they_are_for_every_length_of_a_run():
    for length in range(1, 70):
        for word_counts in ({b"a" * length: 1}, {b"ab" * length: 3, b"a" * length: 3}, {b"baa" * length + b"a": 1}):
            assert learn_merges(words_of(word_counts), 100) == bpe.learn_merges(word_counts, 100), word_counts


def test_counts_beyond_32_and_53_bits_decide_exactly():
    word_counts = {b"ab": 2**60 + 1, b"cd": 2**60, b"ef": 2**32, b"gh": 1}
    assert learn_merges(words_of(word_counts), 4) == [(b"a", b"b"), (b"c", b"d"), (b"e", b"f"), (b"g", b"h")]


def test_no_merges_are_learned_from_nothing():
    for word_counts in ({}, {b"": 1}, {b"a": 7, b"b": 2}):
        assert learn_merges(words_of(word_counts), 100) == []
    assert learn_merges(words_of({b"ab": 1}), 0) == []


def test_more_merges_than_possible_are_all_that_are():
    word_counts = random_words(5, 40, bytes(range(256)), 9, most=2)
    assert learn_merges(words_of(word_counts), 65_000) == bpe.learn_merges(word_counts, 65_000)


def test_a_large_vocabulary():
    word_counts = random_words(7, 5_000, b"etaoinshrdlu", 12)
    assert learn_merges(words_of(word_counts), 8_000) == bpe.learn_merges(word_counts, 8_000)


@pytest.mark.slow
def test_a_vocabulary_of_64_thousand():
    word_counts = random_words(8, 60_000, b"etaoinshrdlu ,.EIO", 14)
    expected = bpe.learn_merges(word_counts, 64_000)
    assert len(expected) == 64_000
    assert learn_merges(words_of(word_counts), 64_000) == expected


def test_one_word_of_twenty_thousand_bytes():
    for letters in (b"ab", b"etaoin shrdlu", bytes(range(256))):
        word_counts = {bytes(random.Random(9).choices(letters, k=20_000)): 1}
        assert learn_merges(words_of(word_counts), 300) == bpe.learn_merges(word_counts, 300)


def test_the_order_of_the_words_makes_no_difference():
    items = list(random_words(11, 500, b"abc", 9).items())
    expected = learn_merges(words_of(dict(items)), 200)
    for seed in range(5):
        random.Random(seed).shuffle(items)
        assert learn_merges(words_of(dict(items)), 200) == expected


def test_memory_that_grows_with_every_merge_changes_nothing(monkeypatch):
    word_counts = random_words(13, 400, b"abcdefgh", 20)
    expected = bpe.learn_merges(word_counts, 400)

    class Tight(merges._Learner):
        def _make_pairs(self, slots):
            super()._make_pairs(slots if self._memory.get(fields.PAIRS) is not None else 4)

        def _more_occurrences(self, needed):
            array = np.empty(needed + merges.PADDING, np.int32)
            self._enlarge(fields.OCCURRENCES_AT, array)
            self._context[fields.MAX_OCCURRENCES] = needed

    monkeypatch.setattr(merges, "_Learner", Tight)
    assert learn_merges(words_of(word_counts), 400) == expected


def test_progress_is_told_and_may_stop_the_training(monkeypatch):
    monkeypatch.setattr(merges, "_OCCURRENCES_PER_CALL", 1)
    word_counts = random_words(15, 100, b"abcdefgh", 20)
    told = []
    learned = learn_merges(words_of(word_counts), 50, lambda done, total: told.append((done, total)))
    assert learned == bpe.learn_merges(word_counts, 50)
    assert len(told) > 20 and told == sorted(told) and {total for _, total in told} == {50}

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_merges(words_of(word_counts), 50, stop)


def test_words_come_back_as_they_were_put_in():
    word_counts = {b"a\0b": 2**40, b"": 1, b"\0": 3, b"word": 4}
    assert dict(words_of(word_counts).items()) == word_counts
    with pytest.raises(ValueError, match="less than once"):
        words_of({b"a": 0})
    with pytest.raises(ValueError, match="64-bit"):
        words_of({b"ab": 2**62})


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of one program, without its parent's, is told by Linux")
@pytest.mark.slow
def test_one_word_of_30_megabytes_takes_memory_in_proportion():
    program = (
        "import re; import numpy as np\n"
        "from groundup.tokenizer.fast.merges import *\n"
        "word = np.random.default_rng(1).integers(97, 107, 30_000_000, np.uint8).tobytes()\n"
        "words = words_of({word: 1}); del word\n"
        "learned = learn_merges(words, 1000)\n"
        "allowed = 250_000_000 + memory_needed(len(words.text), 1000)\n"
        "peak = int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) * 1024\n"
        "print(len(learned), 30_000_000 < peak < allowed)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1000", "True"]
