"""Mamba-2 held to `transformers`: the layer, its gradients, decoding, whole models, and the published sizes."""

import pytest
import torch
from transformers import Mamba2Config as TheirConfig
from transformers import Mamba2ForCausalLM
from transformers.models.mamba2 import modeling_mamba2

from groundup.model import BlockConfig, DenseCache, Layout, Mamba2, Mamba2Config, ModelConfig, NoCache, Transformer
from groundup.model.families.mamba import MAMBA2_PLACES
from groundup.presets.recurrent import MAMBA2_SIZES, mamba2

VOCAB, D_MODEL = 31, 16

OPTIONS = {
    "plain": {},
    "groups": {"num_groups": 2},
    "biases": {"bias": True},
    "no_conv_bias": {"conv_bias": False},
    "kernel_of_two": {"conv_kernel": 2, "num_groups": 4},
    "wide_heads": {"num_heads": 2, "d_head": 16, "d_state": 3},
}

options = pytest.mark.parametrize("option", OPTIONS)


def pair(option, num_layers=2):
    """A model of each kind with the same weights, none of them at a value that hides it."""
    mixer = Mamba2Config(**({"num_heads": 4, "d_head": 8, "d_state": 6} | OPTIONS[option]))
    config = ModelConfig(VOCAB, D_MODEL, num_layers, (BlockConfig(mixer, None),), tie_embeddings=True)
    theirs = Mamba2ForCausalLM(
        TheirConfig(
            num_heads=mixer.num_heads, head_dim=mixer.d_head, vocab_size=VOCAB, hidden_size=D_MODEL,
            state_size=mixer.d_state, num_hidden_layers=num_layers, n_groups=mixer.num_groups, chunk_size=8,
            conv_kernel=mixer.conv_kernel, use_bias=mixer.bias, use_conv_bias=mixer.conv_bias, tie_word_embeddings=True,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in theirs.parameters():
            p += 0.2 * torch.randn(p.shape, generator=generator)
    ours = Transformer(config)
    state = theirs.state_dict()
    ours.load_state_dict({name: state[their_name(name)] for name in ours.state_dict()}, strict=True)
    return ours.eval(), theirs.eval()


def their_name(name):
    """By the table of places alone."""
    path, _, leaf = name.rpartition(".")
    steps = path.split(".")
    key = ".".join(["blocks", "{i}", *steps[2:]]) if steps[0] == "blocks" else path
    return f"{MAMBA2_PLACES[key].name.format(i=steps[1] if len(steps) > 1 else '')}.{leaf}"


class InFloat64:
    """torch, except that its float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def float64(monkeypatch):
    """Their layer casts to float32 in places; here it computes in float64 throughout."""
    monkeypatch.setattr(modeling_mamba2, "torch", InFloat64())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def doubled(option):
    ours, theirs = (model.double() for model in pair(option))
    ours.compute_dtype = torch.float64
    return ours, theirs


def tokens(seq, batch=2):
    return torch.randint(0, VOCAB, (batch, seq), generator=torch.Generator().manual_seed(1))


def layout(seq, batch=2):
    return Layout(torch.arange(seq).expand(batch, -1), causal_from_zero=True)


@options
@pytest.mark.parametrize("seq", [1, 7, 41])
@pytest.mark.usefixtures("float64")
def test_the_layer_and_its_gradients_equal_transformers(option, seq):
    ours, theirs = (m.blocks[0].mixer if hasattr(m, "blocks") else m.backbone.layers[0].mixer for m in doubled(option))
    x = torch.randn(2, seq, D_MODEL, dtype=torch.float64, requires_grad=True)
    found, expected = ours(x, layout(seq), NoCache()), theirs(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    upstream = torch.randn_like(found)
    names = [name for name, _ in ours.named_parameters()]
    leaves = [x, *ours.parameters()], [x, *(theirs.get_parameter(n.replace("conv.", "conv1d.")) for n in names)]
    grads = (torch.autograd.grad(y, w, upstream) for y, w in zip((found, expected), leaves, strict=True))
    for name, mine, other in zip(["x", *names], *grads, strict=True):
        assert (mine - other).abs().max() <= 1e-6 * other.abs().max(), name


@options
@pytest.mark.usefixtures("float64")
def test_a_whole_model_equals_transformers_in_float64_prefilled_and_step_by_step(option):
    ours, theirs = doubled(option)
    x = tokens(13)
    with torch.no_grad():
        whole = theirs(x).logits
        torch.testing.assert_close(ours(x), whole, rtol=1e-9, atol=1e-9)
        caches, their_cache = ours.new_caches(), None
        for piece in x.split([10, 1, 1, 1], 1):
            output = theirs(piece, cache_params=their_cache, use_cache=True)
            their_cache = output.cache_params
            torch.testing.assert_close(ours(piece, caches=caches), output.logits, rtol=1e-9, atol=1e-9)


def test_a_whole_model_equals_transformers_in_float32():
    ours, theirs = pair("groups")
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens(41)), theirs(tokens(41)).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", MAMBA2_SIZES)
def test_published_sizes_have_the_parameters_of_transformers(size):
    """For the sizes of the published models, built without memory; as a sum by hand, too."""
    config = mamba2(size)
    layers, d = MAMBA2_SIZES[size]
    with torch.device("meta"):
        ours = Transformer(config)
        theirs = Mamba2ForCausalLM(
            TheirConfig(
                num_heads=2 * d // 64, head_dim=64, vocab_size=50_288, hidden_size=d, state_size=128,
                num_hidden_layers=layers, n_groups=1, tie_word_embeddings=True,
            )
        )  # fmt: skip
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters())
    assert {their_name(n): p.shape for n, p in ours.named_parameters()} == {
        n: p.shape for n, p in theirs.named_parameters()
    }
    inner, heads, mixed = 2 * d, 2 * d // 64, 2 * d + 2 * 128
    per_layer = d * (inner + mixed + heads) + 5 * mixed + 3 * heads + inner + inner * d + d
    assert count == 50_288 * d + layers * per_layer + d


def test_published_sizes_by_name_and_errors():
    assert (mamba2("2.7b").num_layers, mamba2("2.7b").d_model, mamba2("2.7b").blocks[0].mixer.num_heads) == (
        64,
        2560,
        80,
    )
    assert mamba2(d_model=64, num_layers=2, vocab_size=100).blocks[0].mixer.num_heads == 2
    with pytest.raises(ValueError, match="size '2.8b' is unknown.*'2.7b'"):
        mamba2("2.8b")
    with pytest.raises(ValueError, match="d_model=100 gives 200 inner channels.*use 96"):
        mamba2(d_model=100)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 0}, "mamba2: num_heads=0; expected at least 1"),
        ({"conv_kernel": 0}, "mamba2: conv_kernel=0; expected at least 1"),
        ({"num_groups": 3}, r"num_groups=3 does not divide num_heads=4.*allowed are 1, 2, 4 \(nearest: 2\)"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        Mamba2Config(**({"num_heads": 4} | fields))


def test_heads_begin_with_short_and_long_memories():
    """Steps of 0.001 to 0.1 at rates of 1 to 16, and a skip of 1; from a seed."""
    layer = Mamba2(Mamba2Config(64, 4, 4), D_MODEL)
    layer.reset_weights(torch.Generator().manual_seed(0))
    steps = torch.nn.functional.softplus(layer.dt_bias)
    assert 1e-3 <= steps.min() < 2e-3 and 0.05 < steps.max() <= 0.1
    assert 1 <= layer.A_log.exp().min() < 3 and 14 < layer.A_log.exp().max() <= 16
    assert torch.equal(layer.D, torch.ones(64))
    again = Mamba2(Mamba2Config(64, 4, 4), D_MODEL)
    again.reset_weights(torch.Generator().manual_seed(0))
    assert torch.equal(again.dt_bias, layer.dt_bias) and torch.equal(again.A_log, layer.A_log)


def test_decoding_keeps_no_more_than_a_state():
    """Whatever was read: per layer 3 inputs of the convolution and heads x d_state x d_head numbers."""
    ours, _ = pair("plain")
    for seq in (1, 5, 50):
        caches = [DenseCache() for _ in ours.blocks]
        with torch.no_grad():
            ours(tokens(seq), caches=caches)
        before, state = caches[0].state()
        assert before.shape == (2, 3, 4 * 8 + 2 * 6) and state.shape == (2, 4, 6, 8)
        assert before.untyped_storage().nbytes() == 4 * before.numel()
