"""The whole model: against an independent formula, on meta, compiled, recomputed and initialised."""

import math

import pytest
import torch

from groundup import kernels
from groundup.config import from_dict, override, to_dict
from groundup.model import (
    AttentionConfig,
    BlockConfig,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    MultiTokenConfig,
    Rope,
    SinusoidalPositions,
    Transformer,
)
from groundup.model.cache import NoCache
from groundup.presets import gpt2, llama

from .variants import VOCAB, build, small, tokens

LLAMA = BlockConfig(AttentionConfig(4, 2, 4), MLPConfig(24))


def naive_llama(state, x, layers=2, heads=4, kv_heads=2, d_head=4, eps=1e-5):
    """A Llama-style model from its equations, in float64, sharing no code with the package."""
    w = {name: tensor.double() for name, tensor in state.items()}

    def norm(x, gain):
        return gain * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)

    def turn(x):  # (seq, heads, d_head) as complex pairs
        frequencies = 10_000.0 ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
        angles = torch.arange(x.shape[0], dtype=torch.float64)[:, None, None] * frequencies
        pairs = torch.complex(x[..., : d_head // 2], x[..., d_head // 2 :]) * torch.exp(1j * angles)
        return torch.cat([pairs.real, pairs.imag], -1)

    def mix(h, p):
        q, k = (turn((h @ w[f"{p}.{n}.weight"].T).view(len(h), -1, d_head)) for n in ("wq", "wk"))
        v = (h @ w[f"{p}.wv.weight"].T).view(len(h), -1, d_head)
        out = torch.zeros(len(h), heads, d_head, dtype=torch.float64)
        for i in range(len(h)):
            for n in range(heads):
                g = n // (heads // kv_heads)
                odds = torch.exp(k[: i + 1, g] @ q[i, n] / math.sqrt(d_head))
                out[i, n] = (odds / odds.sum()) @ v[: i + 1, g]
        return out.flatten(1) @ w[f"{p}.wo.weight"].T

    def swiglu(h, p):
        gate, up = (h @ w[f"{p}.{n}.weight"].T for n in ("gate", "up"))
        return (gate / (1 + torch.exp(-gate)) * up) @ w[f"{p}.down.weight"].T

    rows = []
    for row in x:
        h = w["embed.weight"][row]
        for i in range(layers):
            h = h + mix(norm(h, w[f"blocks.{i}.mixer_norm.weight"]), f"blocks.{i}.mixer")
            h = h + swiglu(norm(h, w[f"blocks.{i}.ffn_norm.weight"]), f"blocks.{i}.ffn")
        rows.append(norm(h, w["final_norm.weight"]) @ w["head.weight"].T)
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_llama_against_its_equations(dtype):
    model, x = build(small(LLAMA)).to(dtype), tokens()
    model.compute_dtype = dtype
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-6}[dtype]
    torch.testing.assert_close(model(x).double(), naive_llama(model.state_dict(), x), rtol=tolerance, atol=tolerance)


def test_bfloat16_compute_is_close_and_gives_float32_logits_and_gradients():
    model, x = build(small(LLAMA)), tokens()
    exact = model(x)
    model.compute_dtype = torch.bfloat16
    assert model.hidden(x).dtype == torch.bfloat16 and model(x).dtype == torch.float32
    torch.testing.assert_close(model(x), exact, rtol=0.1, atol=0.1)
    model(x).sum().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_parameter_names_are_the_contract():
    config = small(BlockConfig(AttentionConfig(4, 2, 4, qk_norm=True), MLPConfig(24)), positions=LearnedPositions(8))
    names = {name for name, _ in Transformer(config).named_parameters() if ".1." not in name}
    layer = ["mixer.wq", "mixer.wk", "mixer.wv", "mixer.wo", "mixer.q_norm", "mixer.k_norm"]
    layer += ["ffn.gate", "ffn.up", "ffn.down", "mixer_norm", "ffn_norm"]
    expected = {"embed.weight", "positions.weight", "final_norm.weight", "head.weight"}
    assert names == expected | {f"blocks.0.{name}.weight" for name in layer}


def test_a_tied_head_is_the_token_table():
    model = build(small(LLAMA, tie_embeddings=True))
    assert model.head_weight is model.embed.weight and "head.weight" not in model.state_dict()
    x = tokens()
    torch.testing.assert_close(model(x), model.hidden(x) @ model.embed.weight.T)
    assert build(small(LLAMA)).head_weight is not model.embed.weight


def test_logit_softcap_bounds_logits():
    capped, plain = (build(small(LLAMA, logit_softcap=cap)) for cap in (0.5, None))
    torch.testing.assert_close(capped(tokens()), 0.5 * (plain(tokens()) / 0.5).tanh())


def test_blocks_tile_over_the_layers():
    local = BlockConfig(AttentionConfig(4, 2, 4, window=3), MLPConfig(24))
    model = Transformer(ModelConfig(VOCAB, 16, 5, (local, local, LLAMA)))
    assert [block.mixer.config.window for block in model.blocks] == [3, 3, None, 3, 3]


def test_two_rotary_embeddings_in_one_model():
    other = BlockConfig(AttentionConfig(4, 2, 4, rope=Rope(50.0)), MLPConfig(24))
    mixed, same = build(small(LLAMA, other)), build(small(LLAMA, LLAMA))
    assert not torch.allclose(mixed(tokens()), same(tokens()), atol=1e-4)


def test_explicit_positions_are_the_default_ones():
    model, x = build(small(LLAMA)), tokens()
    torch.testing.assert_close(model(x, torch.arange(9).expand(2, 9)), model(x), rtol=1e-4, atol=1e-5)


def test_segments_with_running_positions():
    """Rotary embeddings are relative, so a packed row needs no positions that restart."""
    model, x = build(small(LLAMA)), tokens()
    segments = torch.tensor([0] * 5 + [1] * 4).expand(2, 9)
    alone = torch.cat([model(x[:, :5]), model(x[:, 5:])], 1)
    torch.testing.assert_close(model(x, segments=segments), alone, rtol=1e-4, atol=1e-5)


def test_segments_and_caches_exclude_each_other():
    model = build(small(LLAMA))
    with torch.no_grad(), pytest.raises(ValueError, match="segments and caches exclude each other"):
        model(tokens(), caches=model.new_caches(), segments=torch.zeros(2, 9, dtype=torch.long))


def test_too_long_for_learned_positions():
    model = build(small(LLAMA, positions=LearnedPositions(8)))
    with pytest.raises(ValueError, match="a sequence of 9 tokens does not fit: this model learned 8 positions"):
        model(tokens())


@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (3, 1), (1, 33)])
def test_edge_shapes(shape):
    assert build(small(LLAMA))(torch.zeros(shape, dtype=torch.long)).shape == (*shape, VOCAB)


# Initialisation


@pytest.mark.parametrize("preset", [llama, gpt2])
def test_logit_variance_is_independent_of_width(preset):
    variances = []
    for width in (64, 128, 256):
        model = Transformer(preset(d_model=width, num_layers=2, vocab_size=256))
        with torch.no_grad():
            variances.append(model(torch.randint(0, 256, (8, 32))).var().item())
    assert max(variances) / min(variances) < 1.25
    assert 0.7 < sum(variances) / 3 < 1.4


def test_residual_stream_does_not_grow_with_depth():
    """The scaled outputs: each branch adds 1 / (2 layers) of variance, so depth does not matter."""
    sizes = []
    for layers in (2, 8, 32):
        model = Transformer(llama(d_model=64, num_layers=layers, vocab_size=256))
        x = torch.randint(0, 256, (4, 16))
        layout = model.layout(x)
        with torch.no_grad():
            sizes.append(model.run_blocks(model.embed_tokens(x, layout), layout).var().item())
    assert max(sizes) / min(sizes) < 1.3


def test_the_same_seed_is_the_same_model_whatever_torch_drew_before():
    models = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        model = Transformer(small(LLAMA))
        model.init_weights(seed=5)
        models.append(model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    other = Transformer(small(LLAMA))
    assert not torch.equal(other.embed.weight, models[0]["embed.weight"])
    state = torch.get_rng_state()
    other.init_weights(seed=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_is_drawn_the_same_in_a_deeper_model():
    shallow, deep = (Transformer(ModelConfig(VOCAB, 16, n, (LLAMA,))) for n in (1, 3))
    assert torch.equal(shallow.blocks[0].ffn.up.weight, deep.blocks[0].ffn.up.weight)
    assert not torch.equal(deep.blocks[0].ffn.up.weight, deep.blocks[1].ffn.up.weight)


def test_residual_outputs_scaled_or_zero():
    model = Transformer(small(LLAMA))
    assert model.blocks[0].mixer.wo.weight.std().item() == pytest.approx(0.5 * 16**-0.5, rel=0.15)
    model.init_weights(0, residual="zero")
    for block in model.blocks:
        assert block.mixer.wo.weight.abs().max() == block.ffn.down.weight.abs().max() == 0
    x = tokens()
    torch.testing.assert_close(model.hidden(x), model.final_norm(model.embed(x)))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_residual_initialisation():
    with pytest.raises(ValueError, match="residual 'none' is unknown"):
        Transformer(small(LLAMA)).init_weights(0, residual="none")  # type: ignore[arg-type]


# Where and how it runs


def test_seventy_billion_parameters_are_built_on_meta():
    config = llama(d_model=8192, num_layers=80, num_heads=64, num_kv_heads=8, d_ff=28_672, vocab_size=128_256)
    with torch.device("meta"):
        model = Transformer(config)
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == 70_553_706_496


def test_on_the_meta_device_a_forward_pass_has_shapes_only():
    with torch.device("meta"):
        logits = Transformer(small(LLAMA))(torch.zeros(2, 100_000, dtype=torch.long))
    assert logits.shape == (2, 100_000, VOCAB) and logits.is_meta


def test_weights_can_be_assigned_to_a_meta_model():
    model = build(small(LLAMA))
    with torch.device("meta"):
        empty = Transformer(model.config)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(tokens()), model(tokens()))


@pytest.mark.parametrize("recompute", [True, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_activations_give_the_same_gradients_bit_for_bit(recompute, dtype):
    results = []
    for setting in (False, recompute):
        model = build(small(LLAMA)).train()
        model.compute_dtype, model.recompute = dtype, setting
        logits = model(tokens())
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_dropout_is_for_training_only_and_follows_the_generator():
    model = build(small(LLAMA))
    before = model.eval()(tokens())
    model.dropout = 0.2
    assert torch.equal(model(tokens()), before)
    results = []
    for seed, recompute in ((1, False), (1, True), (2, False)):
        model.train().recompute = recompute
        model.zero_grad()
        torch.manual_seed(seed)
        model(tokens()).square().sum().backward()
        results.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))


def test_dropout_reaches_embeddings_and_both_branches():
    model = build(small(LLAMA)).train()
    model.dropout = 0.5
    embedded = model.embed_tokens(tokens(), model.layout(tokens()))
    assert 0.3 < (embedded == 0).float().mean() < 0.7
    block = model.blocks[0]
    block.mixer.register_forward_hook(lambda *_: torch.ones(1, 5, 16))
    block.ffn.register_forward_hook(lambda *_: torch.ones(1, 5, 16))
    added = block(torch.zeros(1, 5, 16), model.layout(tokens(1, 5)), NoCache())
    assert set(added.unique().tolist()) == {0.0, 2.0, 4.0}


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_dropout_that_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match="from 0 to below 1"):
        build(small(LLAMA)).dropout = share


def test_recomputing_runs_those_blocks_twice():
    model, runs = build(ModelConfig(VOCAB, 16, 4, (LLAMA,))), []
    for i, block in enumerate(model.blocks):
        block.mixer.register_forward_hook(lambda *_, i=i: runs.append(i))
    model.recompute = 2
    model(tokens()).sum().backward()
    assert sorted(runs) == [0, 0, 1, 1, 2, 3]
    runs.clear()
    with torch.no_grad():
        model(tokens())
    assert runs == [0, 1, 2, 3]


@pytest.mark.parametrize(("recompute", "segments"), [(False, True), (True, False)])
def test_a_compiled_training_step_is_one_graph_with_the_same_gradients(recompute, segments):
    model, x = build(small(LLAMA)).train(), tokens(2, 10)
    model.recompute = recompute
    documents = torch.tensor([0] * 4 + [1] * 5).expand(2, 9) if segments else None

    def loss(x):
        hidden = model.hidden(x[:, :-1], segments=documents)
        total, weight = kernels.linear_cross_entropy(hidden, model.head_weight, x[:, 1:], chunk=5, z_loss=1e-4)
        return total / weight

    results = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        function(x).backward()
        results.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_model_that_looks_ahead_has_no_caches():
    encoder = BlockConfig(AttentionConfig(4, 2, 4, causal=False), MLPConfig(24))
    config = small(LLAMA, encoder)
    assert small(LLAMA).causal and not config.causal
    with pytest.raises(ValueError, match="new_caches: a layer of this model has causal=False"):
        Transformer(config).new_caches()
    with pytest.raises(ValueError, match="multi_token with causal=False"):
        small(encoder, multi_token=MultiTokenConfig())


# Configs


def test_config_survives_json():
    config = small(LLAMA, positions=SinusoidalPositions(32), tie_embeddings=True)
    assert from_dict(ModelConfig, to_dict(config)) == config
    assert override(config, "blocks.0.mixer.num_kv_heads=4").blocks[0].mixer.num_kv_heads == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_layers": 0}, "num_layers=0; expected at least 1"),
        ({"blocks": ()}, "blocks is empty"),
        ({"d_model": 15, "positions": SinusoidalPositions(8)}, "d_model=15 is odd, .* use 16"),
        ({"logit_softcap": 0.0}, "logit_softcap=0.0"),
    ],
)
def test_config_errors(wrong, message):
    good = {"vocab_size": 50, "d_model": 16, "num_layers": 2, "blocks": (LLAMA,)}
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{**good, **wrong})
