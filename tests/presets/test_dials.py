import pytest
import torch

from groundup import presets
from groundup.model import (
    CrossAttentionConfig,
    EncoderDecoder,
    LearnedPositions,
    Rope,
    SinusoidalPositions,
    Transformer,
)


def parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(config).parameters())


@pytest.mark.parametrize(
    ("size", "published"),
    [("small", 124_439_808), ("medium", 354_823_168), ("large", 774_030_080), ("xl", 1_557_611_200)],
)
def test_gpt2_has_the_published_number_of_parameters(size, published):
    assert parameters(presets.gpt2(size)) == published


def test_gpt2_xl_shaped_llama():
    config = presets.llama(vocab_size=50_257, context_length=1024, num_layers=48, d_model=1600, num_heads=25, d_ff=6400)
    assert parameters(config) == 2_127_057_600


def test_qwen3_0_6b_has_the_published_number_of_parameters():
    config = presets.qwen3(
        vocab_size=151_936, d_model=1024, num_layers=28, num_heads=16, num_kv_heads=8, d_head=128, d_ff=3072
    )
    assert parameters(config) == 596_049_920


def test_vaswani_decoder_by_hand():
    """37000 x 512 shared table; per layer 4 d^2 + 2 d d_ff + d_ff + d and two layer norms of 2 d."""
    d, d_ff = 512, 2048
    per_layer = 4 * d * d + 2 * d * d_ff + d_ff + d + 4 * d
    config = presets.vaswani()
    assert parameters(config) == 37_000 * d + 6 * per_layer
    block = config.blocks[0]
    assert (block.placement, block.norm, block.ffn.activation) == ("post", "layer", "relu")
    assert config.positions == SinusoidalPositions(1024) and not config.final_norm


def encoder_decoder_parameters(*size, **options):
    with torch.device("meta"):
        model = EncoderDecoder(presets.vaswani_encoder_decoder(*size, **options))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("size", "d", "layers", "published"), [("base", 512, 6, 65), ("big", 1024, 6, 213)])
def test_the_original_transformer_by_hand(size, d, layers, published):
    """Table 3 says 65 M and 213 M; with the 37,000 tokens of section 5.1 the formulas give 3.0 % less, 0.6 % more."""
    d_ff = 4 * d
    ffn = 2 * d * d_ff + d_ff + d
    reader, writer = 4 * d * d + ffn + 2 * 2 * d, 8 * d * d + ffn + 3 * 2 * d
    count = encoder_decoder_parameters(size)
    assert count == 37_000 * d + layers * (reader + writer)
    assert count == {"base": 63_045_632, "big": 214_171_648}[size]
    assert count / 1e6 == pytest.approx(published, rel=0.031)


TABLE_3 = {
    65: {},
    36: {"num_layers": 2},
    50: {"num_layers": 4},
    80: {"num_layers": 8},
    28: {"d_model": 256, "num_heads": 8, "d_ff": 2048},
    168: {"d_model": 1024, "num_heads": 8, "d_ff": 2048},
    53: {"d_ff": 1024},
    90: {"d_ff": 4096},
}


def test_one_size_of_the_table_of_tokens_explains_the_papers_counts():
    """Rows (A) and (C) of table 3 in millions of parameters, all as printed for 41,004 to 41,208 tokens."""
    for vocab_size, fits in ((41_003, False), (41_004, True), (41_208, True), (41_209, False)):
        counts = [round(encoder_decoder_parameters(vocab_size=vocab_size, **row) / 1e6) for row in TABLE_3.values()]
        assert (counts == list(TABLE_3)) is fits


def test_both_sides_of_the_original_transformer():
    config = presets.vaswani_encoder_decoder(vocab_size=50, d_model=32, num_layers=3, num_heads=2, d_ff=48)
    ours, theirs = config.encoder, config.decoder
    assert config.share_embeddings and theirs.tie_embeddings and ours.scale_embeddings and theirs.scale_embeddings
    assert (ours.num_layers, theirs.num_layers, ours.blocks[0].placement) == (3, 3, "post")
    assert not ours.causal and theirs.causal and ours.blocks[0].cross is None
    assert theirs.blocks[0].cross == CrossAttentionConfig(2, 2, 16)
    with pytest.raises(ValueError, match="size 'huge' is unknown; expected one of: base, big"):
        presets.vaswani_encoder_decoder("huge")


def test_any_preset_as_an_encoder():
    config = presets.gpt2(vocab_size=50, num_layers=2)
    made = presets.encoder(config)
    assert config.causal and not made.causal
    assert parameters(made) == parameters(config)
    with pytest.raises(ValueError, match="encoder: Mamba2Config cannot look ahead"):
        presets.encoder(presets.published("mamba-2-130m"))


def test_what_makes_each_family():
    llama = presets.llama(vocab_size=100, num_layers=4)
    assert llama.blocks[0].mixer.rope == Rope(10_000.0) and not llama.tie_embeddings
    assert presets.qwen3(vocab_size=100, num_layers=4).blocks[0].mixer.qk_norm
    gpt2 = presets.gpt2()
    assert gpt2.positions == LearnedPositions(1024) and gpt2.blocks[0].mixer.rope is None
    assert gpt2.blocks[0].mixer.bias and gpt2.blocks[0].ffn.bias and gpt2.norm_bias


@pytest.mark.parametrize("depth", [1, 2, 5, 8, 20])
def test_one_dial_sets_every_size(depth):
    config = presets.llama(vocab_size=100, num_layers=depth)
    assert config == presets.llama(vocab_size=100, d_model=64 * depth)
    mixer = config.blocks[0].mixer
    assert (config.d_model, mixer.num_heads, mixer.d_head) == (64 * depth, depth, 64)


def test_every_size_can_be_given_instead():
    config = presets.llama(vocab_size=100, num_layers=3, d_model=96, num_heads=4, num_kv_heads=2, d_head=16, d_ff=100)
    mixer = config.blocks[0].mixer
    assert (config.num_layers, config.d_model, config.blocks[0].ffn.d_ff) == (3, 96, 100)
    assert (mixer.num_heads, mixer.num_kv_heads, mixer.d_head) == (4, 2, 16)
    assert presets.gpt2(d_model=128, num_layers=2).blocks[0].mixer.num_heads == 2


@pytest.mark.parametrize("d_model", [2, 16, 30, 100, 200, 320])
def test_any_even_width_has_heads(d_model):
    config = presets.llama(vocab_size=10, d_model=d_model, num_layers=1)
    mixer = config.blocks[0].mixer
    assert mixer.num_heads * mixer.d_head == d_model
    with torch.no_grad():
        assert Transformer(config)(torch.zeros(1, 2, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: presets.llama(vocab_size=9, d_model=512, num_heads=7),
            "d_model=512 is not divisible by num_heads=7; .* is 8 ",
        ),
        (
            lambda: presets.llama(vocab_size=9, d_model=512, num_heads=8, num_kv_heads=3),
            "num_kv_heads=3 does not divide",
        ),
        (lambda: presets.llama(vocab_size=9), "give num_layers or d_model"),
        (lambda: presets.llama(vocab_size=9, d_model=65), "d_model=65 is odd; use 66"),
        (lambda: presets.gpt2("larg"), "size 'larg' is unknown; did you mean 'large'"),
    ],
)
def test_errors_say_what_would_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()
