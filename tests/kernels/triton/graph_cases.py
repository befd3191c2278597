"""What `graphs` traces: the twins themselves, as the CPU tensors at hand would not be dispatched to them."""

import torch

from groundup.kernels.triton import attention as flash
from groundup.kernels.triton import cross_entropy as losses


def attention_of_documents(q, k, v, sinks, slopes):
    """With everything at once, and 40 tokens in documents of 9."""
    at = torch.arange(q.shape[1]).expand(q.shape[:2])
    options = {"window": 8, "sink_tokens": 2, "softcap": 2.0, "sinks": sinks, "slopes": slopes}
    return flash.attention(q, k, v, at, at, q_segments=at // 9, k_segments=at // 9, **options).sum()


def attention_from_zero(q, k, v):
    at = torch.arange(q.shape[1]).expand(q.shape[:2])
    return flash.attention(q, k, v, at, at, causal_from_zero=True).sum()


def attention_of_one_query(q, k, v):
    at = torch.arange(k.shape[1]).expand(k.shape[:2])
    return flash.attention(q.detach(), k.detach(), v.detach(), at[:, -1:], at).sum() + q.sum()


def loss(logits):
    return losses.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))[0]


def loss_with_head(hidden, weight):
    """In chunks of 8 tokens."""
    targets = torch.zeros(len(hidden), dtype=torch.int64)
    return losses.linear_cross_entropy(hidden, weight, targets, chunk=8, softcap=3.0)[0]
