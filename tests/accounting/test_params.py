"""Parameter counts against published figures and against the built model."""

import pytest
import torch

from groundup import accounting, presets
from groundup.accounting import count_parameters
from groundup.accounting.flops import beside_six_nd
from groundup.accounting.memory import activation_bytes
from groundup.model import Transformer
from tests.model.variants import VARIANTS


def test_published_counts():
    assert count_parameters(presets.gpt2("small")).total == 124_439_808
    course = presets.llama(
        d_model=1600, num_layers=48, num_heads=25, num_kv_heads=25, d_ff=6400, vocab_size=50257, context_length=1024
    )
    assert count_parameters(course).total == 2_127_057_600


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_counted_equals_built(name):
    count = count_parameters(VARIANTS[name])
    assert count.total == sum(p.numel() for p in Transformer(VARIANTS[name]).parameters())
    assert count.total >= count.embedding + count.head + count.blocks


def test_tied_embedding_is_counted_once():
    shape = dict(d_model=16, num_layers=1, num_heads=2, vocab_size=100, context_length=8)
    tied, free = (count_parameters(presets.llama(**shape, tie_embeddings=t)) for t in (True, False))
    assert free.total - tied.total == 16 * 100
    assert tied.head == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "count",
    [
        count_parameters,
        accounting.summary,
        accounting.cache_bytes,
        lambda config: accounting.ledger(config, 8),
        lambda config: accounting.training_ledger(config, 8),
        lambda config: accounting.training_flops_per_token(config, 8),
        lambda config: beside_six_nd(config, 8),
        lambda config: accounting.training_memory(config, 1, 8),
        lambda config: activation_bytes(config, 1, 8, torch.float32),
        lambda config: accounting.least_recompute(config, 1, 8, 10**9),
        lambda config: accounting.step_work(config, "decode", batch=1, seq=8),
    ],
)
def test_two_stacks_are_refused(count):
    with pytest.raises(ValueError, match="EncoderDecoderConfig has two stacks"):
        count(presets.vaswani_encoder_decoder(vocab_size=50, d_model=32, num_layers=1, num_heads=2))
