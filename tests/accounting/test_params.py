"""Parameter counts against published figures and against the built model."""

import pytest

from groundup import presets
from groundup.accounting import count_parameters
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
