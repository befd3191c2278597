"""What holds of every recurrent mixer: padding, precision, starting points; and their shared parts."""

import pytest
import torch

from groundup.kernels import rmsnorm
from groundup.model import (
    BlockConfig,
    DenseCache,
    GatedDeltaConfig,
    GatedLinearConfig,
    Layout,
    LSTMConfig,
    Mamba2Config,
    MLPConfig,
    ModelConfig,
    NeuralNgramConfig,
    PagedCache,
    PagePool,
)
from groundup.model.recurrence import GatedNorm, ShortConvolution, first_tokens, real_tokens, silenced

from . import variants
from .variants import VOCAB, build, small, tokens

MIXERS = {
    "gated_linear": GatedLinearConfig(2, 4, 6),
    "decay_per_head": GatedLinearConfig(2, 4, 6, decay="head"),
    "retention": GatedLinearConfig(2, 4, 6, decay="fixed"),
    "linear_attention": GatedLinearConfig(2, 4, 6, decay="none", features="elu", output_gate=False),
    "mamba2": Mamba2Config(4, d_head=6, d_state=5, num_groups=2),
    "gated_delta": GatedDeltaConfig(4, 5, 6, num_key_heads=2),
    "lstm": LSTMConfig(12),
    "neural_ngram": NeuralNgramConfig(4, 12),
}

mixers = pytest.mark.parametrize("name", MIXERS)


def model_of(name):
    return build(ModelConfig(VOCAB, 16, 2, (BlockConfig(MIXERS[name], None),)))


@mixers
@pytest.mark.parametrize("paged", [False, True])
def test_rows_of_different_lengths_decode_as_if_alone(name, paged):
    """Prompts of 6 and 3 tokens padded to 6; then row 0 has three tokens and row 1 one, none, and two."""
    model, x, other = model_of(name), tokens(1, 9, seed=1), tokens(1, 6, seed=2)
    batch = torch.zeros(2, 9, dtype=torch.long)
    positions = torch.full((2, 9), -1)
    batch[0], positions[0] = x, torch.arange(9)
    for column, token in ((0, 0), (1, 1), (2, 2), (6, 3), (8, 4)):
        batch[1, column], positions[1, column] = other[0, token], token
    pool = PagePool(64, 4)
    caches = [PagedCache(pool, 2) if paged else DenseCache() for _ in model.blocks]
    cuts = [6, 1, 1, 1]
    with torch.no_grad():
        pieces = zip(batch.split(cuts, 1), positions.split(cuts, 1), strict=True)
        out = torch.cat([model(t, p, caches=caches) for t, p in pieces], 1)
        torch.testing.assert_close(out[:1], model(x), rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(out[1:, [0, 1, 2, 6, 8]], model(other[:, :5]), rtol=1e-4, atol=2e-5)
    assert caches[0].next_positions().flatten().tolist() == [9, 5]


@mixers
def test_what_stands_in_padding_reaches_no_state(name):
    """Not even numbers that are none."""
    layer = model_of(name).blocks[0].mixer
    x, positions = torch.randn(2, 7, 16), torch.arange(7).expand(2, -1).clone()
    positions[:, 5:] = -1
    states = []
    for filler in (0.0, 3.0, float("nan")):
        x = x.index_fill(1, torch.tensor([5, 6]), filler)
        cache = DenseCache()
        with torch.no_grad():
            layer(x, Layout(positions), cache)
        states.append(cache.state())
    for found in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, states[0], strict=True))


@mixers
def test_bfloat16_stays_close_to_float32_and_keeps_states_in_it(name):
    model, x, outs = model_of(name), tokens(2, 100), {}
    for dtype in (torch.float32, torch.bfloat16):
        model.compute_dtype = dtype
        caches = model.new_caches()
        with torch.no_grad():
            model(x[:, :99], caches=caches)
            outs[dtype] = model(x[:, 99:], caches=caches)
        state = dtype if name == "neural_ngram" else torch.float32  # of inputs, not of sums of them
        assert caches[0].state()[-1].dtype == state
    error = (outs[torch.bfloat16] - outs[torch.float32]).abs().max() / outs[torch.float32].abs().max()
    assert error < 0.03


@mixers
@pytest.mark.parametrize("seq", [65, 130])
def test_longer_than_a_chunk(name, seq):
    """Every token by itself, against all at once."""
    model, x = model_of(name).double(), tokens(1, seq)
    model.compute_dtype = torch.float64
    caches = model.new_caches()
    with torch.no_grad():
        steps = torch.cat([model(token, caches=caches) for token in x.split(1, 1)], 1)
        torch.testing.assert_close(steps, model(x), rtol=1e-9, atol=1e-9)


@mixers
def test_blocks_that_begin_as_the_identity(name):
    model = model_of(name)
    model.init_weights(0, residual="zero")
    x = torch.randn(1, 5, 16)
    layout = Layout(torch.arange(5)[None], causal_from_zero=True)
    assert torch.equal(model.run_blocks(x, layout), x)


@mixers
def test_gradients_reach_every_parameter(name):
    model = model_of(name)
    model(tokens()).logsumexp(-1).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_where_documents_begin():
    layout = Layout(torch.arange(5)[None], torch.tensor([[4, 4, 1, 2, 2]]))
    assert first_tokens(layout).tolist() == [[False, False, True, True, False]]
    assert first_tokens(Layout(torch.arange(5)[None])) is None


def test_padding_is_known_by_its_position():
    assert real_tokens(Layout(torch.tensor([[0, 1, -1]]))).tolist() == [[True, True, False]]
    assert real_tokens(Layout(torch.tensor([[0, 1, 2]]), causal_from_zero=True)) is None
    x = torch.tensor([[[1.0, 2.0], [float("nan"), float("inf")]]])
    assert silenced(x, torch.tensor([[True, False]])).tolist() == [[[1.0, 2.0], [0.0, 0.0]]]


def test_the_convolution_remembers_the_last_inputs_that_are_not_padding():
    conv = ShortConvolution(1, 3)
    x, before = torch.arange(1.0, 5.0).view(1, 4, 1).expand(3, -1, -1), torch.tensor([-2.0, -1.0]).view(1, 2, 1)
    positions = torch.tensor([[0, 1, 2, 3], [0, -1, -1, -1], [-1, -1, -1, -1]])
    _, last = conv(x, before.expand(3, -1, -1), Layout(positions))
    assert last[..., 0].tolist() == [[3.0, 4.0], [-1.0, 1.0], [-2.0, -1.0]]


@pytest.mark.parametrize("gate_first", [False, True])
def test_gated_norm_in_groups(gate_first):
    norm, x, gate = GatedNorm(6, 1e-5, groups=2, gate_first=gate_first), *torch.randn(2, 4, 6)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 7.0))
    silu = torch.nn.functional.silu(gate)
    halves = (x * silu if gate_first else x).chunk(2, -1)
    plain = torch.cat([rmsnorm(h, torch.ones(3)) for h in halves], -1) * norm.weight
    torch.testing.assert_close(norm(x, gate), plain if gate_first else plain * silu)


@pytest.mark.parametrize("name", ["mamba2", "gated_delta", "gated_linear", "lstm", "neural_ngram"])
def test_padding_on_the_left_is_no_beginning(name):
    model, x = build(small(BlockConfig(variants.MIXERS[name], MLPConfig(24)))), tokens(2, 13)
    positions = torch.cat([torch.full((2, 4), -1), torch.arange(9).expand(2, -1)], 1)
    with torch.no_grad():
        padded, alone = model(x, positions)[:, 4:], model(x[:, 4:])
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=2e-5)
