"""A model that begins as the identity knows nothing, and is the same again for the same seed."""

import math

import pytest
import torch

from groundup import presets
from groundup.model import Transformer
from groundup.model.identity_start import EMBEDDING_STD, start_as_identity

OPTIONS = dict(vocab_size=300, d_model=64, num_layers=2, num_heads=2, context_length=32)


def started(seed, **changes):
    model = Transformer(presets.llama(**OPTIONS | changes))
    start_as_identity(model, seed)
    return model


@torch.no_grad()
def test_the_first_loss_is_that_of_a_uniform_guess():
    tokens = torch.randint(0, 300, (4, 33), generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy(started(1)(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(300), rel=0.02)


@torch.no_grad()
def test_every_block_passes_its_input_on():
    model = started(1)
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    torch.testing.assert_close(model.hidden(tokens), model.final_norm(model.embed(tokens)))
    assert model.embed.weight.std().item() == pytest.approx(EMBEDDING_STD, rel=1e-5)


def test_a_seed_repeats_and_another_differs():
    one, same, other = started(1), started(1), started(2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.embed.weight, other.embed.weight)


def test_a_tied_table_is_the_head():
    model = started(1, tie_embeddings=True)
    assert model.head is None and model.embed.weight.std().item() == pytest.approx(EMBEDDING_STD, rel=1e-5)
