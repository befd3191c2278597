"""Sixteen keys against a query, and their values, against numpy."""

import ctypes

import pytest
import torch

from groundup.inference.decode.heads import head_loops, heads_at_once


def call(address, *arguments):
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(arguments))(address)(*arguments)


@pytest.mark.parametrize("d_head", [4, 16, 40])
@pytest.mark.parametrize("in_bf16", [False, True])
def test_scores_and_values_of_a_group_of_keys(d_head, in_bf16):
    heads, kv_heads, length, count = 3, 2, 48, 11
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(16, kv_heads, d_head, generator=generator).to(torch.bfloat16 if in_bf16 else torch.float32)
    queries, scores = torch.randn(heads, d_head, generator=generator), torch.zeros(heads, length)
    weights, out = torch.randn(heads, length, generator=generator), torch.ones(heads, d_head)
    own, stride = stored.data_ptr() + stored[0, 0].nbytes, stored[0].nbytes
    first, second, _ = head_loops(d_head, heads, in_bf16)
    call(first, queries.data_ptr(), own, stride, scores.data_ptr(), length, own)
    call(second, weights.data_ptr(), length, own, stride, count, out.data_ptr(), own)
    keys = stored[:, 1].float()
    torch.testing.assert_close(scores[:, :16], queries @ keys.T, rtol=1e-5, atol=1e-5)
    assert scores[:, 16:].eq(0).all()
    torch.testing.assert_close(out, 1 + weights[:, :count] @ keys[:count], rtol=1e-5, atol=1e-5)


def test_heads_that_share_keys_are_done_together_as_far_as_registers_go():
    assert [heads_at_once(64, group) for group in (1, 3, 4, 8)] == [1, 3, 4, 4]
    assert heads_at_once(256, 4) == 1 and heads_at_once(512, 4) == 1
