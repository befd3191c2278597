import doctest
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer import Tokenizer
from groundup.tokenizer import audit as room
from groundup.tokenizer.audit import (
    Limits,
    audit,
    count_tokens,
    findings,
    is_part_of_utf8,
    language_tax,
    leading_space_pairs,
    overlapping_specials,
    rare_tokens,
    unreachable,
)
from groundup.tokenizer.compare import Sample, compare
from groundup.tokenizer.protocol import BytePair
from groundup.tokenizer.simple import ByteTokenizer, CharacterTokenizer
from tests.tokenizer.awkward import FRAGMENTS, texts
from tests.tokenizer.conftest import PROSE

BYTES = {byte: bytes([byte]) for byte in range(256)}


def made(merges, pattern="gpt2", special_tokens=(), extra=(), **options):
    """A tokenizer of bytes, merges, and tokens that no merge makes."""
    tokens = [*(left + right for left, right in merges), *extra]
    vocab = BYTES | {256 + number: token for number, token in enumerate(tokens)}
    return Tokenizer(vocab, merges, special_tokens, pattern, **options)


def test_examples_in_docstrings():
    assert doctest.testmod(room).failed == 0


# tokens that cannot be reached ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k", "none"])
def test_a_trained_vocabulary_has_no_certainly_unreachable_token(trained, pattern):
    assert [found for found in unreachable(trained[pattern]) if found.certain] == []


def reasons(tokenizer):
    return {found.token: found.reason for found in unreachable(tokenizer)}


def test_a_token_that_no_merge_makes():
    assert reasons(made([(b"t", b"h")], extra=[b"glitch"])) == {b"glitch": "merges"}


def test_a_token_whose_parts_merge_otherwise_first():
    """abc = ab + c, but bc comes first: the bytes a b c become a bc in every text."""
    merges = [(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")]
    assert reasons(made(merges)) == {b"abc": "merges"}
    assert made(merges).encode("abc") == [97, 256]


def test_a_token_across_a_cut_of_the_pattern():
    merges = [(b"a", b" "), (b"a ", b"b"), (b"'", b"l"), (b"l", b"l")]
    assert reasons(made(merges)) == {b"a b": "pattern", b"'l": "alone", b"a ": "pattern"}
    assert reasons(made(merges, "none")) == {}


def test_a_custom_pattern_is_not_known_well_enough_to_be_certain():
    assert reasons(made([(b"a", b" "), (b"a ", b"b")], r"\S+|\s+")) == {b"a ": "alone", b"a b": "alone"}


def test_bytes_that_no_text_has():
    merges = [(b"\xc3", b" "), (b"\xff", b"\xff"), (b"\xc3", b"\xa9"), (b"\xa9", b" ")]
    assert reasons(made(merges, "none")) == {b"\xc3 ": "utf-8", b"\xff\xff": "utf-8"}


def test_half_a_character_is_reached_inside_of_whole_ones():
    tokenizer = made([(b"\xe4", b"\xbd")], "none")
    assert reasons(tokenizer) == {}
    assert 256 in tokenizer.encode("你")


def test_a_whole_token_is_reached_without_merges_where_they_are_ignored():
    assert reasons(made([], extra=[b"hello"], ignore_merges=True)) == {}
    assert reasons(made([], extra=[b"hello"])) == {b"hello": "merges"}


def test_ranked_vocabularies_are_merged_by_rank():
    ranked = Tokenizer(BYTES | {256: b"th", 257: b"the", 258: b"qxz"}, None)
    assert reasons(ranked) == {}  # as a whole pre-token, qxz is found without merging
    assert reasons(Tokenizer(BYTES | {256: b"th", 257: b"a b"}, None)) == {b"a b": "merges"}


def test_special_tokens_are_not_meant_to_be_reached_by_text():
    assert reasons(made([], special_tokens=["<|endoftext|>"])) == {}


@pytest.fixture(scope="module")
def mismatched(trained):
    """Merges learned without a pattern, used with one; and the tokens that are then lost."""
    learned = trained["none"]
    tokenizer = Tokenizer(learned.vocab, learned.merges, list(learned.special_tokens), "gpt2")
    lost = {found.id for found in unreachable(tokenizer) if found.certain}
    assert len(lost) > 20
    return tokenizer, lost


@given(texts)
def test_no_text_gives_a_token_that_is_certainly_unreachable(mismatched, text):
    tokenizer, lost = mismatched
    assert not lost & set(tokenizer.encode(text + PROSE))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), st.data())
def test_every_part_of_valid_text_is_a_part_of_utf8(text, data):
    encoded = text.encode()
    start = data.draw(st.integers(0, len(encoded) - 1))
    assert is_part_of_utf8(encoded[start : data.draw(st.integers(start + 1, len(encoded)))])


@pytest.mark.parametrize("token", [b"\xc0\x80", b"\xf5", b"a\x80", b"\xe4\xe4", b"\xed\xa0\x80", b"\x80" * 4, b"\xc3a"])
def test_what_no_valid_text_contains(token):
    assert not is_part_of_utf8(token)


# tokens that the texts do not have --------------------------------------------------------------------------------


def test_occurrences_are_those_of_encoding(trained):
    counts = count_tokens(trained["gpt2"], [PROSE, "the", ""])
    ids = trained["gpt2"].encode(PROSE) + trained["gpt2"].encode("the")
    assert counts == {token: ids.count(token) for token in set(ids)}


def test_rare_tokens_are_ordered_and_leave_out_what_cannot_occur():
    tokenizer = made([(b"t", b"h"), (b"th", b"e")], special_tokens=["<|end|>"], extra=[b"glitch"])
    lost = unreachable(tokenizer)
    found = rare_tokens(tokenizer, count_tokens(tokenizer, ["the cat th the"]), lost, most=1)
    by_token = [(tokenizer.vocab[token], n) for token, n in found]
    assert by_token[-4:] == [(b"a", 1), (b"c", 1), (b"t", 1), (b"th", 1)]
    missing = {token for token, n in by_token if n == 0}
    assert {b"h", b"x", b"\x00", b"\xc3"} <= missing
    assert not {b"glitch", b"the", b" ", b"<|end|>", b"\xc0", b"\xff"} & missing
    assert len(found) == len({token for token, _ in found})


# spaces, special tokens, languages --------------------------------------------------------------------------------


def test_words_that_are_there_twice():
    merges = [(b"h", b"i"), (b" ", b"hi"), (b" ", b"1"), (b" ", b" ")]
    pairs = leading_space_pairs(made(merges))
    assert pairs == [(256, 257)]
    assert leading_space_pairs(made([(b" ", b"\xc3"), (b" \xc3", b"\xa9"), (b"\xc3", b"\xa9")])) == [(258, 257)]


@pytest.mark.parametrize(
    ("tokens", "pairs"),
    [
        (["<|a|>", "<|b|>"], []),
        (["<|a|>", "<|a|><|b|>", "<|b|>"], [("<|a|><|b|>", "<|a|>"), ("<|a|><|b|>", "<|b|>")]),
        (["abc", "cd"], [("abc", "cd")]),
        (["aba"], []),
        ([], []),
    ],
)
def test_special_tokens_that_can_be_confused(tokens, pairs):
    assert overlapping_specials(tokens) == pairs


def rows_of(tokenizer, **texts):
    return compare([tokenizer], [Sample(text, "f", language) for language, text in texts.items()]).rows


def test_tax_by_hand():
    """The byte tokenizer: one token a byte everywhere, three a character of Chinese, two of Greek."""
    reference, taxes = language_tax(rows_of(ByteTokenizer(), en="hello", el="γεια", zh="你好"))
    assert reference == "en"
    assert [(tax.language, tax.per_byte, tax.per_character) for tax in taxes] == [
        ("zh", 1.0, 3.0),
        ("el", 1.0, 2.0),
        ("en", 1.0, 1.0),
    ]
    reference, taxes = language_tax(rows_of(CharacterTokenizer(), en="hello", el="γεια", zh="你好"), "zh")
    assert [(tax.language, tax.per_byte) for tax in taxes] == [("el", 1.5), ("en", 3.0), ("zh", 1.0)]


def test_without_english_the_cheapest_language_is_the_reference():
    rows = rows_of(ByteTokenizer(), de="gut", el="γεια")
    assert language_tax(rows)[0] == "de"
    for wanted in ("en", "fr"):
        with pytest.raises(ValueError, match=f"reference language '{wanted}'; there are: de, el"):
            language_tax(rows, wanted)
    with pytest.raises(ValueError, match="none is known"):
        language_tax(rows_of(ByteTokenizer(), en="a"))


# everything -------------------------------------------------------------------------------------------------------


def test_a_sound_vocabulary_passes(trained):
    tokenizer = trained["cl100k"]
    corpus = [PROSE, *FRAGMENTS]
    rows = rows_of(BytePair(tokenizer), en=PROSE, zh="你好，世界。")
    found = audit(tokenizer, corpus, rows)
    assert findings(found, Limits()) == []
    assert (found.vocab_size, found.certainly_unreachable, found.reference) == (500, 0, "en")
    assert found.unseen == rare_tokens(tokenizer, count_tokens(tokenizer, corpus), found.unreachable)
    assert found.unseen_share == len(found.unseen) / 500


def test_without_text_only_the_vocabulary_is_looked_at(trained):
    found = audit(trained["gpt2"])
    assert (found.unseen, found.taxes, found.reference, found.unseen_share) == (None, None, None, 0.0)
    assert findings(found, Limits(unseen=0.0, tax=1.0)) == []


def test_every_limit_has_its_sentence():
    tokenizer = made([(b"1", b"2")], special_tokens=["<a>", "<a><b>"], extra=[b"glitch", b"glitsch"])
    found = audit(tokenizer, ["hello"], rows_of(BytePair(tokenizer), en="hello", zh="你好"))
    strict = Limits(unreachable=1, unseen=0.5, tax=2.9, overlaps=0, irregular_digits=False)
    said = findings(found, strict)
    assert [sentence.partition(";")[0] for sentence in said] == [
        "2 tokens that no text gives",
        f"{(256 - 13 + 1 - 4) / 261:.1%} of the vocabulary not in the texts",
        "1 pair of special tokens that overlap",
        f"numbers are cut {found.digits.verdict}",
        "'zh' takes 3.00 times the tokens per character of 'en'",
    ]
    assert (
        findings(found, replace(strict, unreachable=2, unseen=0.99, tax=3.0, overlaps=1, irregular_digits=True)) == []
    )
    assert findings(found, Limits(None, None, None, None)) == []
