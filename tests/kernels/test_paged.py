"""The reference against a loop over keys in float64, one query and head at a time."""

import math

import pytest
import torch

from groundup.kernels import paged_attention

CASES = {
    "plain": {},
    "window": {"window": 5},
    "window and first tokens": {"window": 3, "sink_tokens": 2},
    "soft cap": {"softcap": 1.5, "scale": 0.7},
    "sinks": {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "alibi": {"slopes": torch.tensor([1.0, 0.5, 0.2, 0.0])},
    "everything": {
        "window": 6, "sink_tokens": 1, "softcap": 2.0, "sinks": torch.tensor([0.5, -1.0, 2.0, 0.0]),
        "slopes": torch.tensor([1.0, 0.5, 0.2, 0.0]),
    },
}  # fmt: skip


def store(batch=3, pages=6, page_size=4, heads=4, kv_heads=2, d_head=8, d_value=8, q_seq=2, seed=0):
    """Queries, keys, values, positions and tables: rows of 21, 5 and 2 tokens, whose pages are in no order."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    slots = batch * pages * page_size
    tables = torch.randperm(batch * pages, generator=generator).view(batch, pages)
    lasts = torch.tensor([20, 4, 1])[:batch]
    positions = lasts[:, None] - torch.arange(q_seq - 1, -1, -1)
    q, keys, values = (
        normal(batch, q_seq, heads, d_head), normal(slots, kv_heads, d_head), normal(slots, kv_heads, d_value)
    )  # fmt: skip
    return q, keys, values, positions.clamp(min=-1), tables


def by_hand(q, keys, values, q_pos, tables, *, page_size, window=None, sink_tokens=0, softcap=None, scale=None,
            sinks=None, slopes=None):  # fmt: skip
    out = torch.zeros(*q.shape[:3], values.shape[2], dtype=torch.float64)
    groups = q.shape[2] // keys.shape[1]
    for row, i, head in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        at, weights, seen = int(q_pos[row, i]), [], []
        for p in range(at + 1):
            if window is not None and at - p >= window and p >= sink_tokens:
                continue
            slot = int(tables[row, p // page_size]) * page_size + p % page_size
            score = float(q[row, i, head].double() @ keys[slot, head // groups].double())
            score *= q.shape[3] ** -0.5 if scale is None else scale
            score = score if softcap is None else softcap * math.tanh(score / softcap)
            score -= 0 if slopes is None else float(slopes[head]) * (at - p)
            weights.append(math.exp(score))
            seen.append(values[slot, head // groups].double())
        if weights:
            total = sum(weights) + (0 if sinks is None else math.exp(float(sinks[head])))
            out[row, i, head] = sum(w * v for w, v in zip(weights, seen, strict=True)) / total
    return out


@pytest.mark.parametrize("case", CASES)
def test_the_reference_against_a_loop(case):
    made = store()
    made[3][1, 0] = -1  # padding
    got = paged_attention(*made, page_size=4, **CASES[case])
    torch.testing.assert_close(got.double(), by_hand(*made, page_size=4, **CASES[case]), rtol=1e-5, atol=1e-6)


def test_what_lies_behind_a_row_changes_nothing():
    q, keys, values, positions, tables = store()
    before = paged_attention(q, keys, values, positions, tables, page_size=4)
    keys[tables[1, 2] * 4 :][:4], values[tables[1, 2] * 4 :][:4] = 100.0, 100.0
    tables[1, 3:] = tables[0, 0]
    after = paged_attention(q, keys, values, positions, tables, page_size=4)
    assert torch.equal(before, after)
    assert not torch.equal(before, paged_attention(q, keys, values, positions + 4, tables, page_size=4))
