"""Kneser-Ney beside KenLM: its probabilities of held-out text, its ARPA files, and what it reads of ours."""

import importlib
import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from groundup.model.ngram import KneserNey
from groundup.model.ngram_arpa import load_arpa, save_arpa

FOLDER = Path(__file__).parent / "kenlm"


def sentences(name):
    return [line.split() for line in (FOLDER / name).read_text("utf-8").splitlines()]


TRAIN, HELD_OUT = sentences("train.txt"), sentences("held_out.txt")
# As lmplz: every word that occurs, the end of the sentence, and one for all that are unknown.
WORDS = ["<unk>", "</s>", *dict.fromkeys(word for sentence in TRAIN for word in sentence)]
NUMBERS = {word: number for number, word in enumerate(WORDS)}


def ids(sentence):
    return [NUMBERS.get(word, 0) for word in [*sentence, "</s>"]]


@pytest.fixture(scope="module", params=[3, 5])
def fitted(request):
    return KneserNey(request.param, vocab_size=len(WORDS)).fit(map(ids, TRAIN))


@pytest.fixture(scope="module")
def lmplz_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("kenlm") / "5.arpa"
    path.write_bytes(lzma.decompress((FOLDER / "5.arpa.xz").read_bytes()))
    return path


def test_every_held_out_token_is_as_probable_as_with_kenlm(fitted):
    scores = json.loads((FOLDER / "scores.json").read_text("utf-8"))[str(fitted.order)]
    expected = np.array([log10_p for sentence in scores for log10_p, _ in sentence])
    bits = np.concatenate([fitted.log2_probs(ids(sentence)) for sentence in HELD_OUT])
    # KenLM's numbers are float32, and it adds the logarithms of backoff weights.
    np.testing.assert_allclose(bits * np.log10(2), expected, atol=3e-6)
    assert 2 ** -bits.mean() == pytest.approx(10 ** -expected.mean(), rel=1e-6)


def test_every_ngram_of_lmplz_is_there_with_its_probability_and_backoff(lmplz_file):
    fitted = KneserNey(5, vocab_size=len(WORDS)).fit(map(ids, TRAIN))
    read, words = load_arpa(lmplz_file)
    assert (words, read.order, read.discounts) == (WORDS, 5, [])
    ours, theirs = fitted.trie, read.trie
    for name in ("levels", "first", "token", "suffix"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    begin = ours.start
    never_predicted = np.arange(len(ours.prob)) == begin
    np.testing.assert_allclose(ours.prob[~never_predicted], theirs.prob[~never_predicted], rtol=5e-6)
    np.testing.assert_allclose(ours.backoff[1:], theirs.backoff[1:], rtol=5e-6)


def test_what_lmplz_wrote_scores_as_kenlm_says(lmplz_file):
    model, words = load_arpa(lmplz_file)
    assert words == WORDS
    scores = json.loads((FOLDER / "scores.json").read_text("utf-8"))["5"]
    for sentence, expected in zip(HELD_OUT, scores, strict=True):
        found = model.log2_probs(ids(sentence)) * np.log10(2)
        np.testing.assert_allclose(found, [log10_p for log10_p, _ in expected], atol=3e-6)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_arpa_there_and_back(tmp_path, order):
    model = KneserNey(order, vocab_size=len(WORDS)).fit(map(ids, TRAIN[:40]))
    save_arpa(model, tmp_path / "model.arpa", WORDS)
    read, words = load_arpa(tmp_path / "model.arpa")
    assert words == WORDS
    for sentence in HELD_OUT:
        np.testing.assert_allclose(read.log2_probs(ids(sentence)), model.log2_probs(ids(sentence)), rtol=1e-9)
    np.testing.assert_array_equal(read.draft(ids(TRAIN[0])[:3], 5), model.draft(ids(TRAIN[0])[:3], 5))


def test_an_arpa_file_by_hand(tmp_path):
    # The bigram model of "a b" and "a c" that tests/model/test_ngram.py works out.
    model = KneserNey(2, vocab_size=4).fit([[0, 1], [0, 2]])
    save_arpa(model, tmp_path / "hand.arpa", list("abcd"))
    lines = (tmp_path / "hand.arpa").read_text("utf-8").splitlines()
    assert lines[:4] == ["\\data\\", "ngram 1=5", "ngram 2=3", ""]
    assert lines[4] == "\\1-grams:"
    number, word, backoff = lines[5].split("\t")
    assert (10 ** float(number), word, 10 ** float(backoff)) == (pytest.approx(7 / 24), "a", pytest.approx(1 / 2))
    assert [line.split("\t")[1] for line in lines[12:15]] == ["a b", "a c", "<s> a"]
    assert 10 ** float(lines[14].split("\t")[0]) == pytest.approx(31 / 48)
    assert lines[-1] == "\\end\\"


def test_kenlm_reads_what_we_write(tmp_path, fitted):
    if importlib.util.find_spec("kenlm") is None:
        pytest.skip("kenlm is not installed: what it says of our files is not checked")
    save_arpa(fitted, tmp_path / "ours.arpa", WORDS)
    reader = importlib.import_module("kenlm").Model(str(tmp_path / "ours.arpa"))
    for sentence in HELD_OUT:
        theirs = [log10_p for log10_p, _, _ in reader.full_scores(" ".join(sentence))]
        np.testing.assert_allclose(fitted.log2_probs(ids(sentence)) * np.log10(2), theirs, atol=3e-6)


GOOD = """\\data\\
ngram 1=3
ngram 2=1

\\1-grams:
-0.30103\ta\t-0.1
-0.30103\tb
-99\t<s>\t0

\\2-grams:
-0.2\ta b

\\end\\
"""


def test_a_small_arpa_file(tmp_path):
    (tmp_path / "x.arpa").write_text(GOOD)
    model, words = load_arpa(tmp_path / "x.arpa")
    assert words == ["a", "b"]
    np.testing.assert_allclose(2 ** model.log2_probs([0, 1, 0]), [0.5, 10**-0.2, 0.5], rtol=1e-5)
    np.testing.assert_allclose(2 ** model.log2_probs([0, 0]), [0.5, 10**-0.1 * 0.5], rtol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "data", "expected an ARPA file"),
        ("\\2-grams:", "\\3-grams:", "no section"),
        ("-0.2\ta b", "-0.2\ta", r"x.arpa:11: '-0.2\\ta'"),
        ("-0.2\ta b", "x\ta b", "'x'; expected a number"),
        ("-0.2\ta b", "-0.2\ta c", "word 'c' of a 2-gram"),
        ("-0.2\ta b", "0.2\ta b", "probability is not in"),
        ("-0.2\ta b", "nan\ta b", "probability is not in"),
        ("b\n-99", "a\n-99", "'a' occurs twice"),
        ("ngram 2=1", "ngram 2=9", "expected log10 P"),
        ("ngram 1=3\n", "", "expected an ARPA file"),
        ("\t0\n\n\\2-grams:\n-0.2\ta b\n\n\\end\\\n", "", "no section"),
    ],
)
def test_refuses_what_is_no_arpa_file(tmp_path, old, new, message):
    (tmp_path / "x.arpa").write_text(GOOD.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_arpa(tmp_path / "x.arpa")


@pytest.mark.parametrize("words", [["a"], ["a", "a"], ["a", "b c"], ["a", ""], ["a", "<s>"]])
def test_refuses_words_that_an_arpa_file_cannot_tell_apart(tmp_path, words):
    model = KneserNey(1, vocab_size=2).fit([[0, 1]])
    with pytest.raises(ValueError, match="save_arpa"):
        save_arpa(model, tmp_path / "x.arpa", words)
