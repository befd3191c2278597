"""Every family held to `transformers` on small random models: logits, gradients, and files in both directions."""

import dataclasses
import sys
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoeConfig,
    Qwen2Config,
    Qwen3Config,
    modeling_rope_utils,
)

from groundup import kernels
from groundup.files import read_json, write_json
from groundup.model.families import weights_of
from groundup.model.pretrained import load_pretrained, save_pretrained
from groundup.model.weight_names import FamilyWeights, import_tensor

VOCAB, SEQ = 61, 13

ENDS: Any = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
SIZES: Any = dict(
    vocab_size=VOCAB, hidden_size=24, intermediate_size=36, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, **ENDS,
)  # fmt: skip
LATENT: Any = SIZES | dict(
    num_key_value_heads=4, kv_lora_rank=10, q_lora_rank=14, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5,
    first_k_dense_replace=3,
)  # fmt: skip
LLAMA3: Any = dict(
    rope_type="llama3", rope_theta=100.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
YARN: Any = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=16, beta_fast=4.0)
MSCALES: Any = YARN | dict(mscale=0.7, mscale_all_dim=0.9)
# The width is a square, as their sqrt(d_model) is rounded to float32 even in a model of float64.
GEMMA: Any = SIZES | dict(hidden_size=36, head_dim=10, sliding_window=4, query_pre_attn_scalar=7)
GEMMA3: Any = GEMMA | dict(num_hidden_layers=4, sliding_window_pattern=3)
LOCAL_LINEAR: Any = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 700.0},
}

EAGER: Any = dict(experts_implementation="eager")
NARROW: Any = LATENT | EAGER | dict(
    first_k_dense_replace=1, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=7, n_shared_experts=2,
    routed_scaling_factor=1.7,
)  # fmt: skip
V2: Any = NARROW | dict(rope_parameters=YARN)
GROUPS: Any = dict(n_group=4, topk_group=2)
MAMBA: Any = dict(
    vocab_size=VOCAB, hidden_size=24, num_hidden_layers=2, num_heads=6, head_dim=8, state_size=5, n_groups=2,
    chunk_size=8, **ENDS,
)  # fmt: skip

THEIRS = {
    "llama": lambda: LlamaConfig(**SIZES, head_dim=10),
    "llama_tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama_3.1": lambda: LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama_linear": lambda: LlamaConfig(**SIZES, rope_parameters=dict(rope_type="linear", factor=3.0)),
    "llama_yarn": lambda: LlamaConfig(**SIZES, rope_parameters=YARN),
    "llama_yarn_given": lambda: LlamaConfig(
        **SIZES, rope_parameters=YARN | dict(attention_factor=1.3, truncate=False, beta_slow=0.5)
    ),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=5),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2_windows": lambda: Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=14, attention_bias=True, rope_parameters=YARN),
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB, n_embd=24, n_layer=2, n_head=4, n_positions=32, **ENDS),
    "gemma2": lambda: Gemma2Config(**GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma2_uncapped": lambda: Gemma2Config(**GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None),
    "gemma3": lambda: Gemma3TextConfig(**GEMMA3, rope_parameters=LOCAL_LINEAR),
    "gemma3_untied": lambda: Gemma3TextConfig(
        **GEMMA3, tie_word_embeddings=False, attention_bias=True, final_logit_softcapping=5.0
    ),
    "olmo2": lambda: Olmo2Config(**SIZES),
    "olmo2_biases": lambda: Olmo2Config(**SIZES, attention_bias=True, tie_word_embeddings=True),
    "deepseek_v3": lambda: DeepseekV3Config(**LATENT),
    "deepseek_v3_yarn": lambda: DeepseekV3Config(**LATENT, rope_parameters=MSCALES),
    "deepseek_v3_half_split": lambda: DeepseekV3Config(**LATENT, rope_interleave=False),
    "deepseek_v3_full_rank": lambda: DeepseekV3Config(**LATENT | dict(q_lora_rank=None)),
    "deepseek_v2": lambda: DeepseekV2Config(**LATENT, rope_parameters=YARN),
    "deepseek_v3_experts": lambda: DeepseekV3Config(**NARROW, **GROUPS),
    "deepseek_v3_unlike_gates": lambda: DeepseekV3Config(**NARROW, n_group=1, topk_group=1, norm_topk_prob=False),
    "deepseek_v2_experts": lambda: DeepseekV2Config(**V2),
    "deepseek_v2_groups": lambda: DeepseekV2Config(**V2, **GROUPS, topk_method="group_limited_greedy"),
    "mixtral": lambda: MixtralConfig(**SIZES, **EAGER, num_local_experts=5, num_experts_per_tok=2),
    "mixtral_windows": lambda: MixtralConfig(**SIZES, **EAGER, num_local_experts=4, head_dim=10, sliding_window=4),
    "olmoe": lambda: OlmoeConfig(**SIZES, **EAGER, num_experts=6, num_experts_per_tok=3),
    "olmoe_renormalised": lambda: OlmoeConfig(
        **SIZES, **EAGER, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, attention_bias=True
    ),
    "mamba2": lambda: Mamba2Config(**MAMBA),
    "mamba2_tied": lambda: Mamba2Config(**MAMBA, tie_word_embeddings=True, use_bias=True, conv_kernel=3),
}  # fmt: skip


def tokens():
    return torch.randint(0, VOCAB, (2, SEQ), generator=torch.Generator().manual_seed(1))


def made(name):
    """A model of theirs, none of its weights at a value that hides it.

    Weights are multiples of 1/4096, so that 1 + w, which Gemma's norms multiply by, is exact in float32.
    """
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(THEIRS[name](), attn_implementation="eager")
    generator = torch.Generator().manual_seed(5)
    biases = [b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]
    with torch.no_grad():
        for p in [*model.parameters(), *biases]:
            p.copy_(((p + 0.2 * torch.randn(p.shape, generator=generator)) * 4096).round() / 4096)
    return model.eval()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(ours, theirs, the folder that theirs was written to), made once for each name."""

    @cache
    def make(name):
        folder, theirs = tmp_path_factory.mktemp(name), made(name)
        theirs.save_pretrained(folder)
        return load_pretrained(folder), theirs, folder

    return make


@pytest.mark.parametrize("name", THEIRS)
def test_logits_of_theirs_read(pair, name):
    ours, theirs, _ = pair(name)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=1e-4, atol=1e-4)


class InFloat64:
    """torch, except that its float32 is float64."""

    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def exact(monkeypatch):
    """A pair in float64 throughout: norms and rotary tables are float32 otherwise, on both sides."""

    def double(ours, theirs):
        for module in (sys.modules[type(theirs).__module__], modeling_rope_utils):
            monkeypatch.setattr(module, "torch", InFloat64())
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
        monkeypatch.setattr(
            kernels, "rope_frequencies", lambda d, theta, _: theta ** -(torch.arange(0.0, d, 2).double() / d)
        )
        ours, theirs = deepcopy(ours).double(), deepcopy(theirs)
        for module in theirs.modules():
            if "Rotary" in type(module).__name__:
                module.__init__(theirs.config)
        ours.compute_dtype = torch.float64
        return ours, theirs.double()

    return double


def loss(logits):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())


def without_offsets(family):
    """The layouts as they are for gradients: linear."""
    places = {name: dataclasses.replace(place, offset=0.0) for name, place in family.places.items()}
    return FamilyWeights(places, family.prefix, family.unused)


@pytest.mark.parametrize("name", THEIRS)
def test_logits_and_gradients_in_float64(pair, exact, name):
    _, _, folder = pair(name)
    ours, theirs = exact(*pair(name)[:2])
    # Where YaRN's bounds are not whole, our blend between them is computed in float32.
    tolerance = 1e-5 if name == "llama_yarn_given" else 1e-12
    logits, expected = ours(tokens()), theirs(tokens()).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)
    loss(logits).backward()
    loss(expected).backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters()}
    family = without_offsets(weights_of(ours.config, read_json(folder / "config.json"), gradients))
    for ours_name, p in ours.named_parameters():
        gradient = import_tensor(family, ours_name, gradients)
        assert gradient.norm() > 0, ours_name
        # A bias on keys alone moves no score (GPT-2), so its gradient is rounding.
        assert (p.grad - gradient).norm() <= 100 * tolerance * gradient.norm() + 1e-15, ours_name


@pytest.mark.parametrize("name", THEIRS)
def test_what_is_read_is_written_so_that_theirs_loads_it(pair, tmp_path, name):
    ours, theirs, folder = pair(name)
    save_pretrained(ours, None, tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager", dtype=torch.float32, **EAGER
    )
    again, problems = loaded
    assert not any(problems.values()), problems
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(tokens()).logits, theirs(tokens()).logits, rtol=1e-4, atol=1e-4)
    back = load_pretrained(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), back.parameters(), strict=True))
    if name != "deepseek_v3_half_split":  # which is written with its pairs side by side
        first, second = (load_file(d / "model.safetensors") for d in (folder, tmp_path))
        assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "deepseek_v3_experts", "deepseek_v2_groups"])
def test_files_that_join_their_experts(pair, tmp_path, name):
    ours, theirs, folder = pair(name)
    theirs.save_pretrained(tmp_path, save_original_format=False)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert any(n.endswith(".experts.gate_up_proj") for n in names) and not any(".experts.0." in n for n in names)
    joined = load_pretrained(tmp_path)
    assert joined.config == ours.config
    assert all(torch.equal(p, q) for p, q in zip(ours.state_dict().values(), joined.state_dict().values(), strict=True))
    assert not any(buffer.is_meta for buffer in joined.buffers())


def test_layers_that_predict_further_tokens_are_passed_over(pair, tmp_path):
    """The published DeepSeek-V3 has one behind its last layer; without its key in the config it does not belong."""
    ours, _, folder = pair("deepseek_v3")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.layers.3.eh_proj.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    config = read_json(folder / "config.json") | {"num_nextn_predict_layers": 1}
    write_json(tmp_path / "config.json", config)
    again = load_pretrained(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), again.parameters(), strict=True))
    write_json(tmp_path / "config.json", config | {"num_nextn_predict_layers": 0})
    with pytest.raises(ValueError, match=r"not in the config: model\.layers\.3\.eh_proj\.weight"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["gemma3", "deepseek_v3_yarn"])
def test_half_precision_files(tmp_path, name):
    """Gemma's 1 + w is formed after the file's bfloat16, and w is what a bfloat16 file gets."""
    made(name).bfloat16().save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(tmp_path / "theirs")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=1e-4, atol=1e-4)
    save_pretrained(ours, None, tmp_path / "back", dtype=torch.bfloat16)
    first, second = (load_file(tmp_path / d / "model.safetensors") for d in ("theirs", "back"))
    assert {t.dtype for t in second.values()} == {torch.bfloat16}
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_greedy_text_with_our_caches_is_theirs(pair):
    """Windows of four tokens, local and global layers, two rotary bases: each new token by our cache and theirs."""
    ours, theirs, _ = pair("gemma3")
    prompt = tokens()[:1]
    expected = theirs.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    caches, text = ours.new_caches(), prompt
    with torch.no_grad():
        new = prompt
        for _ in range(8):
            new = ours(new, caches=caches)[:, -1:].argmax(-1)
            text = torch.cat([text, new], 1)
    assert torch.equal(text, expected)
