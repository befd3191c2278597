import doctest

import pytest

from groundup.tokenizer import Tokenizer, sweep
from groundup.tokenizer.sweep import PUBLISHED_SIZES, Cost, prefix, sequence_costs
from tests.tokenizer.conftest import PROSE, SPECIAL_TOKENS


def test_examples_in_docstrings():
    assert doctest.testmod(sweep).failed == 0


@pytest.mark.parametrize("pattern", ["gpt2", "o200k", "none"])
@pytest.mark.parametrize("size", [260, 261, 300, 500])
def test_the_first_merges_are_what_training_to_a_smaller_size_gives(trained, pattern, size):
    from tests.tokenizer.awkward import FRAGMENTS

    corpus = [PROSE * 3, " ".join(FRAGMENTS)] * 2
    again = Tokenizer.train_from_iterator(corpus, size, SPECIAL_TOKENS, pattern)
    assert prefix(trained[pattern], size).fingerprint == again.fingerprint


@pytest.mark.parametrize("size", [259, 501, 0, -1])
def test_there_is_no_prefix_of_an_impossible_size(trained, size):
    with pytest.raises(ValueError, match=r"expected 260 \(bytes and special tokens\) to 500"):
        prefix(trained["gpt2"], size)


def test_a_vocabulary_of_ranks_is_cut_by_rank(trained):
    whole = trained["gpt2"]
    special = set(whole.special_tokens.values())
    vocab = {token_id: token for token_id, token in whole.vocab.items() if token_id not in special}
    ranked = Tokenizer(vocab, None, ["<|endoftext|>"])
    smaller = prefix(ranked, 301)
    assert smaller.ranked_by_token
    assert smaller.vocab_size == 301
    assert smaller.special_tokens == {"<|endoftext|>": 300}
    assert smaller.encode(PROSE) == prefix(whole, 304).encode(PROSE)


def cost(vocab_size, context):
    """A model of 100 FLOPs a token, 2 for each row of its output table, and 10 for each token that it looks back to."""
    return Cost(100 + 2 * vocab_size + 10 * context, 10 * context, 2 * vocab_size)


def test_a_row_by_hand(trained):
    rows = sweep.sweep(trained["gpt2"], ["the cat", "sat"], [500, 260, 500], d_model=8, cost=cost, context_bytes=40)
    assert [row.vocab_size for row in rows] == [260, 500]
    bytes_only = rows[0]
    assert bytes_only.bytes_per_token == 1.0
    assert bytes_only.embedding_parameters == 260 * 8 * 2
    assert bytes_only.context_tokens == 40
    assert bytes_only.flops_per_byte == 100 + 2 * 260 + 10 * 40
    assert (bytes_only.attention_flops_per_byte, bytes_only.head_flops_per_byte) == (400, 520)
    assert bytes_only.attention_to_bytes == 1.0

    tokens = len(trained["gpt2"].encode("the cat")) + len(trained["gpt2"].encode("sat"))
    ratio = 10 / tokens
    assert 1 < rows[1].bytes_per_token == ratio
    assert rows[1].context_tokens == round(40 / ratio)
    assert rows[1].flops_per_byte == (100 + 2 * 500 + 10 * rows[1].context_tokens) / ratio
    assert rows[1].attention_to_bytes == pytest.approx((tokens / 10) ** 2)


def test_a_shared_table_is_counted_once(trained):
    row = sweep.sweep(trained["gpt2"], ["the cat"], [300], d_model=8, cost=cost, tied=True)[0]
    assert row.embedding_parameters == 300 * 8


def test_a_larger_vocabulary_never_makes_a_text_of_its_training_longer(trained):
    rows = sweep.sweep(trained["gpt2"], [PROSE], range(260, 500, 20), d_model=8, cost=cost)
    ratios = [row.bytes_per_token for row in rows]
    assert ratios == sorted(ratios)
    assert ratios[-1] > 2


def test_progress_counts_sizes_and_nothing_is_measured_on_no_text(trained):
    seen = []
    sweep.sweep(trained["gpt2"], ["x"], [260, 300], d_model=8, cost=cost, progress=lambda *state: seen.append(state))
    assert seen == [(1, 2), (2, 2)]
    with pytest.raises(ValueError, match="no text to measure on"):
        sweep.sweep(trained["gpt2"], [""], [260], d_model=8, cost=cost)


def test_attention_falls_with_the_square_of_the_ratio():
    rows = sequence_costs({"byte": 1.0, "long": 4.0}, {"byte": 256, "long": 256}, [1000], cost)
    assert [(row.tokenizer, row.context_bytes, row.tokens) for row in rows] == [
        ("byte", 1000, 1000),
        ("long", 1000, 250),
    ]
    assert [row.attention_flops for row in rows] == [10 * 1000**2, 10 * 250**2]
    assert [row.attention_to_bytes for row in rows] == [1.0, 1 / 16]
    assert rows[0].attention_share == 10 * 1000 / (100 + 512 + 10 * 1000)


def test_a_window_shorter_than_a_token_is_one_token():
    assert sequence_costs({"long": 9.0}, {"long": 300}, [2], cost)[0].tokens == 1


def test_published_sizes_are_the_papers():
    assert PUBLISHED_SIZES == {"Transformer": 37_000, "GPT": 40_478, "GPT-2": 50_257}
    assert PUBLISHED_SIZES["GPT-2"] == 256 + 50_000 + 1  # bytes, merges and <|endoftext|>
