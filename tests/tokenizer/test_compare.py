import doctest
import gzip
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer import compare as room
from groundup.tokenizer.compare import Sample, blocks, compare, four_tokenizers, in_blocks, part, ratio_interval
from groundup.tokenizer.protocol import BytePair
from groundup.tokenizer.simple import ByteTokenizer, CharacterTokenizer, WordTokenizer
from tests.tokenizer.awkward import texts


def test_examples_in_docstrings():
    assert doctest.testmod(room).failed == 0


def samples(*pairs):
    return [Sample(text, file, language) for text, file, language in pairs]


def test_counts_by_hand():
    """Bytes: é takes two, 你 and 好 three, each other character one."""
    given_texts = samples(("a cat", "x.txt", "en"), ("un café", "x.txt", "fr"), ("你好", "y.txt", "zh"))
    words = WordTokenizer(["a", " cat", "un"])
    found = compare([CharacterTokenizer(), ByteTokenizer(), words], given_texts)
    table = {(row.kind, row.group, row.tokenizer): row for row in found.rows}
    assert len(found.rows) == 3 * (1 + 2 + 3)
    whole = table["all", "all", "character"]
    assert (whole.texts, whole.bytes, whole.characters, whole.tokens) == (3, 5 + 8 + 6, 5 + 7 + 2, 14)
    assert whole.bytes_per_token == 19 / 14
    assert table["all", "all", "byte"].bytes_per_token == 1.0
    assert table["language", "zh", "character"].bytes_per_token == 3.0
    assert table["file", "x.txt", "word"].tokens == 4  # a, cat, un, unknown
    assert table["file", "x.txt", "word"].unknown_rate == 1 / 4
    assert table["language", "zh", "word"].unknown_rate == 1.0
    assert table["language", "fr", "byte"].tokens_per_character == 8 / 7
    assert found.used == {"character": 10, "byte": 14, "word": 4}  # 你 and 好 share the byte bd


def test_bytes_per_token_is_that_of_all_tokens_and_not_a_mean_over_texts():
    bpe = WordTokenizer(["aaaa"])
    found = compare([bpe], samples(("aaaa", "", None), ("b c d", "", None)))
    assert found.rows[0].bytes_per_token == 9 / 4


def test_one_file_and_one_language_are_not_told_apart():
    found = compare([ByteTokenizer()], samples(("a", "x", "en"), ("b", "x", "en")))
    assert [row.kind for row in found.rows] == ["all"]


def test_texts_of_unknown_language_are_in_no_language():
    found = compare([ByteTokenizer()], samples(("a", "x", "en"), ("b", "x", None), ("c", "x", "de")))
    assert [(row.group, row.texts) for row in found.rows] == [("all", 3), ("de", 1), ("en", 1)]


def test_empty_texts_are_left_out_and_no_text_is_an_error():
    assert compare([ByteTokenizer()], samples(("", "x", None), ("ab", "x", None))).rows[0].texts == 1
    with pytest.raises(ValueError, match="no text to compare on"):
        compare([ByteTokenizer()], samples(("", "x", None)))


def test_surrogates_count_as_what_they_are_encoded_as():
    row = compare([ByteTokenizer()], samples(("a\ud800", "x", None))).rows[0]
    assert (row.bytes, row.tokens) == (4, 4)


def test_two_of_one_name_would_be_confused():
    with pytest.raises(ValueError, match="two tokenizers of one name"):
        compare([ByteTokenizer(), ByteTokenizer()], samples(("a", "x", None)))


def test_progress_tells_of_every_tokenizer():
    seen = []
    compare([ByteTokenizer(), CharacterTokenizer()], samples(("a", "", None), ("b", "", None)),
            progress=lambda *state: seen.append(state))  # fmt: skip
    assert seen == [("byte", 1, 2), ("byte", 2, 2), ("character", 1, 2), ("character", 2, 2)]


# the interval -----------------------------------------------------------------------------------------------------


def test_the_interval_of_equal_texts_is_a_point_and_of_one_text_none():
    assert ratio_interval(np.full(9, 6), np.full(9, 3)) == (2.0, 2.0)
    assert ratio_interval(np.array([6]), np.array([3])) is None


def test_the_interval_depends_on_the_seed_only():
    numbers = np.random.default_rng(7).integers(1, 100, (2, 40))
    first = ratio_interval(*numbers, seed=1)
    assert first == ratio_interval(*numbers, seed=1) != ratio_interval(*numbers, seed=2)


def test_drawing_in_portions_gives_the_same_interval(monkeypatch):
    numbers = np.random.default_rng(7).integers(1, 100, (2, 40))
    whole = ratio_interval(*numbers, resamples=101)
    monkeypatch.setattr(room, "_DRAWS_AT_ONCE", 7)
    assert ratio_interval(*numbers, resamples=101) == whole


def interval_of(*numbers, **options):
    found = ratio_interval(*numbers, **options)
    assert found is not None
    return found


def test_the_interval_is_as_wide_as_theory_says():
    """For ratios of sums, the delta method: variance of (x - r y) over n mean(y)^2."""
    random = np.random.default_rng(3)
    y = random.integers(50, 150, 400)
    x = (3 * y + random.normal(0, 40, 400)).astype(np.int64)
    ratio = x.sum() / y.sum()
    error = np.std(x - ratio * y) / (math.sqrt(len(y)) * y.mean())
    low, high = interval_of(x, y, resamples=4000)
    assert low < ratio < high
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.06)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        y = random.integers(50, 150, 60)
        x = 2 * y + random.integers(-40, 41, 60)
        low, high = interval_of(x, y, resamples=300, seed=trial)
        covered += low <= 2 <= high
    assert 180 <= covered <= 199


# parting the text -------------------------------------------------------------------------------------------------


@given(st.lists(texts, max_size=8).map(" and then ".join), st.integers(1, 40))
def test_blocks_joined_are_the_text_and_cut_no_token(trained, text, size):
    parts = blocks(text, size)
    assert "".join(parts) == text
    for pattern in ("gpt2", "cl100k", "o200k"):
        tokenizer = trained[pattern]
        assert [token for block in parts for token in tokenizer.encode(block)] == tokenizer.encode(text)


def test_blocks_are_short_where_the_text_has_words():
    parts = blocks("word after word " * 1000)
    assert max(map(len, parts)) <= room.BLOCK_CHARACTERS < 2 * min(map(len, parts[:-1]))
    assert blocks("a" * 5000) == ["a" * 5000]
    assert blocks("") == []


def test_files_of_many_texts_are_not_cut():
    book, tweets = [Sample("word " * 2000, "book")], [Sample("word " * 500, "tweets", "en")] * 30
    found = in_blocks([*book, *tweets])
    assert found[-30:] == tweets
    assert len(found) > 35
    assert {sample.file for sample in found[:-30]} == {"book"}


def test_every_file_and_language_is_parted():
    given_texts = [Sample(f"{language}{n}", "f", language) for language in ("de", "en") for n in range(5)]
    first, rest = part(given_texts, 0.8)
    assert [s.text for s in first] == ["de0", "de1", "de2", "de3", "en0", "en1", "en2", "en3"]
    assert [s.text for s in rest] == ["de4", "en4"]


def test_a_single_text_is_measured_on_and_not_learned_from():
    first, rest = part([Sample("a", "x"), Sample("b", "x"), Sample("only", "y")], 0.9)
    assert ([s.text for s in first], [s.text for s in rest]) == (["a"], ["b", "only"])
    with pytest.raises(ValueError, match="too little text"):
        part([Sample("only", "y")], 0.5)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2.0, math.nan])
def test_a_fraction_leaves_something_on_both_sides(fraction):
    with pytest.raises(ValueError, match="train fraction"):
        part([Sample("a"), Sample("b")], fraction)


# the four, on real text -------------------------------------------------------------------------------------------


def test_the_four_on_real_languages(shared_data):
    with gzip.open(shared_data / "langid" / "lingua_sentences_dev.tsv.gz", "rt", encoding="utf-8") as file:
        pairs = [line.rstrip("\n").split("\t") for line in file.readlines()[::12]]
    first, rest = part([Sample(text, "langid", language) for language, text in pairs], 0.8)
    four = four_tokenizers([sample.text for sample in first], 2048)
    found = compare(four, rest, resamples=200)
    table = {(row.group, row.tokenizer): row for row in found.rows}
    assert [tokenizer.lossless for tokenizer in four] == [True, True, False, True]
    assert len({row.group for row in found.rows if row.kind == "language"}) == 75
    for row in found.rows:
        assert row.bytes_per_token == row.bytes / row.tokens
        assert row.low is None or row.high is None or row.low <= row.bytes_per_token <= row.high
    text = "".join(sample.text for sample in rest)
    assert table["all", "byte"].bytes_per_token == 1.0
    assert table["all", "character"].bytes_per_token == len(text.encode()) / len(text)
    assert table["all", "BPE"].tokens == sum(len(four[3].encode(sample.text)) for sample in rest)
    assert table["ja", "character"].bytes_per_token > 2.5 > 1.1 > table["en", "character"].bytes_per_token
    assert table["all", "word"].unknown_rate > 0.1 > 0.0 == table["all", "BPE"].unknown_rate
    assert table["en", "BPE"].bytes_per_token > 2


def test_the_four_are_named_and_byte_pairs_are_learned(trained):
    four = four_tokenizers(["the cat in the hat"], 260)
    assert [tokenizer.name for tokenizer in four] == ["character", "byte", "word", "BPE"]
    assert isinstance(four[3], BytePair)
    assert four[3].encode("the hat") == [257, 32, 104, 258]
    assert four[2].encode("the cat") == [5, 1]
