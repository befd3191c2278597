"""FLOPs of recurrent mixers: by hand, against torch's counter at lengths around a chunk, and linear in the length."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from groundup.accounting import forward_flops, ledger, training_ledger
from groundup.model import (
    BlockConfig,
    CountingCache,
    GatedDeltaConfig,
    GatedLinearConfig,
    LSTMConfig,
    Mamba2Config,
    ModelConfig,
    NeuralNgramConfig,
    Transformer,
)
from groundup.train import next_token

MIXERS = {
    "gated_linear": GatedLinearConfig(2, 4, 6, rank=3),
    "decay_per_head": GatedLinearConfig(2, 4, 6, decay="head"),
    "linear_attention": GatedLinearConfig(2, 4, 6, decay="none", features="elu", output_gate=False),
    "mamba2": Mamba2Config(4, d_head=6, d_state=5, num_groups=2),
    "gated_delta": GatedDeltaConfig(4, 5, 6, num_key_heads=2),
    "lstm": LSTMConfig(12),
    "neural_ngram": NeuralNgramConfig(4, 12, direct=True),
}

mixers = pytest.mark.parametrize("name", MIXERS)


def model_config(name):
    return ModelConfig(10, 16, 1, (BlockConfig(MIXERS[name], None),))


@mixers
@pytest.mark.parametrize("seq", [1, 2, 64, 100])
def test_counted_equals_measured(name, seq):
    config = model_config(name)
    model = Transformer(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, seq, dtype=torch.long))
    assert forward_flops(config, seq, batch=2, causal=False) == counter.get_total_flops()


@mixers
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("seq", [2, 64, 100])
def test_a_training_step_equals_torchs_counter(name, seq, recompute):
    """The first state needs no gradient and the last one gets none; with one chunk that is all of them."""
    config = model_config(name)
    model = Transformer(config).double()
    model.compute_dtype, model.recompute = torch.float64, recompute
    with FlopCounterMode(display=False) as counter:
        next_token(model, {"tokens": torch.zeros(2, seq + 1, dtype=torch.long)}).total.backward()
    rows = training_ledger(config, seq, 2, causal=False, recomputed_layers=int(recompute), optimizer=None)
    assert sum(row.flops for row in rows if row.kind != "elementwise") == counter.get_total_flops()


def test_mamba2_by_hand():
    """70 tokens: a chunk of 64 and one of 6. Scores are shared by the two heads of a group."""
    rows = {row.name: row.flops for row in ledger(model_config("mamba2"), 70)}
    assert rows["in_proj"] == 2 * 70 * 16 * (24 + 24 + 2 * 2 * 5 + 4)
    assert rows["scores"] == 2 * (64 * 65 // 2 + 6 * 7 // 2) * 2 * 5
    assert rows["values"] == 2 * (64 * 65 // 2 + 6 * 7 // 2) * 4 * 6
    assert rows["read_state"] == rows["write_state"] == 2 * 70 * 4 * 5 * 6
    assert rows["out_proj"] == 2 * 70 * 24 * 16


@mixers
def test_twice_the_length_costs_twice_as_much(name):
    config = model_config(name)
    assert forward_flops(config, 2048) == 2 * forward_flops(config, 1024)


@mixers
def test_the_useful_work_is_part_of_what_is_multiplied(name):
    for seq in (1, 70, 128):
        assert forward_flops(model_config(name), seq) <= forward_flops(model_config(name), seq, causal=False)


def test_what_a_sequence_costs_in_memory_whatever_its_length():
    """Bytes of float32: three inputs of 44 channels to the convolution, and four heads of 5 x 6; nothing per token."""
    with torch.device("meta"):
        model = Transformer(model_config("mamba2"))
    for seq in (1, 100):
        cache = CountingCache()
        model(torch.zeros(1, seq, dtype=torch.long, device="meta"), caches=[cache])
        assert (cache.bytes_per_token, cache.fixed_bytes) == (0, 4 * (3 * 44 + 4 * 5 * 6))
