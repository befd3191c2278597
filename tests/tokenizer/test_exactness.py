import itertools
import os
import unicodedata

import pytest

from groundup.tokenizer import Tokenizer
from groundup.tokenizer.pretokenize import PATTERNS, Pretokenizer
from tests.thorough import times
from tests.tokenizer import exactness
from tests.tokenizer.exactness import (
    CODES,
    Tally,
    compare,
    compare_file,
    compare_fuzzed,
    our_class,
    pieces_trial,
    ranges,
    regex_class,
    scanned,
    shrunk,
    table_differences,
)
from tests.tokenizer.fuzzed import SEED_TEXT, WHITE, fuzzed_strings
from tests.tokenizer.references import PATHS, gguf_metadata, vocabulary_path

# Reclassified after Unicode 3.2 without being new: LATIN LETTER PHARYNGEAL VOICED FRICATIVE, Ll until 17.0, then Lo.
RECLASSIFIED = {0x0295}
_RUNS = (" ", "  ", "\n", " \n", "\n ", "\r\n ", "  \n\n  ", "\u3000 ", "\t\xa0", " \x85")
HOSTILE = [
    *("", "\ufeff", "\ufeffabc", "a\ufeffb", "\x00", "a\x00b", "\x00" * 1000, "\U0010ffff", "\ufdd0\ufffe\uffff"),
    *("a" + "\u0301" * 10_000, "\u0301" * 10_000, "e" + "\u0316\u0301" * 200, "\u202e\u2066abc\u2069\u202c"),
    *("\u200d" * 5_000, "👩\u200d" * 2_000, "🏴" + "\U000e0067" * 300,),
    *("a\u200b b", "\u00a0a", " \u00a0a", "\u2028\u2029"),
    *("'\u017f", "it'\u017f", "IT'S", "it\u2019s", "'LL'Ll'lL'll", "''s", "' s", "x'd've",),
    *("'\u017f\u0301", "a'T\u0301"),
    *("1234567890", "\u0661\u0662\u0663\u0664", "1\u00bd2", "\u2167\u2168", "3.14", "a1b2", "1 2", "1\u03012"),
    *("//\n//", "!/\r\n/", "a/\n", " /\n\n/ ", "?!\r\n\r\n x", ".\n", " .\n", "\n.", "\r\r\n\n\r"),
    *("ǅaǅ", "aǅa", "AǅA", "ʰAa", "Aʰa", "你Aa", "A你a", "a你A", "aA\u0301a", "\u0301Aa", "!Aa",),
    *("1Aa", "McDONALD's", "İi̇"),
    *map("".join, itertools.product(("", "a", "!", "1"), _RUNS, ("", "a", "!", "1", "'s"))),
]  # fmt: skip


def trial_or_skip(name):
    library = "tiktoken" if name.startswith("tiktoken") else "tokenizers"
    pytest.importorskip(library)
    try:
        return exactness.trial(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def assert_exact(tally, count):
    assert tally.strings >= count
    assert tally.mismatches == 0, "\n".join([str(tally), *tally.shown])
    assert tally.excluded <= count // 40, str(tally)


@pytest.mark.parametrize("name", PATHS)
def test_ids_equal_the_reference(name, unchecked):
    trial = trial_or_skip(name)
    assert_exact(compare_fuzzed(trial, 0, 3_000), 3_000)
    hostile = compare(trial, HOSTILE)
    assert_exact(hostile, len(HOSTILE))
    assert hostile.excluded == hostile.failures == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_ids_equal_the_reference_at_length(name, unchecked, real_text, shared_data):
    """On 100,000 fuzzed strings, a megabyte of English, and 75 languages, each sentence alone and all in one."""
    trial = trial_or_skip(name)
    assert_exact(compare_fuzzed(trial, 1, 100_000), 100_000)
    assert_exact(compare(trial, [real_text, *real_text.splitlines(keepends=True)]), 1_500)
    english = compare_file(trial, shared_data / "pretrain" / "tinyshakespeare.txt")
    assert_exact(english, 1)
    assert english.excluded == 0


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pieces_equal_the_regex_module_on_fuzzed_strings(pattern):
    assert_exact(compare_fuzzed(pieces_trial(pattern), 2, 3_000), 3_000)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pieces_equal_the_regex_module_on_hostile_texts(pattern):
    assert_exact(compare(pieces_trial(pattern), HOSTILE), len(HOSTILE))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pieces_equal_the_regex_module_on_all_short_strings_of_key_characters(pattern):
    """Every string of up to four of these: each alternative of each pattern meets each other one."""
    strings = map("".join, itertools.chain(*(itertools.product(" \n\raA1'!s\u0301", repeat=n) for n in range(5))))
    assert_exact(compare(pieces_trial(pattern), strings), 11_111)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_pieces_equal_the_regex_module_on_many_fuzzed_strings(pattern):
    """A hundred thousand; for more: `python -m tests.tokenizer.exactness --reference regex:gpt2 --strings 1000000`."""
    assert_exact(compare_fuzzed(pieces_trial(pattern), 3, times(17_000)), times(17_000))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_pieces_equal_the_regex_module_on_all_strings_of_five_key_characters(pattern):
    strings = map("".join, itertools.product(" \naA1'!s\u0301/", repeat=5))
    assert_exact(compare(pieces_trial(pattern), strings), 10**5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regex:gpt2", "tiktoken:r50k", "huggingface:llama3", "huggingface:smollm2"])
def test_tables_differ_from_the_reference_only_where_versions_of_unicode_do(name):
    """A code point that is assigned in the version of this Python has the same class in every later version."""
    assigned = [
        code
        for code in CODES
        if code not in RECLASSIFIED
        and (category := unicodedata.category(chr(code))) != "Cn"
        and (category != "Co" or code % 64 == 0)  # of the 137,468 for private use some are enough
    ]
    differences = table_differences(our_class, trial_or_skip(name).class_of, assigned)
    assert not differences, {change: ranges(codes) for change, codes in differences.items()}


def test_class_of_a_character_is_found_by_how_it_joins_others():
    for code in (*range(0x3000), 0x4E00, 0xAC00, 0x1D7D9, 0x1F30D, 0x10FFFF):
        if unicodedata.category(chr(code)) != "Cn" and code not in RECLASSIFIED:
            assert our_class(chr(code)) == regex_class(chr(code)), hex(code)


def test_the_harness_finds_a_wrong_rule_and_shrinks_the_string():
    wrong = pieces_trial("cl100k")
    wrong.ours = Pretokenizer("llama3").split
    tally = compare_fuzzed(wrong, 0, 500)
    assert tally.mismatches > 0
    assert any(shown.startswith("mismatch on '\\n ") for shown in tally.shown), tally.shown
    assert len(tally.shown) == exactness.SHOWN


def split_with_an_accent_as_a_sign(text):
    """The pieces of a tokenizer to whose tables é is no letter."""
    ends = itertools.accumulate(map(len, scanned("gpt2", text.replace("é", "!"))))
    return [text[start:end] for start, end in itertools.pairwise((0, *ends))]


def test_the_harness_excludes_what_only_a_table_explains_and_nothing_else():
    trial = pieces_trial("gpt2")
    trial.ours = split_with_an_accent_as_a_sign
    assert compare(trial, ["aéa"]).mismatches == 1
    trial.class_of = lambda character: "other" if character == "é" else regex_class(character)
    tally = compare(trial, ["aéa", "é"])
    assert (tally.excluded, tally.mismatches) == (1, 0)  # alone it is one piece to both
    trial.ours = lambda text: [text]
    tally = compare(trial, ["aéa b"])
    assert (tally.excluded, tally.mismatches) == (0, 1)
    assert tally.shown[0].startswith("mismatch on 'a '\n")


def test_the_harness_counts_failures_of_the_reference():
    trial = pieces_trial("gpt2")
    trial.reference_batch = lambda texts: [None for _ in texts]
    tally = compare(trial, ["a", "b"])
    assert (tally.failures, tally.mismatches, tally.strings) == (2, 0, 2)
    assert "2 failures of the reference" in str(tally)


def test_a_panic_of_tiktoken_is_a_failure_of_the_reference(unchecked):
    trial = trial_or_skip("tiktoken:r50k")
    text = " " * 1_000_000 + "a"
    assert trial.reference(text) is None or trial.reference(text) == trial.ours(text)


def test_a_lone_surrogate_is_the_replacement_character_to_tiktoken_too(unchecked):
    trial = trial_or_skip("tiktoken:r50k")
    for code in (0xD800, 0xDBFF, 0xDC00, 0xDFFF):
        text = f"a{chr(code)}b"
        assert trial.ours(text) == trial.reference(text) == trial.ours("a\ufffdb")


def test_shrinking_keeps_what_fails():
    assert shrunk(lambda text: "a" in text and text.endswith("z"), "xxaxx" * 9 + "z") == "az"
    assert len(shrunk(lambda text: len(text) >= 3, "abcdefg")) == 3
    assert shrunk(lambda text: True, "abc") == ""


def test_fuzzed_strings_are_reproducible_and_varied():
    strings = list(fuzzed_strings(0, 5_000))
    assert strings == list(fuzzed_strings(0, 5_000))
    assert strings[:10] != list(fuzzed_strings(1, 10))
    text = "".join(strings)
    assert set(WHITE) <= set(text)
    assert "" in strings
    assert max(map(len, strings)) > 300
    assert sum(len(string) <= 200 for string in strings) > 0.9 * len(strings)
    found = {unicodedata.category(character) for character in text}
    assert found >= {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Zs", "Zl", "Zp", "Cc", "Cf"}
    assert found >= {"Co", "Cn", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So"}
    assert "Cs" not in found


def test_ranges_of_code_points():
    assert ranges([]) == ""
    assert ranges([1, 2, 3, 0x20, 0xFF, 0x100]) == "1-3 20 FF-100"


def test_unknown_references_are_value_errors():
    with pytest.raises(ValueError, match="expected one of tiktoken:gpt2"):
        exactness.trial("tiktoken:gpt7")
    with pytest.raises(ValueError, match="expected one of regex:gpt2"):
        exactness.trial("regex:gpt7")


def test_a_missing_vocabulary_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("GROUNDUP_VOCABULARIES", os.fspath(tmp_path))
    with pytest.raises(FileNotFoundError, match="set GROUNDUP_VOCABULARIES"):
        vocabulary_path("tiktoken:r50k")


def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGML" + bytes(100))
    with pytest.raises(ValueError, match="no GGUF"):
        gguf_metadata(tmp_path / "x.gguf")


def test_a_tally_is_a_line():
    tally = Tally("x", strings=1_000, size=2_000_000, seconds=2.0)
    assert "1,000 strings, 2.0 MB" in str(tally)
    assert "500 strings/s, 1.00 MB/s" in str(tally)


def test_the_seed_text_comes_back(trained):
    tokenizer: Tokenizer = trained["o200k"]
    assert tokenizer.decode(tokenizer.encode(SEED_TEXT)) == SEED_TEXT
