import doctest

import pytest
from hypothesis import given

from groundup.tokenizer import simple
from groundup.tokenizer.protocol import TextTokenizer
from groundup.tokenizer.simple import (
    CODE_POINTS,
    ByteTokenizer,
    CharacterTokenizer,
    WordTokenizer,
    assigned_characters,
    unknown_flatters,
    unknown_rates,
)
from tests.tokenizer.awkward import texts

GREETING = "Hello, 🌍! 你好!"


def test_examples_in_docstrings():
    assert doctest.testmod(simple) == doctest.TestResults(failed=0, attempted=10)


# characters -------------------------------------------------------------------------------------------------------


def test_all_of_unicode_gives_every_text_back():
    tokenizer = CharacterTokenizer()
    ids = tokenizer.encode(GREETING)
    assert tokenizer.decode(ids) == GREETING
    assert ids == [ord(character) for character in GREETING]
    assert tokenizer.vocab_size == CODE_POINTS == 0x110000 >= 127_758
    assert (tokenizer.lossless, tokenizer.unknown) == (True, None)
    assert len(GREETING.encode()) / len(ids) == pytest.approx(20 / 13)


def test_unicode_has_assigned_about_150_000_characters():
    assert 140_000 < assigned_characters() < 200_000


@given(texts)
def test_characters_and_bytes_are_lossless(text):
    for tokenizer in (CharacterTokenizer(), ByteTokenizer()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= token < tokenizer.vocab_size for token in ids)


@pytest.mark.parametrize("tokenizer", [CharacterTokenizer(), ByteTokenizer(), CharacterTokenizer("\ufffd")])
def test_surrogates_become_the_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")).count("\ufffd") in (1, 3)
    assert tokenizer.decode(tokenizer.encode("\udfff")) == "\ufffd"


def test_a_surrogate_id_decodes_to_text_that_can_be_written():
    assert CharacterTokenizer().decode([0xD800]).encode() == "\ufffd".encode()


def test_characters_of_a_text_are_a_small_vocabulary_that_loses_the_others():
    tokenizer = CharacterTokenizer.train(["banana", "", "bandana"])
    assert tokenizer.characters == ["\ufffd", "a", "b", "d", "n"]
    assert tokenizer.vocab_size == 5
    assert tokenizer.decode(tokenizer.encode("bananas")) == "banana\ufffd"
    assert (tokenizer.lossless, tokenizer.unknown) == (False, 0)
    assert tokenizer.encode("s") == [tokenizer.unknown]


def test_a_vocabulary_of_no_characters_knows_none():
    tokenizer = CharacterTokenizer("")
    assert (tokenizer.vocab_size, tokenizer.encode("ab"), tokenizer.encode("")) == (1, [0, 0], [])


def test_a_known_replacement_character_is_not_the_unknown_one():
    tokenizer = CharacterTokenizer.train(["a\ufffd"])
    assert tokenizer.encode("a\ufffdb") == [1, 2, 0]


def test_characters_are_single():
    with pytest.raises(ValueError, match="single characters"):
        CharacterTokenizer(["a", "bc"])


# bytes ------------------------------------------------------------------------------------------------------------


def test_every_byte_and_every_pair_of_bytes_comes_back():
    tokenizer = ByteTokenizer()
    data = bytes(range(256)) + b"".join(bytes([a, b]) for a in range(256) for b in range(256))
    assert tokenizer.encode_bytes(data) == list(data)
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


def test_one_byte_is_one_token():
    tokenizer = ByteTokenizer()
    assert len(tokenizer.encode(GREETING)) == len(GREETING.encode()) == 20
    assert tokenizer.vocab_size == 256
    assert tokenizer.decode(tokenizer.encode_bytes(b"a\xffb")) == "a\ufffdb"


@pytest.mark.parametrize(
    ("tokenizer", "ids"),
    [
        (ByteTokenizer(), [256]),
        (ByteTokenizer(), [-1]),
        (CharacterTokenizer(), [CODE_POINTS]),
        (CharacterTokenizer(), [-1]),
        (CharacterTokenizer("ab"), [3]),
        (CharacterTokenizer("ab"), [-1]),
        (WordTokenizer(["a"]), [2]),
        (WordTokenizer(["a"]), [-1]),
    ],
)
def test_an_id_that_is_none_is_refused(tokenizer, ids):
    with pytest.raises(ValueError, match=f"id {ids[0]}: not in the vocabulary"):
        tokenizer.decode(ids)


# words ------------------------------------------------------------------------------------------------------------


def test_words_that_are_known_come_back_and_others_are_lost():
    tokenizer = WordTokenizer.train(["the cat in the hat"])
    assert tokenizer.words == ["<unk>", " cat", " hat", " in", " the", "the"]
    assert tokenizer.decode(tokenizer.encode("the hat in the cat")) == "the hat in the cat"
    assert tokenizer.encode("the dog") == [5, tokenizer.unknown]
    assert tokenizer.decode(tokenizer.encode("the dog")) == "the<unk>"
    assert tokenizer.lossless is False


def test_the_most_frequent_words_are_kept():
    tokenizer = WordTokenizer.train(["b a a c c c"], vocab_size=3, pattern="[a-z]")
    assert tokenizer.words == ["<unk>", " ", "c"]
    assert tokenizer.encode("c b") == [2, 1, 0]


def test_no_word_fits_beside_the_unknown_one_in_a_vocabulary_of_one():
    assert WordTokenizer.train(["a b"], vocab_size=1).encode("a b") == [0, 0]
    with pytest.raises(ValueError, match="vocab_size 0"):
        WordTokenizer.train(["a b"], vocab_size=0)


@pytest.mark.parametrize("train", [WordTokenizer.train, CharacterTokenizer.train])
def test_one_string_is_not_a_list_of_texts(train):
    with pytest.raises(ValueError, match=r"write \[text\]"):
        train("the cat")


def test_all_of_them_are_tokenizers():
    tokenizers = (CharacterTokenizer(), CharacterTokenizer("a"), ByteTokenizer(), WordTokenizer(["a"]))
    assert all(isinstance(tokenizer, TextTokenizer) for tokenizer in tokenizers)
    assert len({tokenizer.name for tokenizer in tokenizers}) == 3


# what is unknown --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves(shared_data):
    text = (shared_data / "pretrain" / "tinyshakespeare.txt").read_text("utf-8")[:300_000]
    return [text[:200_000]], [text[200_000:]]


def test_the_unknown_rate_is_what_encoding_gives(halves):
    train, held_out = halves
    for size, rate in unknown_rates(train, held_out, [1, 10, 1000, 10**9]):
        ids = WordTokenizer.train(train, size).encode(held_out[0])
        assert rate == ids.count(0) / len(ids)


def test_the_unknown_rate_falls_and_does_not_reach_zero(halves):
    rates = [rate for _, rate in unknown_rates(*halves, [1, 10, 100, 1000, 10_000, 10**9])]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0
    assert rates[-1] > 0.02


def test_a_smaller_vocabulary_looks_better_and_is_worse(halves):
    scores = [unknown_flatters(*halves, size) for size in (10, 100, 1000)]
    flattered = [score.flattered_perplexity for score in scores]
    honest = [score.honest_bits_per_byte for score in scores]
    assert flattered == sorted(flattered)
    assert honest == sorted(honest, reverse=True)
    assert all(score.honest_perplexity > score.flattered_perplexity for score in scores)
    assert all(score.honest_bits_per_byte > score.flattered_bits_per_byte for score in scores)


def test_knowing_no_word_at_all_is_a_perfect_score():
    score = unknown_flatters(["a b c"], ["x y"], 1)
    assert (score.unknown_rate, score.flattered_perplexity, score.flattered_bits_per_byte) == (1.0, 1.0, 0.0)
    assert score.honest_bits_per_byte > 8  # nothing here was ever seen, and add-one makes bytes and the end alike


def test_the_two_scores_by_hand():
    """Vocabulary: unknown and "a". Trained on a a b: p(a) = 3/5, p(unknown) = 2/5 (add one, two symbols).

    An unknown word is spelled with 257 symbols, of which b and the end were seen once: 2/259 each.
    """
    score = unknown_flatters(["aab"], ["ab"], 2, pattern="[a-z]")
    assert score.unknown_rate == 0.5
    assert score.flattered_perplexity == pytest.approx((3 / 5 * 2 / 5) ** -0.5)
    assert score.honest_perplexity == pytest.approx((3 / 5 * 2 / 5 * (2 / 259) ** 2) ** -0.5)
    assert 2 ** (2 * score.honest_bits_per_byte) == pytest.approx(1 / (3 / 5 * 2 / 5 * (2 / 259) ** 2))


@pytest.mark.parametrize("function", [lambda a, b: unknown_rates(a, b, [5]), lambda a, b: unknown_flatters(a, b, 5)])
def test_nothing_is_measured_on_no_words(function):
    with pytest.raises(ValueError, match="no words"):
        function(["a b"], [""])
