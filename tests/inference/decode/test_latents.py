"""Sixteen latents against the queries of several heads, and their sums, against torch."""

import pytest
import torch

from groundup.inference.decode.latents import heads_at_once, latent_loops
from tests.inference.decode.test_heads import call


@pytest.mark.parametrize("width", [8, 48, 152])
@pytest.mark.parametrize("in_bf16", [False, True])
def test_scores_are_added_and_values_summed_for_a_group_of_latents(width, in_bf16):
    heads, length, count = 3, 48, 11
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(16, 2, width, generator=generator).to(torch.bfloat16 if in_bf16 else torch.float32)
    queries, before = (torch.randn(heads, n, generator=generator) for n in (width, length))
    scores, weights, out = before.clone(), before.clone(), torch.ones(heads, width)
    own, stride = stored.data_ptr() + stored[0, 0].nbytes, stored[0].nbytes
    first, second = latent_loops(width, heads, in_bf16)
    call(first, queries.data_ptr(), own, stride, scores.data_ptr(), length, own)
    call(second, weights.data_ptr(), length, own, stride, count, out.data_ptr(), own)
    latents = stored[:, 1].float()
    torch.testing.assert_close(scores[:, :16], before[:, :16] + queries @ latents.T, rtol=1e-5, atol=1e-4)
    assert torch.equal(scores[:, 16:], before[:, 16:])
    torch.testing.assert_close(out, 1 + weights[:, :count] @ latents[:count], rtol=1e-5, atol=1e-5)


def test_up_to_four_heads_are_done_together():
    assert [heads_at_once(n) for n in (1, 2, 3, 6, 7, 16)] == [1, 2, 3, 3, 1, 4]
