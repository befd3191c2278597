import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer import bpe
from groundup.tokenizer.bpe import PieceCache, apply_merges, learn_merges, rank_merges

words = st.dictionaries(st.text("abc", max_size=9).map(str.encode), st.integers(1, 5), max_size=8)


def learn_naively(counts, num_merges):
    """Recount everything before each merge, as the definition says."""
    split = {word: [bytes([byte]) for byte in word] for word in counts}
    merges = []
    for _ in range(num_merges):
        pairs = Counter()
        for word, tokens in split.items():
            for pair in pairwise(tokens):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = {word: merge_once(tokens, best) for word, tokens in split.items()}
    return merges


def merge_once(tokens, pair):
    merged, at = [], 0
    while at < len(tokens):
        if tuple(tokens[at : at + 2]) == pair:
            merged.append(pair[0] + pair[1])
            at += 2
        else:
            merged.append(tokens[at])
            at += 1
    return merged


def encode_naively(data, merges):
    """Every merge over the whole piece, in the order learned."""
    tokens = [bytes([byte]) for byte in data]
    for pair in merges:
        tokens = merge_once(tokens, pair)
    return tokens


def vocabulary(merges):
    return [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]


def ranks_of(merges):
    return rank_merges(merges, {token: number for number, token in enumerate(vocabulary(merges))})


def test_the_cat_in_the_hat():
    merges = learn_merges({b"the cat in the hat" * 3: 1}, 3)
    ids = {token: number for number, token in enumerate(vocabulary(merges))}
    numbered = [(ids[a], ids[b], ids[a + b]) for a, b in merges]
    assert numbered == [(116, 104, 256), (256, 101, 257), (257, 32, 258)]


def test_cat_hat():
    assert list(b"cat hat") == [99, 97, 116, 32, 104, 97, 116]
    assert learn_merges({b"cat hat": 1}, 1) == [(b"a", b"t")]


def test_equal_counts_take_the_lexicographically_greatest_pair_of_bytes():
    assert learn_merges({b"ab": 1, b"ba": 1, b"zz": 1}, 1) == [(b"z", b"z")]
    # ("a", "bb") > ("a", "b"): a longer string is greater than its own beginning.
    learned = learn_merges({b"bb": 9, b"abb": 2, b"ab": 2, b"abbb": 0}, 2)
    assert learned == learn_naively({b"bb": 9, b"abb": 2, b"ab": 2, b"abbb": 0}, 2)


def test_overlapping_pairs_count_every_position_and_merge_from_the_left():
    assert learn_merges({b"aaa": 1, b"bc": 1}, 2) == [(b"a", b"a"), (b"b", b"c")]
    assert apply_merges(b"aaaaa", ranks_of([(b"a", b"a")])) == [256, 256, 97]


@given(words, st.integers(0, 30))
def test_training_equals_recounting(counts, num_merges):
    assert learn_merges(counts, num_merges) == learn_naively(counts, num_merges)


def test_training_equals_recounting_on_prose():
    text = (bpe.__doc__ or "") + (learn_merges.__doc__ or "") * 3
    counts = Counter(piece.encode() for piece in text.split(" "))
    assert learn_merges(counts, 200) == learn_naively(counts, 200)


def test_the_order_of_words_makes_no_difference():
    counts = Counter(f"{a}{b}{a}{b}{b}".encode() for a in "abcdef" for b in "uvwxyz" for _ in range(2))
    shuffled = list(counts.items())
    random.shuffle(shuffled)
    assert learn_merges(dict(shuffled), 100) == learn_merges(counts, 100)


@pytest.mark.parametrize("counts", [{}, {b"": 3}, {b"a": 5}, {b"a": 1, b"b": 1}])
def test_nothing_to_merge(counts):
    assert learn_merges(counts, 10) == []


def test_stops_when_no_pair_is_left():
    assert learn_merges({b"abc": 1}, 10) == [(b"b", b"c"), (b"a", b"bc")]
    assert learn_merges({b"abc": 1}, 0) == []


def test_progress_is_told():
    seen = []
    learn_merges({bytes(range(i, i + 9)): 1 for i in range(0, 240, 9)}, 200, lambda *state: seen.append(state))
    assert seen == [(100, 200), (200, 200)]


@given(words, st.text("abc", max_size=40))
def test_encoding_equals_applying_all_merges_in_order(counts, text):
    merges = learn_merges(counts, 20)
    tokens = vocabulary(merges)
    encoded = apply_merges(text.encode(), ranks_of(merges))
    assert [tokens[number] for number in encoded] == encode_naively(text.encode(), merges)


@given(st.data())
def test_the_heap_and_the_scan_agree_on_any_list_of_merges(data):
    """Also on lists that no training makes, where a merge comes before the merges that make its parts."""
    tokens, merges = [b"a", b"b", b"c"], []
    for _ in range(data.draw(st.integers(0, 8))):
        pair = data.draw(st.tuples(st.sampled_from(tokens), st.sampled_from(tokens)))
        if pair[0] + pair[1] not in tokens:
            tokens.append(pair[0] + pair[1])
            merges.append(pair)
    merges = data.draw(st.permutations(merges))
    ranks = rank_merges(merges, {token: number for number, token in enumerate(tokens)})
    symbols = data.draw(st.lists(st.integers(0, 2), max_size=90))
    assert bpe._merge_with_heap(list(symbols), ranks) == bpe._merge_scanning(list(symbols), ranks)


def test_a_piece_of_a_hundred_thousand_bytes():
    merges = [(b"a" * 2**k, b"a" * 2**k) for k in range(10)]
    assert apply_merges(b"a" * 100_000, ranks_of(merges)) == [265] * 97 + [264, 262, 260]
    assert learn_merges({b"a" * 100_000: 1}, 3) == merges[:3]


def test_merges_must_be_in_the_vocabulary_and_different():
    ids = {b"a": 0, b"b": 1, b"ab": 2}
    with pytest.raises(ValueError, match=r"merge 1 .*b'ba' is not in the vocabulary"):
        rank_merges([(b"a", b"b"), (b"b", b"a")], ids)
    with pytest.raises(ValueError, match="merge 1 .*the same as merge 0"):
        rank_merges([(b"a", b"b"), (b"a", b"b")], ids)


def test_the_cache_is_bounded_and_skips_long_pieces():
    asked = []
    cache = PieceCache(lambda piece: asked.append(piece) or [len(piece)], capacity=2)
    assert [cache[piece] for piece in ("a", "bb", "a", "ccc", "ccc", "a")] == [[1], [2], [1], [3], [3], [1]]
    assert asked == ["a", "bb", "ccc", "a"]
    assert cache["x" * 1000] == [1000]
    assert len(cache) == 2
