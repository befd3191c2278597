"""The compiled decode step, held to the model's own forward pass over a table of variants."""

import copy
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from groundup import kernels, presets
from groundup.inference.batch_cache import stream_shapes
from groundup.inference.decode.decoder import MOST_ROWS, CompiledDecoder
from groundup.inference.decode.pack import rounded
from groundup.inference.decode.program import HEAD_KINDS
from groundup.inference.decode.refusal import Refusal
from groundup.model import (
    AttentionConfig,
    BlockConfig,
    GatedDeltaConfig,
    GatedLinearConfig,
    LatentAttentionConfig,
    LearnedPositions,
    LSTMConfig,
    Mamba2Config,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    Rope,
    SinusoidalPositions,
    Transformer,
)  # fmt: skip
from groundup.model.latent import LatentAttention
from groundup.model.linear import Linear

VOCAB, D_MODEL, CONTEXT, PAGE = 61, 40, 64, 16
MLP = MLPConfig(72)


@dataclass
class Store:
    """Pages of every layer, in an order that is none, and a table per row."""

    streams: list[list[torch.Tensor]]
    tables: np.ndarray
    page_size: int = PAGE
    states: list[tuple[torch.Tensor, ...]] = field(default_factory=list)

    def __post_init__(self):
        self.states = [() for _ in self.streams]


@dataclass
class Span:
    tokens: list[int]
    start: int
    slot: int
    wanted: int = 1
    pages: list[int] = field(default_factory=list)


def new_store(config, rows=4, dtype=torch.float32):
    pages = rows * CONTEXT // PAGE
    shapes = [stream_shapes(config.block(i).mixer) for i in range(config.num_layers)]
    streams = [[torch.full((pages * PAGE, *shape), 3.0, dtype=dtype) for shape in layer] for layer in shapes]
    return Store(streams, np.random.default_rng(0).permutation(pages).reshape(rows, -1).astype(np.int64))


def config(mixer=None, ffn=MLP, layers=2, norm="rms", placement="pre", **options):
    mixers = mixer if isinstance(mixer, list) else [mixer or AttentionConfig(4, 2, 8)]
    blocks = tuple(BlockConfig(m, ffn, norm, placement) for m in mixers)
    return ModelConfig(VOCAB, D_MODEL, layers, blocks, context_length=CONTEXT, **options)


def shaken(config):
    """A model in which nothing is zero or one by initialisation."""
    model, generator = Transformer(config), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return model.eval()


LATENT = LatentAttentionConfig(num_heads=4, kv_rank=24, d_nope=8, d_rope=4, d_value=12)
VARIANTS = {
    "gqa": config(),
    "multi-query": config(AttentionConfig(4, 1, 8)),
    "multi-head, tail of lanes": config(AttentionConfig(2, 2, 20), tie_embeddings=True),
    "wide heads": config(AttentionConfig(4, 1, 80)),
    "windows": config([AttentionConfig(4, 2, 8, window=5, sink_tokens=2), AttentionConfig(4, 2, 8)]),
    "one token of window": config(AttentionConfig(4, 2, 8, window=1)),
    "qk-norm": config(AttentionConfig(4, 2, 8, qk_norm=True)),
    "qk-norm, whole": config(AttentionConfig(4, 2, 8, qk_norm="whole"), placement="inner"),
    "gpt-2": config(
        AttentionConfig(4, 4, 10, None, bias=True, out_bias=True), MLPConfig(96, False, "gelu_tanh", bias=True),
        norm="layer", norm_bias=True, positions=LearnedPositions(CONTEXT), tie_embeddings=True,
    ),
    "soft caps": config(
        AttentionConfig(4, 2, 8, softcap=3.0, scale=0.3), MLPConfig(72, True, "gelu"), placement="sandwich",
        scale_embeddings=True, tie_embeddings=True, logit_softcap=5.0,
    ),
    "sinks": config(AttentionConfig(4, 2, 8, sinks=True), MLPConfig(33, True, "identity", bias=True)),
    "alibi, window": config(AttentionConfig(3, 1, 8, None, alibi=True, window=9, sink_tokens=1), placement="parallel"),
    "post, sinusoidal": config(
        ffn=MLPConfig(72, False, "relu"), norm="layer", placement="post", positions=SinusoidalPositions(CONTEXT),
        final_norm=False,
    ),
    "partial rotary": config(
        AttentionConfig(4, 2, 16, Rope(500.0, 0.25)), MLPConfig(72, False, "relu2"), placement="none"
    ),
    "attention only": config(ffn=None),
    "latent": config(LATENT),
    "latent, queries compressed": config(replace(LATENT, q_rank=20, num_heads=6, kv_rank=80), placement="sandwich"),
    "latent, window": config([replace(LATENT, window=5, rope=Rope(500.0, 0.5)), AttentionConfig(4, 2, 8)]),
    "latent, one head": config(replace(LATENT, num_heads=1, d_nope=40, d_rope=20, scale=0.3), placement="parallel"),
    "mamba-2": config(Mamba2Config(4, d_head=12, d_state=9, num_groups=2, bias=True), ffn=None),
    "mamba-2, hybrid": config([Mamba2Config(2, d_head=16, d_state=8, conv_kernel=1), LATENT], placement="sandwich"),
    "gated delta": config(GatedDeltaConfig(4, 10, 12, num_key_heads=2, conv_kernel=3)),
    "gated delta, hybrid": config([GatedDeltaConfig(3, 16, 8), AttentionConfig(4, 2, 8)], placement="parallel"),
    "gated linear": config(GatedLinearConfig(3, 8, 12, rank=6)),
    "gated linear, a decay for a head": config(GatedLinearConfig(2, 8, 20, decay="head", output_gate=False)),
    "retention": config(GatedLinearConfig(2, 16, 8, decay="fixed")),
    "linear attention": config(GatedLinearConfig(2, 8, 8, decay="none", features="elu", output_gate=False)),
    "glu": config(ffn=MLPConfig(64, True, "sigmoid")),
}  # fmt: skip

LENGTHS = (1, 37, 20)


def prompts():
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(VOCAB, (n + 1,), generator=generator).tolist() for n in LENGTHS]


def decoded(decoder):
    """Each prompt but its last token as one span, wanting its last two logits; then the last tokens as a batch."""
    texts = prompts()
    first = decoder.run([Span(ids[:-1], 0, i, min(2, len(ids) - 1)) for i, ids in enumerate(texts)])
    second = decoder.run([Span(ids[-1:], len(ids) - 1, i) for i, ids in enumerate(texts)])
    rows = list(first.split([min(2, len(ids) - 1) for ids in texts]))
    return [torch.cat([row, second[i : i + 1]]) for i, row in enumerate(rows)]


@torch.no_grad()
def expected(logits):
    """The same from a function of tokens (1, seq) to logits (1, seq, vocab)."""
    return [logits(torch.tensor([ids]))[0, -min(3, len(ids)) :] for ids in prompts()]


@pytest.mark.parametrize("name", VARIANTS)
def test_fp32_is_what_the_model_says(name):
    model = shaken(VARIANTS[name])
    decoder = CompiledDecoder.build(model, new_store(model.config), "fp32")
    assert isinstance(decoder, CompiledDecoder)
    for found, right in zip(decoded(decoder), expected(model), strict=True):
        torch.testing.assert_close(found, right, rtol=2e-5, atol=2e-5)


def cut(x, kind):
    """What a product of this format reads of a row: bfloat16, or int16 with a scale."""
    if kind == "bf16":
        return x.bfloat16().float()
    scale = x.abs().amax(-1, keepdim=True) / 32767
    return (x / scale).round() * scale


def absorbed(mixer, kind):
    """The middle of latent attention as the step computes it, with each head's two matrices rounded."""
    config = mixer.config
    up = mixer.wkv_up.weight.data.unflatten(0, (config.num_heads, -1))
    keys = torch.stack([rounded(head[: config.d_nope].T, kind) for head in up])
    values = torch.stack([rounded(head[config.d_nope :], kind) for head in up])
    scale = config.scale or (config.d_nope + config.d_rope) ** -0.5

    def attend(q_nope, q_rope, latent, k_rope, k_pos, layout):
        q_nope = cut((q_nope * scale).flatten(2), kind).view_as(q_nope)
        q_latent = torch.einsum("bqhn,hrn->bqhr", q_nope, keys) / scale
        q, k = torch.cat([q_latent, q_rope], -1), torch.cat([latent, k_rope], -1)[:, :, None]
        mean = mixer._attend(q, k, latent[:, :, None], k_pos, layout)
        return torch.einsum("bqhr,hvr->bqhv", cut(mean.flatten(2), kind).view_as(mean), values)

    return attend


def as_rounded(model, kind):
    """logits(tokens) of a model whose matrices are rounded, and whose products read what the step's read."""
    model = copy.deepcopy(model)
    for block in model.blocks.children():
        if isinstance(block.mixer, LatentAttention):
            block.mixer._expanded = absorbed(block.mixer, kind)
    for module in model.blocks.modules():
        if isinstance(module, Linear):
            module.weight.data = rounded(module.weight.data, kind)
            module.register_forward_pre_hook(lambda _, inputs: cut(inputs[0], kind))
    head = rounded(model.head_weight.data, HEAD_KINDS.get(kind, kind))
    return lambda tokens: F.linear(cut(model.hidden(tokens), kind), head)


MIXERS = {
    "gqa": AttentionConfig(4, 2, 8),
    "latent": replace(LATENT, q_rank=20),
    "mamba-2": Mamba2Config(4, d_head=12, d_state=9),
    "gated delta": GatedDeltaConfig(4, 10, 12),
    "gated linear": GatedLinearConfig(3, 8, 12, rank=6),
}


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
@pytest.mark.parametrize(("kind", "tolerance"), {"bf16": 2e-2, "int8": 2e-3, "int4": 2e-3}.items())
def test_rounded_weights_give_what_torch_gives_with_them(kind, tolerance, mixer):
    # bf16 is the loosest: a sum in another order may round to the next bfloat16 before the next product.
    model = shaken(config(mixer, ffn=MLPConfig(100, bias=True), tie_embeddings=True))
    decoder = CompiledDecoder(model, new_store(model.config), kind)
    apart = [(f - r).abs().max() for f, r in zip(decoded(decoder), expected(as_rounded(model, kind)), strict=True)]
    plain = [(f - r).abs().max() for f, r in zip(decoded(decoder), expected(model), strict=True)]
    assert max(apart) < tolerance and max(apart) < max(plain) / 2


@pytest.mark.parametrize("name", ["gqa", "latent"])
def test_keys_and_values_may_be_bfloat16(name):
    model = shaken(VARIANTS[name])
    found = decoded(CompiledDecoder(model, new_store(model.config, dtype=torch.bfloat16), "fp32"))

    def attend(q, k, v, *args, **options):
        return kernels.attention(q, k.bfloat16().float(), v.bfloat16().float(), *args, **options)

    for block in model.blocks.children():
        block.mixer.attend = attend
        if isinstance(block.mixer, LatentAttention):
            block.mixer._expanded = block.mixer._absorbed  # which attends to what is kept
    for row, right in zip(found, expected(model), strict=True):
        torch.testing.assert_close(row, right, rtol=2e-3, atol=2e-3)


COMPANY = [(name, kind) for name in ("gqa", "latent") for kind in ("fp32", "bf16", "int8", "int4")]
COMPANY += [("mamba-2", "bf16"), ("gated delta", "int8"), ("gated linear", "fp32")]


@pytest.mark.parametrize(("name", "kind"), COMPANY)
def test_a_row_gets_the_same_bits_in_any_company_in_any_cut_and_on_any_number_of_threads(name, kind):
    model = shaken(VARIANTS[name])
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in (30, 30, 17, 5)]
    together = CompiledDecoder(model, new_store(model.config), kind, threads=2)
    batch = together.run([Span(ids, 0, i) for i, ids in enumerate(texts)])
    alone = CompiledDecoder(model, new_store(model.config), kind, threads=1)
    for i, ids in enumerate(texts):
        for start in range(0, len(ids) - 1, 7):
            alone.run([Span(ids[start : min(start + 7, len(ids) - 1)], start, i, 0)])
        assert torch.equal(alone.run([Span(ids[-1:], len(ids) - 1, i)])[0], batch[i])


@pytest.mark.parametrize("name", ["gqa", "latent", "qk-norm, whole", "gpt-2", "wide heads", "gated delta"])
def test_the_most_likely_tokens_are_those_of_the_logits(name):
    model = shaken(VARIANTS[name])
    asked, told = (CompiledDecoder(model, new_store(model.config, rows=6), "bf16", threads=2) for _ in range(2))
    generator = torch.Generator().manual_seed(5)
    texts = [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in (9, 1, 30, 17, 16, 2)]
    for step in range(4):
        spans = [Span(ids[-1:] if step else ids, len(ids) - 1 if step else 0, i) for i, ids in enumerate(texts)]
        logits = told.run(spans)
        vocab = VOCAB if step % 2 else 40
        assert asked.most_likely(spans, vocab) == logits[:, :vocab].argmax(-1).tolist()
        for ids, token in zip(texts, logits.argmax(-1).tolist(), strict=True):
            ids.append(token)


def test_the_most_likely_tokens_of_more_rows_than_a_step_has():
    model = shaken(VARIANTS["gqa"])
    decoder = CompiledDecoder(model, new_store(model.config, rows=8), "fp32")
    ids = torch.randint(VOCAB, (8, 60), generator=torch.Generator().manual_seed(4)).tolist()
    spans = [Span(row, 0, i, wanted=i % 3) for i, row in enumerate(ids)]
    assert decoder.most_likely(spans, VOCAB) == decoder.run(spans).argmax(-1).tolist()
    assert decoder.most_likely([], VOCAB) == [] and decoder.run([]).shape == (0, VOCAB)


def test_where_a_soft_cap_may_make_logits_equal_they_are_asked():
    model = shaken(VARIANTS["soft caps"])
    decoder = CompiledDecoder(model, new_store(model.config), "fp32")
    assert decoder.most_likely([Span([1, 2], 0, 0)], VOCAB) is None


def test_a_thread_that_is_late_reads_nothing_of_the_next_step():
    """After a step without logits it has only operations without rows left, while another one begins anew."""
    model, draw = shaken(config(layers=1)), np.random.default_rng(0)
    decoders = [CompiledDecoder(model, new_store(model.config), "fp32", threads) for threads in (1, 3)]
    for number in range(300):
        ids = draw.integers(VOCAB, size=6).tolist()
        found = []
        for decoder in decoders:
            decoder.run([Span(ids[:5], 0, number % 4, wanted=0)])
            found.append(decoder.run([Span(ids[5:], 5, number % 4)]))
        assert torch.equal(*found), number


@pytest.mark.parametrize("name", ["gqa", "latent, queries compressed", "mamba-2", "gated delta, hybrid"])
def test_more_rows_than_a_step_has_are_done_in_several(name):
    model = shaken(VARIANTS[name])
    decoder = CompiledDecoder(model, new_store(model.config, rows=8), "fp32")
    ids = torch.randint(VOCAB, (8, 60), generator=torch.Generator().manual_seed(4))
    assert ids.numel() > 2 * MOST_ROWS
    found = decoder.run([Span(row, 0, i, wanted=i % 3) for i, row in enumerate(ids.tolist())])
    with torch.no_grad():
        right = torch.cat([logits[60 - i % 3 :] for i, logits in enumerate(model(ids))])
    torch.testing.assert_close(found, right, rtol=2e-5, atol=2e-5)


def test_a_position_beyond_the_context_is_an_error():
    model = shaken(VARIANTS["gpt-2"])
    decoder = CompiledDecoder(model, new_store(model.config), "fp32")
    with pytest.raises(ValueError, match="65 tokens do not fit 64 positions"):
        decoder.run([Span([1, 2], 63, 0)])


def test_an_unknown_format_is_named():
    model = shaken(VARIANTS["gqa"])
    with pytest.raises(ValueError, match=r"weights='int7' is unknown.*int"):
        CompiledDecoder.build(model, new_store(model.config), "int7")


REFUSED = {
    "recurrent": (config(LSTMConfig(12)), "LSTMConfig"),
    "experts": (config(ffn=MoEConfig(d_ff=16, num_experts=4, top_k=2)), "MoEConfig"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_cover_is_refused_with_a_reason(name):
    model, reason = Transformer(REFUSED[name][0]), REFUSED[name][1]
    refused = CompiledDecoder.build(model, Store([[], []], np.zeros((1, 4), np.int64)))
    assert isinstance(refused, Refusal) and reason in refused.reason and "layer 0" in refused.reason


def test_pages_that_are_not_whole_groups_of_keys_are_refused():
    store = new_store(VARIANTS["gqa"])
    store.page_size = 8
    refused = CompiledDecoder.build(shaken(VARIANTS["gqa"]), store)
    assert isinstance(refused, Refusal) and "8 tokens" in refused.reason


def test_a_preset_runs():
    options = dict(vocab_size=VOCAB, d_model=32, num_layers=1, num_heads=2, context_length=CONTEXT)
    model = Transformer(presets.llama(**options)).eval()
    decoder = CompiledDecoder.build(model, new_store(model.config), "fp32")
    with torch.no_grad():
        torch.testing.assert_close(decoder.run([Span([3, 5], 0, 0)])[0], model(torch.tensor([[3, 5]]))[0, -1])
