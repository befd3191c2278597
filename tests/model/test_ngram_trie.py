"""The trie under a Kneser-Ney model: its shape by hand, what is drafted from it, what filters with it, its files."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.model import ngram_trie
from groundup.model.ngram import KneserNey, text_scorer
from groundup.model.ngram_trie import adjust_counts, count_ngrams
from groundup.tensorfile import read_tensors, write_tensors

documents_of_six = st.lists(st.lists(st.integers(0, 5), max_size=12), min_size=1, max_size=6)


def zipf_documents(seed, vocab_size, *sizes):
    rng, p = np.random.default_rng(seed), 1 / np.arange(1, vocab_size + 1)
    return [rng.choice(vocab_size, size, p=p / p.sum()) for size in sizes]


def test_a_trie_by_hand():
    # "< a b a b" and "< b", with a, b, < = 0, 1, 2. Bigrams by history, then token: ab (2), ba (1), <a, <b (1 each).
    counts = count_ngrams(np.array([2, 0, 1, 0, 1, 2, 1], dtype=np.int32), 3, 2)
    assert counts.levels.tolist() == [0, 1, 4, 8]
    assert counts.token.tolist() == [0, 0, 1, 2, 1, 0, 0, 1]
    assert counts.first.tolist() == [1, 4, 5, 6, 8]  # the followers of: nothing, a, b, <
    assert counts.suffix.tolist() == [0, 0, 0, 0, 2, 1, 1, 2]
    assert counts.count.tolist() == [0, 2, 3, 0, 2, 1, 1, 1]
    adjust_counts(counts)  # a follows b and <; b follows a and <; bigrams are the highest order here
    assert counts.count.tolist() == [0, 2, 2, 0, 2, 1, 1, 1]


def test_counts_are_those_of_a_counter():
    """Large enough that histories have more followers than are sorted by insertion."""
    documents = zipf_documents(1, 60, 4000, 1, 0, 900)
    stream = np.concatenate([[60, *document] for document in documents]).astype(np.int32)
    counts = count_ngrams(stream, 61, 4)
    grams = [(t,) for t in range(61)]
    for n in range(1, 5):
        expected = Counter()
        for document in documents:
            symbols = [60, *document.tolist()]
            expected.update(zip(*(symbols[i:] for i in range(n)), strict=False))
        nodes = range(counts.levels[n], counts.levels[n + 1])
        if n > 1:
            histories = range(counts.levels[n - 1], counts.levels[n])
            grams = [
                (*gram, int(counts.token[node]))
                for gram, history in zip(grams, histories, strict=True)
                for node in range(counts.first[history], counts.first[history + 1])
            ]
        expected[(60,)] = 0
        found = dict(zip(grams, counts.count[nodes].tolist(), strict=True))
        assert {gram: count for gram, count in found.items() if count} == +expected


@settings(max_examples=40)
@given(documents_of_six.filter(any), st.lists(st.integers(0, 6), max_size=7), st.integers(1, 4))
def test_a_draft_is_the_most_probable_token_each_time(documents, history, order):
    model = KneserNey(order, vocab_size=7).fit(documents)
    past = list(history)
    for token in model.draft(history, 4).tolist():
        p = model.distribution(past)
        assert p[token] >= p.max() * (1 - 1e-12)
        past.append(token)


def test_a_draft_of_natural_sequences_by_the_distribution():
    documents = zipf_documents(2, 40, 3000)
    model = KneserNey(3, vocab_size=41).fit(documents)
    for history in zipf_documents(3, 41, 0, 1, 2, 3, 50, 51):
        p = model.distribution(history)
        assert p[model.draft(history, 1)[0]] == pytest.approx(p.max(), rel=1e-12)


def test_a_draft_pays_for_backing_off():
    # 0 follows eight different tokens, so that alone it is more probable than 2 and 3 are after 1. But it never
    # followed 1, and is half as probable there.
    model = KneserNey(2, vocab_size=10).fit([[1, 2], [1, 3], *([left, 0] for left in range(2, 10))])
    alone, after_one = model.distribution([0]), model.distribution([1])
    assert alone[0] > after_one[2] == after_one[3] > after_one[0] == pytest.approx(alone[0] / 2)
    assert model.draft([1], 1).tolist() in ([2], [3])
    assert model.draft([0], 1).tolist() == [0]


def test_a_draft_repeats_what_it_has_seen():
    text = [5, 3, 1, 4, 2, 0]
    model = KneserNey(4, vocab_size=6).fit([text * 3])
    assert model.draft([5, 3], 6).tolist() == [1, 4, 2, 0, 5, 3]
    assert model.draft(np.array([], dtype=np.uint16), 1).tolist() == [5]  # as the document began
    assert model.draft([5], 0).tolist() == []
    with pytest.raises(ValueError, match="k=-1"):
        model.draft([5], -1)
    with pytest.raises(ValueError, match="token id 6"):
        model.draft([6], 1)


def test_perplexity_by_hand():
    model = KneserNey(2, vocab_size=4).fit([[0, 1], [0, 2]])
    assert model.perplexity([0, 1]) == pytest.approx((31 / 48 * 19 / 48) ** -0.5)  # the worked example's two factors
    with pytest.raises(ValueError, match="without tokens"):
        model.perplexity([])


def test_text_like_the_training_text_scores_lower():
    def encode(text):
        return list(text.encode())

    model = KneserNey(3, vocab_size=256).fit([encode("the cat sat on the mat and the rat ate the cat. " * 20)])
    score = text_scorer(model, encode)
    assert score("the rat sat on the cat") < score("the dog ran") < score("xq zzv #~ kw")
    assert score("on \u00e9") == pytest.approx(-model.log2_probs(encode("on \u00e9")).sum() / 5)  # bytes, not letters
    assert score("") == 0


@pytest.mark.parametrize("order", [1, 2, 5])
def test_a_vocabulary_of_one(order):
    model = KneserNey(order, vocab_size=1).fit([[0, 0, 0], [0]])
    np.testing.assert_allclose(model.log2_probs([0, 0, 0, 0]), 0, atol=1e-12)
    assert model.draft([], 3).tolist() == [0, 0, 0]
    assert model.distribution([0]) == pytest.approx([1])


def test_one_token_is_enough_for_every_order():
    for order in (1, 2, 5):
        model = KneserNey(order, vocab_size=3).fit([[], [1], []])
        assert model.distribution([]).argmax() == 1
        assert model.distribution([]).sum() == pytest.approx(1)


def test_a_token_that_occurs_a_million_times():
    model = KneserNey(3, vocab_size=2).fit([np.zeros(1_000_000, dtype=np.uint16)])
    assert model.trie.levels.tolist() == [0, 1, 4, 6, 8]
    # After 0 0, which 0 followed 999,998 times: (c - D_3+)/c + D_3+/c P(0 | 0); the fallback's discounts.
    below = model.distribution([1, 0])[0]
    assert model.distribution([0, 0])[0] == pytest.approx((999_998 - 1.5 + 1.5 * below) / 999_998, rel=1e-14)


def test_more_than_can_be_numbered_is_refused(monkeypatch):
    monkeypatch.setattr(ngram_trie, "MAX_NODES", 20)
    with pytest.raises(ValueError, match="20 can be numbered"):
        KneserNey(3, vocab_size=4).fit([[0, 1, 2, 3] * 4])
    with pytest.raises(ValueError, match="expected less than"):
        KneserNey(3, vocab_size=2**31)


@pytest.mark.parametrize("order", [1, 3])
def test_saved_and_loaded_is_the_same(tmp_path, order):
    documents = zipf_documents(4, 50, 600, 20)
    model = KneserNey(order, vocab_size=50).fit(documents)
    model.save(tmp_path / "model.safetensors")
    again = KneserNey.load(tmp_path / "model.safetensors")
    assert (again.order, again.vocab_size, again.discounts) == (order, 50, model.discounts)
    held_out = zipf_documents(5, 50, 80)[0]
    np.testing.assert_array_equal(again.log2_probs(held_out), model.log2_probs(held_out))
    np.testing.assert_array_equal(again.draft(held_out, 6), model.draft(held_out, 6))


def changed(name, place, value):
    def change(tensors):
        tensors[name][place] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("suffix"), "expected those of an n-gram model"),
        (lambda t: t.update(token=t["token"].long()), "'token' is int64"),
        (lambda t: t.update(token=t["token"][:-1]), "token is for"),
        (lambda t: t.update(backoff=t["backoff"][:-1]), "backoff is for"),
        (lambda t: t.update(discounts=t["discounts"][:-1]), "discounts of shape"),
        (changed("levels", 1, 2), "levels"),
        (changed("levels", -1, 10**12), "levels says"),
        (changed("token", -1, 51), "not in the vocabulary"),
        (changed("token", -1, -1), "not in the vocabulary"),
        (changed("token", 1, 2), "unigrams are not all tokens"),
        (changed("suffix", -1, -1), "no shorter n-gram"),
        (changed("suffix", -1, 10**9), "no shorter n-gram"),
        (changed("suffix", 60, 70), "no shorter n-gram"),
        (changed("first", 5, 10**9), "followers"),
        (changed("first", -1, 10**9), "followers"),
        (changed("first", 0, -9), "followers"),
        (changed("prob", 3, 0.0), "probability"),
        (changed("prob", 3, float("nan")), "probability"),
        (changed("backoff", 3, float("inf")), "backoff"),
    ],
)
def test_a_changed_file_is_refused(tmp_path, change, message):
    path = tmp_path / "model.safetensors"
    KneserNey(3, vocab_size=50).fit(zipf_documents(4, 50, 300)).save(path)
    tensors = read_tensors(path)
    change(tensors)
    write_tensors(path, tensors)
    with pytest.raises(ValueError, match=message) as raised:
        KneserNey.load(path)
    assert "model.safetensors" in str(raised.value)


def test_a_file_of_something_else_is_refused(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="expected those of an n-gram model"):
        KneserNey.load(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError):
        KneserNey.load(tmp_path / "missing.safetensors")


def test_numba_is_imported_when_there_is_something_to_count_only():
    program = "import sys\nimport groundup.model.ngram\nassert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
