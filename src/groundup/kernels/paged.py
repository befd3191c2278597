"""Attention over pages where they lie: a few new tokens of each sequence against all that a page store remembers.

    tables    row of the batch -> its pages                the key at position p of row r is
    keys      (slots, kv_heads, d_head)                    keys[tables[r, p // page_size] * page_size + p % page_size]

Whoever gathers pages into one tensor reads and writes every key before attention reads it again; a kernel that looks
each page up reads it once. Kwon et al. 2023, section 4 (arXiv:2309.06180).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from groundup.kernels._dispatch import op
from groundup.kernels.attention import attention

MOST_ROWS = 64
"""Queries of a sequence times heads per kv head, as many as the kernel takes: more are a prompt, not decoding."""


@op
def paged_attention(
    q: Float[Tensor, "batch q_seq heads d_head"],
    keys: Float[Tensor, "slots kv_heads d_head"],
    values: Float[Tensor, "slots kv_heads d_value"],
    q_pos: Int[Tensor, "batch q_seq"],
    tables: Int[Tensor, "batch pages"],
    *,
    page_size: int,
    window: int | None = None,
    sink_tokens: int = 0,
    softcap: float | None = None,
    scale: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
    slopes: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch q_seq heads d_value"]:
    """`attention` of queries at `q_pos` (-1: padding, which gets zeros) over the pages of their rows.

    Position p of row r is in slot tables[r, p // page_size] * page_size + p % page_size. The queries' own keys and
    values are stored already. A query sees positions up to its own, those of its window and the first `sink_tokens`
    where there is a window. The other arguments are those of `attention`.

    How far each row has come is read on the device: nothing about a call but its shapes depends on lengths, so a CUDA
    graph of it serves every step. Tables may name any page of the store behind a row's last token.
    """
    slots = tables[..., None] * page_size + torch.arange(page_size, device=tables.device)
    slots = slots.flatten(1)
    k_pos = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
    return attention(
        q, keys[slots], values[slots], q_pos, k_pos,
        window=window, sink_tokens=sink_tokens, softcap=softcap, scale=scale, sinks=sinks, slopes=slopes,
    )  # fmt: skip
