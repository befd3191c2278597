"""Gaps: how many, where, what stands there, and that chance alone does not decide."""

import pytest
import torch

from groundup.train.masked import mask_tokens, random_bits

MASK, VOCAB = 0, 100


def rows(batch=64, seq=40, seed=0):
    return torch.randint(1, VOCAB, (batch, seq), generator=torch.Generator().manual_seed(seed))


def hidden(gaps, width):
    """Which places were chosen, as a mask of the rows."""
    wide = torch.zeros(gaps.tokens.shape[0], width, dtype=torch.long)
    return wide.scatter_add(1, gaps.places, gaps.chosen.long())


def everywhere(tokens):
    return torch.ones_like(tokens, dtype=torch.bool)


def test_splitmix64_against_its_published_numbers():
    """The generator's first numbers from the state 0, as in Vigna's reference code and Java's SplittableRandom."""
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]

    def mix(z):  # in Python's unbounded integers
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    assert [mix(golden * i % 2**64) for i in (1, 2, 3, 4)] == known
    for key in (0, 1, -5, 2**62):
        start = mix((key + 3 * golden) % 2**64)
        expected = [mix((start + golden * i) % 2**64) % 2**63 for i in range(1, 6)]
        assert random_bits(torch.tensor([key]), 5, stream=2).tolist() == [expected]


def test_a_share_of_each_rows_eligible_tokens_each_once_and_no_other():
    tokens = rows()
    eligible = rows(seed=1) % 3 > 0
    eligible[5], eligible[6] = False, torch.arange(40) == 7
    gaps = mask_tokens(tokens, eligible, MASK, VOCAB)
    counts = hidden(gaps, 40)
    expected = (0.15 * eligible.sum(1)).round().clamp(min=1)
    expected[5] = 0
    assert torch.equal(counts.sum(1).float(), expected) and counts.max() == 1
    assert not counts[~eligible].any() and counts[6, 7] == 1
    assert torch.equal(gaps.tokens[counts == 0], tokens[counts == 0])


def test_eight_in_ten_masks_one_other_one_kept():
    tokens = rows(2000)
    gaps = mask_tokens(tokens, everywhere(tokens), MASK, VOCAB)
    at = hidden(gaps, 40).bool()
    masked, kept = gaps.tokens[at] == MASK, gaps.tokens[at] == tokens[at]
    assert at.sum() == 12_000
    # Of those by chance, 1 in 100 is the mask and 1 in 100 what was there; three standard deviations are 0.011, 0.008.
    assert masked.float().mean().item() == pytest.approx(0.801, abs=0.011)
    assert kept.float().mean().item() == pytest.approx(0.101, abs=0.0085)
    others = gaps.tokens[at][~masked & ~kept]
    assert others.unique().numel() == VOCAB - 1  # all but the mask, which is not counted among them


def test_every_place_is_as_likely():
    tokens = rows(4000, 20)
    counts = hidden(mask_tokens(tokens, everywhere(tokens), MASK, VOCAB), 20).sum(0)
    assert counts.sum() == 4000 * 3
    assert (counts - 600).abs().max() < 4 * (4000 * 0.15 * 0.85) ** 0.5


def test_a_row_has_its_gaps_whatever_is_beside_it():
    tokens = rows()
    whole = mask_tokens(tokens, everywhere(tokens), MASK, VOCAB, seed=3)
    parts = [mask_tokens(part, everywhere(part), MASK, VOCAB, seed=3).tokens for part in tokens.split(7)]
    assert torch.equal(torch.cat(parts), whole.tokens)
    torch.manual_seed(99)
    assert torch.equal(mask_tokens(tokens, everywhere(tokens), MASK, VOCAB, seed=3).tokens, whole.tokens)


def test_seeds_and_tokens_make_other_gaps():
    tokens = rows(1, 40)
    same = tokens.expand(3, -1)
    seeds = torch.tensor([0, 1, 1])
    first, second, third = hidden(mask_tokens(same, everywhere(same), MASK, VOCAB, row_seeds=seeds), 40)
    assert torch.equal(second, third) and not torch.equal(first, second)
    plain, other = (hidden(mask_tokens(tokens, everywhere(tokens), MASK, VOCAB, seed=s), 40) for s in (0, 1))
    swapped = tokens[:, [1, 0, *range(2, 40)]]
    assert not torch.equal(plain, other)
    assert not torch.equal(hidden(mask_tokens(swapped, everywhere(swapped), MASK, VOCAB), 40), plain)


@pytest.mark.parametrize("seq", [1, 2])
def test_one_token_at_least(seq):
    tokens = rows(3, seq)
    gaps = mask_tokens(tokens, everywhere(tokens), MASK, VOCAB, share=0.01)
    assert hidden(gaps, seq).sum(1).tolist() == [1, 1, 1]
