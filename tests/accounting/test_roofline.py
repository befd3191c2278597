"""Bytes and intensities against hand counts and the formulas of the literature, for every block type."""

from dataclasses import replace

import pytest
import torch

from groundup import presets
from groundup.accounting import training_ledger
from groundup.accounting.flops import ledger
from groundup.accounting.roofline import (
    Ceiling,
    Work,
    attention_intensity,
    decode_intensity,
    step_work,
)
from groundup.accounting.traffic import matmul_moved
from groundup.model import (
    AttentionConfig,
    BlockConfig,
    LatentAttentionConfig,
    MLPConfig,
    ModelConfig,
    MultiTokenConfig,
    Transformer,
)
from tests.model.variants import D_MODEL, MIXERS, VARIANTS, VOCAB, small

H100 = Ceiling("H100 SXM", 989e12, 3.35e12)
BF16 = torch.bfloat16


def row(rows: list[Work], name: str, phase: str = "forward") -> Work:
    return next(r for r in rows if r.name == name and r.phase == phase)


def one_layer(mixer, d_model=1024, vocab=100) -> ModelConfig:
    return ModelConfig(vocab, d_model, 1, (BlockConfig(mixer, MLPConfig(4 * d_model, gated=False)),))


def test_a_square_product_by_hand():
    # 4 rows through an 8 x 8 matrix in 16 bits: 2 * 4 * 64 FLOPs; 32 in, 64 weights and 32 out, two bytes each.
    product = Work("wo", "matmul", 512, bytes_moved=2 * matmul_moved(4, 8, 8).forward)
    assert product.bytes_moved == 256 and product.intensity == 2.0


@pytest.mark.parametrize("batch", [1, 64, 4096])
def test_a_layer_of_the_deep_linear_model_has_intensity_bd_over_2b_plus_d(batch):
    config = one_layer(AttentionConfig(16, 16, 64))
    rows = step_work(config, "train", batch=batch, seq=1, dtype=BF16)
    assert row(rows, "wo").intensity == pytest.approx(batch * 1024 / (2 * batch + 1024))
    assert row(rows, "wo", "backward").intensity == pytest.approx(row(rows, "wo").intensity)


def test_a_large_product_is_bound_by_arithmetic_and_one_row_by_memory():
    config = one_layer(AttentionConfig(64, 64, 128), d_model=8192)
    many = row(step_work(config, "train", batch=8, seq=512, dtype=BF16), "up")
    one = row(step_work(config, "decode", batch=1, seq=512, dtype=BF16), "up")
    assert many.bound(H100) == "compute" and one.bound(H100) == "memory"
    assert many.least_seconds(H100) == many.flops / 989e12
    assert one.least_seconds(H100) == one.bytes_moved / 3.35e12
    assert one.intensity == pytest.approx(1.0, rel=0.01)  # every weight: two bytes, two FLOPs
    assert pytest.approx(295.2, abs=0.1) == H100.ridge


def test_norms_move_two_numbers_for_a_few_flops():
    rms = row(step_work(one_layer(AttentionConfig(8, 8, 128)), "train", batch=2, seq=16), "norm")
    tokens, norms = 2 * 16, 2
    assert rms.flops == norms * 4 * tokens * 1024 and rms.bytes_moved == norms * 2 * tokens * 1024 * 4
    assert rms.intensity == 0.5
    config = one_layer(AttentionConfig(8, 8, 128))
    layer = replace(config, blocks=(replace(config.blocks[0], norm="layer"),))
    assert row(step_work(layer, "train", batch=2, seq=16), "norm").intensity == 7 / 8


@pytest.mark.parametrize(("kv_heads", "group"), [(16, 1), (4, 4), (1, 16)])
def test_decoding_attention_has_an_intensity_below_the_heads_per_key(kv_heads, group):
    config = one_layer(AttentionConfig(16, kv_heads, 64))
    rows = step_work(config, "decode", batch=8, seq=4096, dtype=BF16)
    attention = row(rows, "attention")
    products = 4 * 8 * 16 * 64 * 4096
    softmax = 5 * 8 * 16 * 4096
    assert attention.flops == products + softmax
    assert products / attention.bytes_moved == pytest.approx(attention_intensity(1, 4096, group))
    assert products / attention.bytes_moved < group
    more = row(step_work(config, "decode", batch=64, seq=4096, dtype=BF16), "attention")
    assert more.intensity == pytest.approx(attention.intensity)  # a larger batch does not help


def test_decoding_latent_attention_reads_one_latent_for_all_heads():
    mixer = LatentAttentionConfig(16, kv_rank=512, d_nope=128, d_rope=64, d_value=128)
    rows = step_work(one_layer(mixer), "decode", batch=1, seq=4096, dtype=BF16, fused_attention=False)
    assert row(rows, "scores").flops == 2 * 16 * 4096 * 576 and row(rows, "values").flops == 2 * 16 * 4096 * 512
    fused = row(step_work(one_layer(mixer), "decode", batch=1, seq=4096, dtype=BF16), "attention")
    products = 2 * 16 * 4096 * (576 + 512)
    queries_and_output = 16 * (576 + 512)
    assert fused.bytes_moved == 2 * (4096 * 576 + queries_and_output)
    assert products / fused.bytes_moved == pytest.approx(16 * (1 + 512 / 576), rel=0.01)


def test_prefill_attention_without_a_mask_is_st_over_s_plus_t():
    rows = step_work(one_layer(AttentionConfig(16, 16, 64)), "prefill", batch=1, seq=2048, dtype=BF16)
    attention = row(rows, "attention")
    whole_square = 4 * 2048 * 2048 * 1024
    assert whole_square / attention.bytes_moved == pytest.approx(attention_intensity(2048, 2048)) == 1024
    half = 4 * 16 * 64 * (2048 * 2049 // 2)
    assert attention.flops == half + 5 * 16 * (2048 * 2049 // 2)


def test_a_window_bounds_the_keys_that_decoding_reads():
    whole = step_work(one_layer(AttentionConfig(16, 16, 64)), "decode", batch=1, seq=512, dtype=BF16)
    window = step_work(one_layer(AttentionConfig(16, 16, 64, window=512)), "decode", batch=1, seq=9999, dtype=BF16)
    assert row(window, "attention") == row(whole, "attention")


def test_shazeers_ratios_by_hand():
    # 1/d + n/d + 1/b with n = d = 1024 and b = 64: 1/1024 + 1 + 1/64; with one key head of 16, n/(d h) is 1/16.
    assert 1 / decode_intensity(1024, 1024, 64, 16, 16) == pytest.approx(1 / 1024 + 1 + 1 / 64)
    assert 1 / decode_intensity(1024, 1024, 64, 16, 1) == pytest.approx(1 / 1024 + 1 / 16 + 1 / 64)


def test_the_formula_ranks_attention_variants_as_the_rows_do():
    def intensity(kv_heads: int) -> float:
        rows = step_work(one_layer(AttentionConfig(16, kv_heads, 64)), "decode", batch=64, seq=2048, dtype=BF16)
        mixer = [r for r in rows if r.name in ("wq", "wk", "wv", "wo", "attention")]
        return sum(r.flops for r in mixer) / sum(r.bytes_moved for r in mixer)

    counted = [intensity(kv) for kv in (16, 4, 1)]
    formula = [decode_intensity(2048, 1024, 64, 16, kv) for kv in (16, 4, 1)]
    assert counted == sorted(counted) and formula == sorted(formula)
    assert counted[2] / counted[0] == pytest.approx(formula[2] / formula[0], rel=0.35)


def test_adamw_moves_28_bytes_per_parameter():
    config = presets.llama(vocab_size=64, d_model=16, num_layers=1)
    count = sum(p.numel() for p in Transformer(config).parameters())
    update = row(step_work(config, "train", batch=1, seq=4), "adamw", "optimizer")
    assert (update.flops, update.bytes_moved) == (14 * count, 28 * count)


def test_scores_in_memory_move_more_for_the_same_flops():
    config = one_layer(AttentionConfig(16, 16, 64))
    plain = step_work(config, "train", batch=1, seq=256, fused_attention=False)
    fused = step_work(config, "train", batch=1, seq=256)
    assert sum(r.flops for r in plain) == sum(r.flops for r in fused)
    scores = 16 * (256 * 257 // 2)
    apart = sum(r.bytes_moved for r in plain) - sum(r.bytes_moved for r in fused)
    assert apart == 4 * scores * (1 + 1 + 2 + 2 + 2 + 3)  # scores, values and softmax; forward, then backward


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_operation_of_every_variant_has_bytes_and_the_ledgers_flops(name):
    config = VARIANTS[name]
    rows = step_work(config, "train", batch=2, seq=12)
    assert all(r.bytes_moved > 0 for r in rows)
    without_loss = sum(r.flops for r in rows if r.name != "loss")
    ledgers = [r for r in training_ledger(config, 12, 2) if not r.name.startswith("choices_")]
    assert without_loss == sum(r.flops for r in ledgers)
    decode = step_work(config, "decode", batch=2, seq=12, dtype=BF16)
    assert all(r.bytes_moved > 0 for r in decode)
    assert sum(r.flops for r in decode) >= sum(r.flops for r in ledger(config, 1, 2))


@pytest.mark.parametrize("mixer", ["gqa", "mamba2"])
def test_multi_token_modules_are_part_of_training_and_of_nothing_else(mixer):
    plain = small(BlockConfig(MIXERS[mixer], MLPConfig(24)))
    config = replace(plain, multi_token=MultiTokenConfig(2))
    rows = step_work(config, "train", batch=2, seq=12, dtype=BF16)
    assert all(r.bytes_moved > 0 for r in rows)
    without_loss = sum(r.flops for r in rows if r.name != "loss")
    assert without_loss == sum(r.flops for r in training_ledger(config, 12, 2))
    assert [r.flops for r in rows if r.name == "loss"] == [5 * 2 * VOCAB * n for n in (12, 11, 10)]
    own = row(rows, "further_combine")  # two vectors of d_model in, one out, and the matrix
    assert own.bytes_moved == 2 * (2 * 11 * 3 * D_MODEL + 2 * D_MODEL**2)
    for phase in ("prefill", "decode"):
        assert step_work(config, phase, batch=2, seq=12, dtype=BF16) == step_work(
            plain, phase, batch=2, seq=12, dtype=BF16
        )
    one, none = (row(step_work(c, "train", batch=2, seq=12, dtype=BF16), "cast_ffn") for c in (config, plain))
    assert one.bytes_moved == 2 * none.bytes_moved, "two layers, and two modules of the same kind"


def test_a_text_too_short_for_a_module_has_no_work_for_it():
    config = replace(small(BlockConfig(MIXERS["gqa"], MLPConfig(24))), multi_token=MultiTokenConfig(2))
    for rows in (step_work(config, "train", batch=1, seq=2), training_ledger(config, 2)):
        assert [r.phase for r in rows if r.name == "further_combine"] == ["forward", "backward"]
    assert not [r for r in training_ledger(config, 1) if r.name.startswith("further")]
    assert all(r.flops >= 0 for r in training_ledger(config, 1))


def test_a_model_that_looks_ahead_does_not_decode():
    config = one_layer(AttentionConfig(2, 2, 4, causal=False), 8)
    rows = step_work(config, "train", batch=1, seq=4)
    assert sum(r.flops for r in rows if r.name != "loss") == sum(r.flops for r in training_ledger(config, 4))
    with pytest.raises(ValueError, match="causal=False and looks ahead, so the model does not decode"):
        step_work(config, "decode", batch=1, seq=4)


def test_casting_float32_weights_moves_six_bytes_each():
    config = one_layer(AttentionConfig(2, 1, 4), d_model=8, vocab=10)
    rows = step_work(config, "decode", batch=1, seq=4, dtype=BF16)
    assert row(rows, "cast_mixer").bytes_moved == 6 * (8 * (8 + 4 + 4) + 8 * 8)
    assert row(rows, "cast_ffn").bytes_moved == 6 * 2 * 8 * 32 and row(rows, "cast_head").bytes_moved == 6 * 80
    assert not [r for r in step_work(config, "decode", batch=1, seq=4) if r.name.startswith("cast")]


def test_muon_orthogonalises_in_products():
    rows = step_work(presets.llama(vocab_size=64, d_model=16, num_layers=1), "train", batch=1, seq=4,
                     optimizer="muon_adamw")  # fmt: skip
    names = {r.name for r in rows if r.phase == "optimizer"}
    assert names == {"adamw", "muon", "orthogonalize"}
    assert row(rows, "orthogonalize", "optimizer").kind == "matmul"


@pytest.mark.parametrize(("options", "words"), [
    ({"phase": "prefil", "batch": 1, "seq": 1}, "did you mean 'prefill'"),
    ({"phase": "train", "batch": 0, "seq": 1}, "batch=0"),
])  # fmt: skip
def test_what_cannot_be_a_step_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        step_work(one_layer(AttentionConfig(2, 2, 4), 8), **options)
