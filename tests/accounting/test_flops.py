"""The ledger against hand counts, against torch's own counter, and against a published figure."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from groundup import presets
from groundup.accounting import forward_flops, ledger, training_flops_per_token
from groundup.accounting.flops import visible_pairs
from groundup.model import Transformer
from tests.model.variants import VARIANTS


def test_visible_pairs_equal_a_count_by_loops():
    for seq in (1, 2, 7, 16):
        for window in (None, 1, 3, 16, 40):
            counted = sum(1 for i in range(seq) for j in range(i + 1) if window is None or i - j < window)
            assert visible_pairs(seq, window) == counted


def test_a_tiny_model_by_hand():
    config = presets.llama(
        d_model=8, num_layers=1, num_heads=2, num_kv_heads=1, d_ff=16, vocab_size=10, context_length=4
    )
    projections = 2 * 4 * 8 * (8 + 4 + 4 + 8)  # wq wk wv wo on four tokens
    attention = 2 * (4 * 5 // 2) * 8 * 2  # scores and values over ten visible pairs
    feedforward = 3 * 2 * 4 * 8 * 16
    head = 2 * 4 * 8 * 10
    assert forward_flops(config, seq=4) == projections + attention + feedforward + head


def test_gpt2_xl_shape_has_the_published_forward_flops():
    config = presets.llama(
        d_model=1600, num_layers=48, num_heads=25, num_kv_heads=25, d_ff=6400, vocab_size=50257, context_length=1024
    )
    assert forward_flops(config, seq=1024, causal=False) == pytest.approx(4.513e12, rel=1e-3)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_ledger_equals_torchs_counter(name):
    config = VARIANTS[name]
    tokens = torch.randint(0, config.vocab_size, (2, 12))
    model = Transformer(config)
    model.compute_dtype = torch.float64  # attention as plain matmuls: the counter does not see the fused CPU kernel
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    assert forward_flops(config, seq=12, batch=2, causal=False) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_training_is_three_forwards_and_recomputation_adds_the_blocks():
    config = presets.llama(d_model=32, num_layers=2, num_heads=2, vocab_size=64, context_length=16)
    forward = forward_flops(config, 16)
    assert training_flops_per_token(config, 16) * 16 == pytest.approx(3 * forward)
    head = next(row.flops for row in ledger(config, 16) if row.name == "head")
    assert training_flops_per_token(config, 16, recomputed_layers=2) * 16 == pytest.approx(4 * forward - head)


def test_six_nd_is_the_matmul_part():
    config = presets.llama(d_model=64, num_layers=3, num_heads=4, vocab_size=256, context_length=8, tie_embeddings=True)
    model = Transformer(config)
    matmul_parameters = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    matmuls = sum(row.flops for row in ledger(config, seq=8) if row.kind == "matmul")
    assert 3 * matmuls == 6 * matmul_parameters * 8
