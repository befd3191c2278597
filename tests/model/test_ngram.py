"""Kneser-Ney: a worked example, the formula again over dicts, and what every language model must satisfy."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.model.ngram import FALLBACK_DISCOUNTS, KneserNey, estimate_discounts, split_documents


class SlowKneserNey:
    """The definition, n-gram by n-gram. Tuples of symbols, the begin symbol is "<"."""

    def __init__(self, order, vocab_size, documents):
        self.order, self.vocab_size = order, vocab_size
        plain = defaultdict(Counter)
        for document in documents:
            symbols = ["<", *document]
            for n in range(1, order + 1):
                for start in range(len(symbols) - n + 1):
                    plain[n][tuple(symbols[start : start + n])] += 1
        del plain[1][("<",)]
        self.adjusted, self.discounts = {}, {}
        for n in range(1, order + 1):
            left = defaultdict(set)
            for gram in plain[n + 1]:
                left[gram[1:]].add(gram[0])
            keep_plain = n == order
            self.adjusted[n] = {
                gram: count if keep_plain or gram[0] == "<" else len(left[gram]) for gram, count in plain[n].items()
            }
            self.discounts[n] = self.estimate(list(self.adjusted[n].values()))

    @staticmethod
    def estimate(counts):
        n1, n2, n3, n4 = (sum(c == k for c in counts) for k in (1, 2, 3, 4))
        if not n1 * n2 * n3:
            return (0.5, 1.0, 1.5)
        y = n1 / (n1 + 2 * n2)
        d = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return d if all(0 < x <= k for k, x in enumerate(d, 1)) else (0.5, 1.0, 1.5)

    def p(self, token, history):
        """`history` starts with "<" when it reaches the start of its document."""
        lower = self.p(token, history[1:]) if history else 1 / self.vocab_size
        n = len(history) + 1
        followers = {gram[-1]: a for gram, a in self.adjusted[n].items() if gram[:-1] == history}
        if not followers:
            return lower
        d = self.discounts[n]
        total = sum(followers.values())
        freed = sum(d[min(a, 3) - 1] for a in followers.values())
        a = followers.get(token, 0)
        return (a - (d[min(a, 3) - 1] if a else 0)) / total + freed / total * lower

    def probs(self, document):
        symbols = ("<", *document)
        return [self.p(t, symbols[max(0, i - self.order + 2) : i + 1]) for i, t in enumerate(document)]


def test_worked_example():
    # Documents "a b" and "a c" (a, b, c, d = 0, 1, 2, 3), bigrams. The fallback discounts hold.
    # Left neighbours: a has {<}, b has {a}, c has {a}: a(.) = 1, 1, 1. gamma() = 3 * .5 / 3 = 1/2.
    #   P(a) = P(b) = P(c) = .5/3 + .5/4 = 7/24, P(d) = .5/4 = 3/24.
    # After <: a twice. P(a | <) = (2 - 1)/2 + 1/2 * 7/24 = 31/48. After a: b, c once each:
    #   P(b | a) = .5/2 + (2 * .5)/2 * 7/24 = 19/48, P(d | a) = 1/2 * 3/24 = 3/48.
    model = KneserNey(2, vocab_size=4).fit([[0, 1], [0, 2]])
    assert 2 ** model.log2_probs([0, 1]) == pytest.approx([31 / 48, 19 / 48])
    assert 2 ** model.log2_probs([0, 3]) == pytest.approx([31 / 48, 3 / 48])
    # Nothing ever followed b: the unigrams answer.
    assert model.distribution([1]) == pytest.approx([7 / 24, 7 / 24, 7 / 24, 3 / 24])


def test_order_one_is_the_unigram_interpolated_with_the_uniform():
    model = KneserNey(1, vocab_size=5).fit([[0, 0, 0, 1]])
    # D = .5, 1, 1.5: (3 - 1.5)/4, (1 - .5)/4, and (1.5 + .5)/4 = 1/2 spread over five tokens.
    assert model.distribution([4, 4]) == pytest.approx([0.375 + 0.1, 0.125 + 0.1, 0.1, 0.1, 0.1])
    assert 2 ** model.log2_probs([0, 1, 2]) == pytest.approx([0.475, 0.225, 0.1])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_definition(order):
    rng = np.random.default_rng(order)
    documents = [np.minimum(rng.geometric(0.25, size) - 1, 11) for size in (120, 1, 2, 3, 200, 0, 60)]
    fast = KneserNey(order, vocab_size=13).fit(documents)
    slow = SlowKneserNey(order, 13, [d.tolist() for d in documents])
    assert np.array(fast.discounts) == pytest.approx(np.array(list(slow.discounts.values())))
    for held_out in ([*documents[0][:20], 12, *documents[4][:15]], [12], [0], documents[3]):
        ids = [int(t) for t in held_out]
        np.testing.assert_allclose(fast.log2_probs(ids), np.log2(slow.probs(ids)), rtol=1e-12)


def test_equals_the_definition_with_estimated_discounts():
    rng = np.random.default_rng(0)
    zipf = 1 / np.arange(1, 200)
    documents = [rng.choice(199, 400, p=zipf / zipf.sum()) for _ in range(5)]
    model = KneserNey(3, vocab_size=199).fit(documents)
    assert FALLBACK_DISCOUNTS not in model.discounts[1:]
    held_out = rng.choice(199, 60, p=zipf / zipf.sum())
    expected = SlowKneserNey(3, 199, [d.tolist() for d in documents]).probs(held_out.tolist())
    np.testing.assert_allclose(2 ** model.log2_probs(held_out), expected, rtol=1e-12)


documents_of_six = st.lists(st.lists(st.integers(0, 5), max_size=12), min_size=1, max_size=6)


@settings(max_examples=60)
@given(documents_of_six.filter(any), st.lists(st.integers(0, 6), max_size=7), st.integers(1, 5))
def test_sums_to_one_for_seen_and_unseen_histories(documents, history, order):
    model = KneserNey(order, vocab_size=7).fit(documents)
    p = model.distribution(history)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert (p > 0).all()


@settings(max_examples=40)
@given(documents_of_six.filter(any), st.lists(st.integers(0, 6), min_size=1, max_size=9), st.integers(1, 5))
def test_log2_probs_are_the_distributions_along_the_document(documents, held_out, order):
    model = KneserNey(order, vocab_size=7).fit(documents)
    stepwise = [model.distribution(held_out[:i])[token] for i, token in enumerate(held_out)]
    np.testing.assert_allclose(2 ** model.log2_probs(held_out), stepwise, rtol=1e-12)


def test_an_unseen_history_backs_off_to_its_longest_seen_suffix():
    model = KneserNey(3, vocab_size=6).fit([[0, 1, 2, 3, 0, 1, 4], [2, 0, 1, 2]])
    np.testing.assert_allclose(model.distribution([5, 5, 1]), model.distribution([3, 3, 5, 1]))
    np.testing.assert_allclose(model.distribution([0, 1, 5]), model.distribution([5, 5, 5]))


def test_documents_do_not_see_each_other():
    model = KneserNey(2, vocab_size=4).fit([[0, 1], [2, 3]])
    assert model.distribution([1])[2] < model.distribution([0])[1]
    swapped = KneserNey(2, vocab_size=4).fit([[2, 3], [0, 1]])
    np.testing.assert_array_equal(model.distribution([1]), swapped.distribution([1]))


def test_any_integer_type_and_an_empty_document():
    ids = [3, 1, 0, 3, 1, 2]
    model = KneserNey(3, vocab_size=4).fit([np.array(ids, dtype=np.uint16), []])
    np.testing.assert_array_equal(model.log2_probs(ids), model.log2_probs(np.array(ids, dtype=np.uint32)))
    assert model.log2_probs([]).shape == (0,)


def test_a_longer_order_than_any_document_changes_nothing_above_them():
    documents = [[0, 1], [1, 2]]
    np.testing.assert_allclose(
        KneserNey(9, vocab_size=3).fit(documents).log2_probs([0, 1, 2, 0]),
        KneserNey(4, vocab_size=3).fit(documents).log2_probs([0, 1, 2, 0]),
    )


def test_predicts_text_better_than_its_lower_orders():
    text = np.frombuffer(b"the cat sat on the mat and the cat ate the rat on the mat. " * 12, dtype=np.uint8)
    held_out = np.frombuffer(b"the rat sat on the cat", dtype=np.uint8)
    bits = [-KneserNey(n, vocab_size=256).fit([text]).log2_probs(held_out).sum() for n in (1, 2, 3)]
    assert bits[0] > bits[1] > bits[2]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # n1..n4 = 4, 2, 1, 1: Y = 1/2; D = 1 - 2/4, 2 - 3/4, 3 - 4/2.
        ([1, 1, 1, 1, 2, 2, 3, 4, 9], (0.5, 1.25, 1.0)),
        ([1, 1, 1], FALLBACK_DISCOUNTS),
        ([], FALLBACK_DISCOUNTS),
        # Many fours: D_3+ would be negative.
        ([1, 1, 2, 3, 4, 4, 4, 4], FALLBACK_DISCOUNTS),
    ],
)
def test_discounts(counts, expected):
    assert estimate_discounts(np.array(counts, dtype=np.int64)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 4), "order=0"), ((2, 0), "vocab_size=0")],
)
def test_refuses_impossible_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        KneserNey(arguments[0], vocab_size=arguments[1])


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "no token"),
        ([[]], "no token"),
        ([[0, 4]], "token id 4; expected 0 to 3"),
        ([[-1]], "token id -1"),
        ([np.array([0.5])], "expected integers"),
        ([np.zeros((2, 2), dtype=np.int64)], r"shape \(2, 2\)"),
    ],
)
def test_refuses_what_are_no_documents(documents, message):
    with pytest.raises(ValueError, match=message):
        KneserNey(2, vocab_size=4).fit(documents)


def test_needs_fit_first():
    with pytest.raises(ValueError, match="call fit"):
        KneserNey(2, vocab_size=4).log2_probs([0])


def test_split_documents_keeps_the_end_of_text():
    pieces = [p.tolist() for p in split_documents(np.array([1, 2, 9, 9, 3]), 9)]
    assert pieces == [[1, 2, 9], [9], [3]]
    assert list(split_documents(np.array([], dtype=np.uint16), 9)) == []
