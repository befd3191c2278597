"""The rehearsed step against the one that runs: peaks of torch's allocator, on every kind of block."""

from dataclasses import replace

import pytest
import torch

from groundup import presets
from groundup.accounting.simulate import PHASES
from groundup.model import (
    GatedDeltaConfig,
    LatentAttentionConfig,
    Mamba2Config,
    MoEConfig,
    MultiTokenConfig,
    Transformer,
)
from groundup.optim import AdamW, muon_adamw
from groundup.profiling.peak import measured_timeline
from groundup.train import objectives, precision
from groundup.train.rehearsal import rehearse, rehearse_config

pytestmark = pytest.mark.usefixtures("unchecked")
SMALL = presets.llama(vocab_size=512, d_model=64, num_layers=2, num_heads=4, num_kv_heads=2, context_length=64)


def changed(**parts):
    return replace(SMALL, blocks=tuple(replace(block, **parts) for block in SMALL.blocks))


CASES = {
    "gqa": (SMALL, {}),
    "gqa bf16": (SMALL, {"precision": "bf16"}),
    "micro-batches": (SMALL, {"micro_batches": 4}),
    "micro-batches bf16 muon": (SMALL, {"precision": "bf16", "micro_batches": 2, "muon": True}),
    "fp16": (SMALL, {"precision": "fp16"}),
    "fp8": (SMALL, {"precision": "fp8"}),
    "fp8 micro-batches recomputed": (SMALL, {"precision": "fp8", "micro_batches": 2, "recompute": True}),
    "mxfp8": (SMALL, {"precision": "mxfp8"}),
    "recomputed": (SMALL, {"recompute": True}),
    "half recomputed bf16": (SMALL, {"recompute": 1, "precision": "bf16", "micro_batches": 2}),
    "tied": (replace(SMALL, tie_embeddings=True, vocab_size=8192), {"rows": 2}),
    "large head bf16": (replace(SMALL, vocab_size=8192), {"rows": 2, "precision": "bf16"}),
    "the update is the peak": (replace(SMALL, d_model=256), {"rows": 1, "muon": True}),
    "gpt2": (presets.gpt2(d_model=64, num_layers=2, num_heads=4, vocab_size=512, context_length=64), {}),
    "experts": (changed(ffn=MoEConfig(8, 2, 32)), {}),
    "latent": (changed(mixer=LatentAttentionConfig(4, kv_rank=32, d_nope=16, d_rope=8, d_value=16)), {}),
    "mamba2": (changed(mixer=Mamba2Config(4, d_head=32, d_state=16, num_groups=1)), {}),
    "gated delta bf16": (changed(mixer=GatedDeltaConfig(4, 16, 16)), {"precision": "bf16"}),
    "further tokens": (replace(SMALL, multi_token=MultiTokenConfig(1)), {}),
}


def parts(config, *, rows=8, seq=64, muon=False, recompute: bool | int = False, precision_name="fp32"):
    model = Transformer(config)
    precision.apply(model, precision_name)
    model.recompute = recompute
    optimizer = muon_adamw(model) if muon else AdamW(model, 1e-3)
    batch = {"tokens": torch.randint(config.vocab_size, (rows, seq + 1))}
    return model, objectives.pretraining(model), optimizer, batch


@pytest.mark.parametrize("name", CASES)
def test_the_peak_is_that_of_the_allocator(name):
    config, options = CASES[name]
    options = dict(options)
    micro_batches = options.pop("micro_batches", 1)
    together = parts(config, precision_name=options.pop("precision", "fp32"), **options)
    found = rehearse(*together, micro_batches=micro_batches)
    measured = measured_timeline(*together, micro_batches=micro_batches)
    assert found.steady_bytes == pytest.approx(measured.resident_bytes, abs=64)
    assert found.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.01)
    # Weights hide errors in what comes and goes, so that is compared by itself, too.
    assert found.peak_bytes - found.steady_bytes == pytest.approx(measured.peak[1], rel=0.03)
    assert sum(found.held.values()) == found.peak_bytes and list(found.phase_peaks) == list(PHASES)


def test_scratch_of_onednn_is_small_and_not_foreseen():
    """With `device.use_onednn_fp32`, oneDNN packs matrices in memory of torch's allocator: up to 0.7 MB per thread."""
    together = parts(SMALL)
    found = rehearse(*together, micro_batches=4)
    torch.set_float32_matmul_precision(
        "medium"
    )  # use_onednn_fp32's switch, thrown on any CPU; the next test finds it off
    measured = measured_timeline(*together, micro_batches=4)
    assert found.peak_bytes - 64 <= measured.peak_bytes <= found.peak_bytes + 700_000


def test_nothing_is_touched():
    model, objective, optimizer, batch = parts(SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    rehearse(model, objective, optimizer, batch)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and not optimizer.state
    assert torch.equal(rng, torch.get_rng_state())


def test_states_that_are_there_count_as_those_that_will_be():
    together = parts(SMALL, muon=True)
    fresh = rehearse(*together)
    measured_timeline(*together)
    assert rehearse(*together) == fresh


def test_a_config_alone_is_enough_and_any_size_is():
    by_model = rehearse(*parts(SMALL, muon=True), micro_batches=2)
    assert rehearse_config(SMALL, 8, 64, optimizer="muon_adamw", micro_batches=2) == by_model
    large = presets.llama(vocab_size=50_000, d_model=8192, num_layers=2, num_heads=64, context_length=64)
    assert rehearse_config(large, 1, 64).steady_bytes > 2**33
    with pytest.raises(ValueError, match="adamw"):
        rehearse_config(SMALL, 8, 64, optimizer="adam")


def test_more_micro_batches_and_recomputation_need_less():
    peaks = [rehearse_config(SMALL, 8, 64, micro_batches=n).peak_bytes for n in (1, 2, 4)]
    assert peaks == sorted(peaks, reverse=True)
    assert rehearse_config(SMALL, 8, 64, recompute=True).peak_bytes < peaks[0]
