"""Two stacks: against torch.nn.Transformer, cached against uncached, and what each side may see."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from groundup import presets
from groundup.config import from_dict, to_dict
from groundup.model import (
    PLACEMENTS,
    AttentionConfig,
    BlockConfig,
    CrossAttention,
    CrossAttentionConfig,
    DenseCache,
    EncoderDecoder,
    EncoderDecoderConfig,
    LatentAttentionConfig,
    LearnedPositions,
    LSTMConfig,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    PagedCache,
    PagePool,
    SinusoidalPositions,
    Transformer,
)
from groundup.model.families import family_of

from .variants import D_MODEL, VOCAB, tokens

HEADS = AttentionConfig(4, 4, 4, rope=None, bias=True, out_bias=True)
CROSS = CrossAttentionConfig(4, 4, 4, bias=True, out_bias=True)
FFN = MLPConfig(24, gated=False, activation="relu", bias=True)
SINES = SinusoidalPositions(64)
SOURCE, TARGET = tokens(2, 7, seed=1), tokens(2, 9, seed=2)


def pair(reader, writer, share=True, **options):
    sides = (ModelConfig(VOCAB, D_MODEL, 2, (block,), **options) for block in (reader, writer))
    return EncoderDecoderConfig(*sides, share_embeddings=share)


def both(placement="pre", norm="layer", mixer=HEADS, cross=CROSS, ffn=FFN, **options):
    """A pair of stacks with the same kind of block."""
    reader = BlockConfig(replace(mixer, causal=False), ffn, norm, placement)
    writer = BlockConfig(mixer, ffn, norm, placement, cross)
    return pair(reader, writer, norm_bias=norm == "layer", **options)


PAIRS = (
    {placement: both(placement, positions=SINES, scale_embeddings=True) for placement in PLACEMENTS}
    | {f"{placement}_rms": both(placement, "rms", AttentionConfig(4, 2, 4)) for placement in PLACEMENTS}
    | {
        "tied": both("post", tie_embeddings=True, final_norm=False),
        "learned_positions": both(positions=LearnedPositions(20)),
        "two_tables": replace(both(), share_embeddings=False),
        "grouped_cross": both(cross=CrossAttentionConfig(4, 2, 6, qk_norm=True, softcap=2.0, scale=0.3)),
        "windows": both(mixer=AttentionConfig(4, 2, 4, window=3)),
        "lstm": pair(BlockConfig(LSTMConfig(12), None), BlockConfig(LSTMConfig(12), None, cross=CROSS)),
        "experts": both(ffn=MoEConfig(4, 2, 12)),
        "cross_in_every_second_layer": EncoderDecoderConfig(
            both().encoder,
            replace(both().decoder, blocks=(BlockConfig(HEADS, FFN), BlockConfig(HEADS, FFN, cross=CROSS))),
        ),
    }
)
pairs = pytest.mark.parametrize("name", PAIRS)


def build(config):
    """No parameter at a value that hides it."""
    model, generator = EncoderDecoder(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


# Against torch


def copied(linear, weight, bias):
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


@torch.no_grad()
def as_torchs(model, norm_first):
    """torch.nn.Transformer in float64 with these weights."""
    config = model.config.decoder
    theirs = nn.Transformer(
        D_MODEL, 4, config.num_layers, config.num_layers, 24, dropout=0.0, batch_first=True, norm_first=norm_first
    ).double()
    for side, stack in ((model.encoder, theirs.encoder), (model.decoder, theirs.decoder)):
        copied(stack.norm, side.final_norm.weight, side.final_norm.bias)
        kind = "norm" if norm_first else "out_norm"
        for ours, layer in zip(side.blocks, stack.layers, strict=True):
            parts = [(ours.mixer, layer.self_attn, f"mixer_{kind}")]
            if ours.cross is not None:
                parts.append((ours.cross, layer.multihead_attn, f"cross_{kind}"))
            norms = [getattr(ours, name) for *_, name in parts] + [getattr(ours, f"ffn_{kind}")]
            for attention, multi_head, _ in parts:
                for name in ("weight", "bias"):
                    thirds = [getattr(getattr(attention, w), name) for w in ("wq", "wk", "wv")]
                    getattr(multi_head, f"in_proj_{name}").copy_(torch.cat(thirds))
                copied(multi_head.out_proj, attention.wo.weight, attention.wo.bias)
            for number, norm in enumerate(norms, 1):
                copied(getattr(layer, f"norm{number}"), norm.weight, norm.bias)
            copied(layer.linear1, ours.ffn.up.weight, ours.ffn.up.bias)
            copied(layer.linear2, ours.ffn.down.weight, ours.ffn.down.bias)
    return theirs


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_torch_nn_transformer_with_gradients(placement, padded):
    """Hidden states and the gradients of the table of tokens and of two more weights, to 1e-9 in float64."""
    model = build(both(placement, positions=SINES, tie_embeddings=True, scale_embeddings=True)).double()
    model.compute_dtype = torch.float64
    theirs = as_torchs(model, norm_first=placement == "pre")
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = padded
    positions = torch.arange(7).expand(2, 7).masked_fill(padding, -1) if padded else None
    ours = model.hidden(SOURCE, TARGET, positions)
    source = model.encoder.embed_tokens(SOURCE, model.encoder.layout(SOURCE))
    target = model.decoder.embed_tokens(TARGET, model.decoder.layout(TARGET))
    mask = nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64)
    expected = theirs(
        source, target, tgt_mask=mask, tgt_is_causal=True,
        src_key_padding_mask=padding, memory_key_padding_mask=padding,
    )  # fmt: skip
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    upstream = torch.randn_like(ours)
    weights = [
        model.decoder.embed.weight,
        model.encoder.blocks[0].mixer.wq.weight,
        model.decoder.blocks[0].cross.wk.weight,
    ]
    got = torch.autograd.grad(ours, weights, upstream)
    first, cross = theirs.encoder.layers[0].self_attn, theirs.decoder.layers[0].multihead_attn
    table, fused, other = torch.autograd.grad(
        expected, [model.decoder.embed.weight, first.in_proj_weight, cross.in_proj_weight], upstream
    )
    for a, b in zip(got, (table, fused[:D_MODEL], other[D_MODEL : 2 * D_MODEL]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_cross_attention_by_hand():
    """Scores of zero: every token of the target gets the mean of the source that is no padding."""
    layer = CrossAttention(CrossAttentionConfig(1, 1, 2), 2)
    with torch.no_grad():
        layer.wq.weight.zero_()
        layer.wv.weight.copy_(torch.eye(2))
        layer.wo.weight.copy_(torch.eye(2))
    side = Transformer(ModelConfig(VOCAB, 2, 1, (BlockConfig(AttentionConfig(1, 1, 2), None),)))
    positions = torch.tensor([[0, 1, -1]])
    memory = layer.remember(torch.tensor([[[1.0, 2.0], [3.0, 6.0], [99.0, 99.0]]]), side.layout(positions, positions))
    out = layer(torch.randn(1, 2, 2), side.layout(tokens(1, 2)), memory)
    torch.testing.assert_close(out, torch.tensor([[[2.0, 4.0], [2.0, 4.0]]]))


# What must hold of every pair


@pairs
@pytest.mark.parametrize("kind", ["new", "dense", "paged"])
def test_cached_equals_uncached(name, kind):
    """The source once; then 4 tokens of the target, a chunk of 2, and three one by one."""
    model = build(PAIRS[name])
    pool = PagePool(num_pages=64, page_size=4)
    made = {"dense": DenseCache, "paged": lambda: PagedCache(pool, 2)}
    with torch.no_grad():
        whole, memories = model(SOURCE, TARGET), model.read(SOURCE)
        caches = model.new_caches() if kind == "new" else [made[kind]() for _ in model.decoder.blocks]
        pieces = [model.decode(piece, memories, caches=caches) for piece in TARGET.split([4, 2, 1, 1, 1], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=2e-5)


@pairs
def test_the_decoder_sees_no_later_token_and_all_of_the_source(name):
    model = build(PAIRS[name])
    later, other = TARGET.clone(), SOURCE.clone()
    later[:, 5:], other[:, -1:] = (TARGET[:, 5:] + 1) % VOCAB, (SOURCE[:, -1:] + 1) % VOCAB
    with torch.no_grad():
        before, after, otherwise = model(SOURCE, TARGET), model(SOURCE, later), model(other, TARGET)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(after[:, 5:], before[:, 5:])
    changed = ((otherwise - before).abs() > 1e-6).any(-1)
    assert changed.all() or (name == "cross_in_every_second_layer" and changed.any(1).all())


@pairs
def test_padding_of_the_source_changes_nothing(name):
    model = build(PAIRS[name])
    padded = torch.cat([SOURCE, tokens(2, 3)], 1)
    positions = torch.tensor([[*range(7), -1, -1, -1]]).expand(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded, TARGET, positions), model(SOURCE, TARGET), rtol=1e-4, atol=1e-5)


@pairs
def test_pairs_packed_into_a_row_are_alone(name):
    model = build(PAIRS[name])
    positions, segments = zip(*(packed(n, cut) for n, cut in ((7, 3), (9, 5))), strict=True)
    with torch.no_grad():
        together = model.hidden(SOURCE, TARGET, *positions, *segments)
        first, second = model.hidden(SOURCE[:, :3], TARGET[:, :5]), model.hidden(SOURCE[:, 3:], TARGET[:, 5:])
    torch.testing.assert_close(together, torch.cat([first, second], 1), rtol=1e-4, atol=1e-5)


def test_a_document_without_a_source_sees_none():
    """Without given positions, too, where the plain path promises that every token sees something."""
    model = build(both())
    here, there = torch.zeros(2, 7, dtype=torch.long), packed(9, 5)[1]
    with torch.no_grad():
        one, other = (model.hidden(s, TARGET, None, None, here, there) for s in (SOURCE, SOURCE.flip(1)))
    assert one.isfinite().all()
    assert torch.equal(one[:, 5:], other[:, 5:]) and not torch.allclose(one[:, :5], other[:, :5])


def packed(length, cut):
    """Positions and segments of two texts in a row."""
    positions = torch.cat([torch.arange(cut), torch.arange(length - cut)])
    return positions.expand(2, -1), torch.tensor([0] * cut + [1] * (length - cut)).expand(2, -1)


@pairs
def test_saved_equals_loaded(name):
    model = build(PAIRS[name])
    loaded = EncoderDecoder(from_dict(EncoderDecoderConfig, to_dict(model.config)))
    loaded.load_state_dict(load(save(model.state_dict())), strict=True)
    assert torch.equal(loaded(SOURCE, TARGET), model(SOURCE, TARGET))


# The whole model


def test_one_table_for_source_target_and_head():
    model = build(PAIRS["tied"])
    assert [name for name, _ in model.named_parameters() if "embed" in name or "head" in name] == [
        "decoder.embed.weight"
    ]
    assert model.head_weight is model.encoder.embed.weight is model.decoder.embed.weight
    copied = copy.deepcopy(model)
    assert copied.encoder.embed.weight is copied.decoder.embed.weight is not model.head_weight
    names = [name for name, _ in build(PAIRS["two_tables"]).named_parameters() if "embed" in name or "head" in name]
    assert names == ["encoder.embed.weight", "decoder.embed.weight", "decoder.head.weight"]


def test_a_table_of_the_encoders_own_may_have_other_tokens():
    config = PAIRS["two_tables"]
    model = EncoderDecoder(replace(config, encoder=replace(config.encoder, vocab_size=9)))
    assert model(SOURCE % 9, TARGET).shape == (2, 9, VOCAB)


def test_the_sides_draw_different_numbers_and_a_seed_repeats_them():
    config = presets.vaswani_encoder_decoder(vocab_size=9, d_model=128, num_layers=2)
    one, other = EncoderDecoder(config), EncoderDecoder(config)
    one.init_weights(3)
    other.init_weights(3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    reader, writer = one.encoder.blocks[0], one.decoder.blocks[0]
    assert not torch.equal(reader.mixer.wq.weight, writer.mixer.wq.weight)
    # Two layers of three branches write into the decoder's residual stream, of two into the encoder's.
    stds = [attention.wo.weight.std().item() for attention in (writer.mixer, writer.cross, reader.mixer)]
    assert [std / stds[2] for std in stds[:2]] == pytest.approx([(4 / 6) ** 0.5] * 2, rel=0.03)


def test_zero_residuals_pass_the_target_on():
    model = EncoderDecoder(both())
    model.init_weights(0, "zero")
    expected = model.decoder.final_norm(model.decoder.embed(TARGET))
    torch.testing.assert_close(model.hidden(SOURCE, TARGET), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_activations_give_the_same_gradients_bit_for_bit(dtype):
    results = []
    for recompute in (False, True):
        model = build(PAIRS["post"]).train()
        model.compute_dtype, model.recompute = dtype, recompute
        model(SOURCE, TARGET).square().sum().backward()
        results.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_dropout_is_on_both_sides_and_for_training_only():
    model = build(PAIRS["post"])
    before = model(SOURCE, TARGET)
    model.dropout = 0.5
    assert torch.equal(model(SOURCE, TARGET), before)
    model.encoder.train()
    assert not torch.allclose(model(SOURCE, TARGET), before)
    model.train()
    model.encoder.eval()
    assert not torch.allclose(model(SOURCE, TARGET), before)


def test_on_meta_it_costs_nothing():
    with torch.device("meta"):
        model = EncoderDecoder(presets.vaswani_encoder_decoder("big"))
        logits = model(torch.zeros(2, 1000, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long))
    assert logits.is_meta and logits.shape == (2, 3, 37_000)


# Writing


def test_greedy_writing_equals_recomputing():
    model = build(PAIRS["post"])
    target = torch.full((2, 1), 3)
    with torch.no_grad():
        for _ in range(6):
            target = torch.cat([target, model(SOURCE, target)[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(SOURCE, start=3, max_tokens=6), target[:, 1:])
    padded = torch.cat([SOURCE, SOURCE[:, :2]], 1)
    positions = torch.tensor([[*range(7), -1, -1]]).expand(2, -1)
    assert torch.equal(model.generate(padded, 3, 6, source_positions=positions), target[:, 1:])


def test_writing_ends_when_all_rows_have(monkeypatch):
    model, script = build(PAIRS["post"]), iter([[1, 4], [9, 5], [2, 6], [2, 9], [7, 7]])

    def says(target, *_, **__):
        return torch.nn.functional.one_hot(torch.tensor(next(script)), VOCAB).float()[:, None]

    monkeypatch.setattr(model, "decode", says)
    assert model.generate(SOURCE, 0, 10, end=9).tolist() == [[1, 9, 9, 9], [4, 5, 6, 9]]


def test_limits_of_writing():
    model = build(PAIRS["learned_positions"])
    assert model.generate(SOURCE, 0, 20).shape == (2, 20)
    with pytest.raises(ValueError, match="max_tokens=21; the decoder learned 20 positions"):
        model.generate(SOURCE, 0, 21)
    with pytest.raises(ValueError, match="max_tokens=0; expected at least 1"):
        model.generate(SOURCE, 0, 0)


# Mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": both().decoder}, "encoder has causal=True; give causal=False.*encoder has cross"),
        ({"decoder": both().encoder}, "decoder has causal=False; give causal=True.*no layer of the decoder has cross"),
        (
            {"encoder": replace(both().encoder, blocks=(BlockConfig(LatentAttentionConfig(2, 8, 6, 4, 4), None),))},
            "encoder has latent attention, which looks back only",
        ),
        ({"encoder": replace(both().encoder, d_model=8)}, "d_model is 8 in the encoder and 16 in the decoder"),
        ({"encoder": replace(both().encoder, vocab_size=9)}, "vocab_size is 9 in .* share_embeddings=False"),
    ],
)
def test_pairs_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(both(), **changes)


def test_a_decoder_alone_misses_its_source_and_is_not_exported():
    config = both().decoder
    with pytest.raises(ValueError, match=r"attend to a source \(cross\), and none was given"):
        Transformer(config)(TARGET)
    with pytest.raises(ValueError, match=r"attention to a source \(cross\)"):
        family_of(config)


def test_segments_of_one_side_only():
    model, (positions, segments) = build(both()), packed(9, 5)
    with pytest.raises(ValueError, match="segments of one side only"):
        model.hidden(SOURCE, TARGET, None, positions, None, segments)


def test_sizes_of_cross_attention_that_do_not_fit():
    with pytest.raises(ValueError, match="cross-attention: num_kv_heads=3 does not divide num_heads=4"):
        CrossAttentionConfig(4, 3, 8)
