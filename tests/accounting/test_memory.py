"""Bytes: hand counts, and activations against what autograd really holds on the CPU."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from groundup import presets
from groundup.accounting import activation_bytes, kv_cache_bytes_per_token, training_memory
from groundup.model import Transformer
from tests.model.variants import VARIANTS

SMALL = presets.llama(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, vocab_size=64, context_length=16)


def test_parameters_gradients_and_adam_states():
    ledger = training_memory(SMALL, batch=1, seq=8)
    count = sum(p.numel() for p in Transformer(SMALL).parameters())
    assert ledger.parameters == ledger.gradients == 4 * count
    assert ledger.optimizer == 8 * count
    assert ledger.peak == sum(
        (ledger.parameters, ledger.gradients, ledger.optimizer, ledger.cast_weights, ledger.activations, ledger.logits)
    )


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_activations_counted_on_meta_equal_those_kept_on_cpu(name):
    config = VARIANTS[name]
    model = Transformer(config)
    model.compute_dtype = torch.float64  # on both devices the plain path of attention
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda t: t):
        model.hidden(torch.randint(0, config.vocab_size, (2, 12)))
    counted = activation_bytes(config, 2, 12, torch.float64)
    assert counted == pytest.approx(sum(kept.values()), rel=0.01)


def test_recomputation_keeps_less():
    full = activation_bytes(SMALL, 4, 16, torch.float32)
    assert activation_bytes(SMALL, 4, 16, torch.float32, recompute=True) < full / 2


def test_kv_cache_formula():
    assert kv_cache_bytes_per_token(SMALL, torch.bfloat16) == 2 * SMALL.num_layers * 2 * 8 * 2
