"""Bytes: hand counts, and activations against what autograd really holds on the CPU."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from groundup import presets
from groundup.accounting import activation_bytes, kv_cache_bytes_per_token, least_recompute, training_memory
from groundup.config import override
from groundup.model import MultiTokenConfig, ReinforceRouter, Transformer
from groundup.model.balance import routers
from groundup.model.products import set_products
from groundup.train.reinforce import score_function
from tests.model.variants import ENCODERS, VARIANTS

SMALL = presets.llama(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, vocab_size=64, context_length=16)


def test_parameters_gradients_and_adam_states():
    ledger = training_memory(SMALL, batch=1, seq=8)
    count = sum(p.numel() for p in Transformer(SMALL).parameters())
    assert ledger.parameters == ledger.gradients == 4 * count
    assert ledger.optimizer == 8 * count
    assert ledger.peak == sum(
        (ledger.parameters, ledger.gradients, ledger.optimizer, ledger.cast_weights, ledger.activations, ledger.logits)
    )


def kept_bytes(config, batch, seq, dtype, recompute: bool | int = False, products=None):
    """What autograd holds on the CPU for a real model."""
    model = Transformer(config)
    model.compute_dtype, model.recompute = dtype, recompute
    set_products(model, products)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda t: t):
        tokens = torch.randint(0, config.vocab_size, (batch, seq))
        sampled = any(isinstance(router.config, ReinforceRouter) for router in routers(model).values())
        choices: list = []
        extra = {"auxiliary": alive, "choices": choices} if sampled else {}
        hidden = model.hidden(tokens, **extra)
        if sampled:
            nats = torch.rand(tokens.shape)
            alive.append(score_function(choices, nats, None, {"tokens": tokens}))
        if model.multi_token is not None:
            alive.append(model.multi_token(model, hidden, tokens[:, 1:]))
    return sum(kept.values())


# Every mixer and every feed-forward layer, with the fewest norms and the most.
COUNTED = sorted(name for name in VARIANTS if name.count("-") < 3 or name.endswith(("-rms-pre", "-layer-sandwich")))


@pytest.mark.parametrize("name", COUNTED)
def test_activations_counted_without_storage_equal_those_kept(name):
    config = VARIANTS[name]
    for dtype in (torch.float32, torch.bfloat16):  # the fused path of attention, and that of matrix products
        assert activation_bytes(config, 2, 12, dtype) == kept_bytes(config, 2, 12, dtype)


@pytest.mark.parametrize("recompute", [False, True, *range(11)])
def test_deep_models_and_recomputed_ones_are_counted_exactly(recompute):
    config = replace(VARIANTS["local_local_global"], num_layers=10)
    assert activation_bytes(config, 2, 12, torch.float32, recompute) == kept_bytes(
        config, 2, 12, torch.float32, recompute
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", [0, 2])
def test_multi_token_modules_are_counted(recompute, dtype):
    config = replace(SMALL, num_layers=3, multi_token=MultiTokenConfig(2))
    without, kept = replace(config, multi_token=None), kept_bytes(config, 2, 12, dtype, recompute)
    assert activation_bytes(config, 2, 12, dtype, recompute) == kept
    assert kept > kept_bytes(without, 2, 12, dtype, recompute)
    matrices = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 128 + 32 * 64)  # of two depths, each a block and its `combine`
    copies = [training_memory(c, 2, 12, dtype, recompute=recompute).cast_weights for c in (config, without)]
    assert copies[0] - copies[1] == (2 * matrices if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("recompute", [0, 1, 2])
def test_copies_of_weights_are_those_of_the_head_and_of_kept_blocks(recompute):
    """The embedding is looked up in float32, and a recomputed block makes its copies anew."""
    ledger = training_memory(SMALL, 2, 16, torch.bfloat16, recompute=recompute)
    matrices = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 128  # wq wo, wk wv, gate up down
    assert ledger.cast_weights == 2 * ((2 - recompute) * matrices + 64 * 32)
    kept = kept_bytes(SMALL, 2, 16, torch.bfloat16, recompute)
    assert ledger.activations == kept - 2 * (2 - recompute) * matrices > 0
    assert training_memory(SMALL, 2, 16, recompute=recompute).cast_weights == 0


@pytest.mark.parametrize("recompute", [False, 1])
@pytest.mark.parametrize("products", ["fp8", "mxfp8", "int8"])
def test_layers_of_eight_bits_keep_what_is_counted(products, recompute):
    config = replace(SMALL, num_layers=3)
    counted = activation_bytes(config, 2, 12, torch.bfloat16, recompute, products=products)
    assert counted == kept_bytes(config, 2, 12, torch.bfloat16, recompute, products)


def test_copies_of_weights_in_float8_take_one_byte_or_none():
    config = presets.llama(d_model=64, num_layers=2, num_heads=2, d_ff=96, vocab_size=64, context_length=16)
    plain, fp8, mxfp8 = (training_memory(config, 1, 8, torch.bfloat16, products=p) for p in (None, "fp8", "mxfp8"))
    layers = sum(p.numel() for p in Transformer(config).blocks.parameters() if p.ndim > 1)
    assert plain.cast_weights - fp8.cast_weights == layers
    assert plain.cast_weights - mxfp8.cast_weights == 2 * layers


def test_the_fewest_recomputed_blocks_that_fit():
    config = replace(SMALL, num_layers=6)
    peaks = [training_memory(config, 4, 16, recompute=n).peak for n in range(7)]
    assert peaks == sorted(peaks, reverse=True)
    for n, peak in enumerate(peaks):
        assert least_recompute(config, 4, 16, peak) == peaks.index(peak)
        assert least_recompute(config, 4, 16, peak - 1) == (n + 1 if n < 6 else None)
    assert least_recompute(config, 4, 16, 10**12) == 0


def test_recomputation_keeps_less():
    full = activation_bytes(SMALL, 4, 16, torch.float32)
    assert activation_bytes(SMALL, 4, 16, torch.float32, recompute=True) < full / 2


def test_kv_cache_formula():
    assert kv_cache_bytes_per_token(SMALL, torch.bfloat16) == 2 * SMALL.num_layers * 2 * 8 * 2
    assert kv_cache_bytes_per_token(ENCODERS["plain"]) == 0  # nothing of it can be kept


def test_what_reinforce_keeps_is_more_than_its_forward_pass():
    """Entropies keep numbers of each token and expert, and what came of a choice is kept for each token."""
    name = next(name for name in COUNTED if "reinforce" in name)
    config = VARIANTS[name]
    quiet = override(config, "blocks.0.ffn.router.entropy=0.0")
    assert activation_bytes(config, 2, 12, torch.float32) > activation_bytes(quiet, 2, 12, torch.float32)
    assert activation_bytes(quiet, 2, 12, torch.float32) == kept_bytes(quiet, 2, 12, torch.float32)
