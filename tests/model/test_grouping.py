import inspect

import pytest
import torch

from groundup import presets
from groundup.model import (
    AttentionConfig,
    BlockConfig,
    EncoderDecoder,
    LSTMConfig,
    MLPConfig,
    MoEConfig,
    MultiTokenConfig,
    group_kv_heads,
    upcycle,
)
from groundup.model.pretrained import save_pretrained

from .variants import build, small, tokens

MHA = BlockConfig(AttentionConfig(4, 4, 4, bias=True), MLPConfig(24))


def test_by_hand():
    """Heads of one channel with key rows 1, 3, 10, 30 pool to 2, 20."""
    model = build(small(BlockConfig(AttentionConfig(4, 4, 1, rope=None), MLPConfig(8))))
    with torch.no_grad():
        model.blocks[0].mixer.wk.weight.copy_(torch.tensor([1.0, 3.0, 10.0, 30.0])[:, None].expand(4, 16))
    pooled = group_kv_heads(model, 2).blocks[0].mixer.wk.weight
    assert pooled[:, 0].tolist() == [2.0, 20.0]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_exact_where_heads_of_a_group_are_equal(kv_heads):
    model, x = build(small(MHA)), tokens()
    with torch.no_grad():
        for block in model.blocks:
            for linear in (block.mixer.wk, block.mixer.wv):
                for parameter in (linear.weight, linear.bias):
                    heads = parameter.view(kv_heads, 4 // kv_heads, 4, -1)
                    heads.copy_(heads[:, :1].clone().expand_as(heads))
        grouped = group_kv_heads(model, kv_heads)
        torch.testing.assert_close(grouped(x), model(x), rtol=1e-4, atol=1e-5)
    assert all(block.mixer.num_kv_heads == kv_heads for block in grouped.config.blocks)


def test_a_copy_that_trains_on_its_own():
    model = build(small(MHA))
    grouped = group_kv_heads(model, 2)
    grouped(tokens()).sum().backward()
    assert grouped.embed.weight.grad is not None and model.embed.weight.grad is None
    assert grouped.embed.weight.data_ptr() != model.embed.weight.data_ptr()


def test_better_than_dropping_heads():
    """What mean-pooling is for: it stays nearer to the original than keeping one head of each group does."""
    model, x = build(small(MHA)), tokens(8, 16)
    pooled, dropped = group_kv_heads(model, 2), group_kv_heads(model, 2)
    with torch.no_grad():
        for block, original in zip(dropped.blocks, model.blocks, strict=True):
            for name in ("wk", "wv"):
                first = getattr(original.mixer, name).weight.view(2, 2, 4, 16)[:, 0]
                getattr(block.mixer, name).weight.copy_(first.flatten(0, 1))
        distance = {m: (m(x) - model(x)).norm() for m in (pooled, dropped)}
    assert distance[pooled] < distance[dropped]


def test_a_number_that_does_not_divide_names_those_that_do():
    with pytest.raises(ValueError, match="4 key/value heads cannot be pooled to num_kv_heads=3; allowed: 1, 2, 4"):
        group_kv_heads(build(small(MHA)), 3)


def test_other_mixers_and_experts_stay_as_they_are():
    blocks = (
        BlockConfig(LSTMConfig(12), MoEConfig(4, 2, 12)),
        BlockConfig(AttentionConfig(4, 4, 4), MoEConfig(4, 2, 12)),
    )
    model = build(small(*blocks))
    grouped = group_kv_heads(model, 2)
    assert grouped.config.blocks[0] == blocks[0] and grouped.config.blocks[1].mixer.num_kv_heads == 2
    assert grouped(tokens()).isfinite().all()
    assert not any(buffer.is_meta for buffer in grouped.buffers())


def test_a_norm_over_all_heads_and_further_tokens_are_pooled_too():
    block = BlockConfig(AttentionConfig(4, 4, 4, qk_norm="whole"), MLPConfig(24))
    model = build(small(block, multi_token=MultiTokenConfig(depth=2)))
    model.dropout = 0.1
    grouped = group_kv_heads(model, 2)
    assert grouped.blocks[0].mixer.k_norm.weight.shape == (8,)
    assert grouped.multi_token.depths[1].block.mixer.wk.weight.shape == (8, 16)
    assert grouped.dropout == 0.1 and grouped(tokens()).isfinite().all()


def test_two_stacks_are_refused(tmp_path):
    """Under pytest types are checked before; users have no such check."""
    model = EncoderDecoder(presets.vaswani_encoder_decoder(vocab_size=32, d_model=16, num_layers=1, num_heads=2))
    experts = MoEConfig(num_experts=2, top_k=1, d_ff=8)
    calls = [(group_kv_heads, 1), (upcycle, experts), (save_pretrained, None, tmp_path)]
    for function, *rest in calls:
        with pytest.raises(ValueError, match="EncoderDecoder"):
            inspect.unwrap(function)(model, *rest)
