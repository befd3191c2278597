"""Which class a config is, and its config.json read and written; `test_interop` holds it to transformers."""

import json
import math
from dataclasses import replace

import pytest
import torch

from groundup import presets
from groundup.model import (
    AttentionConfig,
    BlockConfig,
    LatentAttentionConfig,
    LearnedPositions,
    Mamba2Config,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    Rope,
    TopKRouter,
    Transformer,
)
from groundup.model.balance import Balance
from groundup.model.families import ARCHITECTURES, family_of, from_hugging_face, to_hugging_face
from groundup.model.multi_token import MultiTokenConfig
from groundup.model.rope_scaling import LinearScaling, Llama3Scaling, NTKScaling, YarnScaling
from groundup.model.router import ExpertChoiceRouter

DENSE = MLPConfig(40)


def config(*mixers, num_layers=4, ffns=(DENSE,), placement="pre", **options):
    blocks = tuple(BlockConfig(mixer, ffn, placement=placement) for mixer in mixers for ffn in ffns)
    return ModelConfig(61, 32, num_layers, blocks, **options)


def heads(**options):
    return AttentionConfig(4, 2, 8, **options)


GPT2 = presets.gpt2(vocab_size=61, num_layers=2, d_model=32, num_heads=4, context_length=32)
GEMMA = dict(placement="sandwich", scale_embeddings=True, tie_embeddings=True)
LOCAL, GLOBAL = heads(qk_norm=True, window=5, rope=Rope(50.0)), heads(qk_norm=True, rope=Rope(9e5))
YARN = YarnScaling(40.0, 64, fast_turns=16.0, given_amplitude=1.0)
M = 0.1 * 0.75 * math.log(40.0) + 1
LATENT = LatentAttentionConfig(4, 12, 8, 6, 5, q_rank=10, rope=Rope(777.0, scaling=YARN), scale=14**-0.5 * M * M)
SIGMOID = TopKRouter("sigmoid", True, 2.0, num_groups=4, top_groups=2, bias_rate=0.0)
SOFTMAX = TopKRouter(renormalise=False)
CONFIGS = {
    "llama": config(heads(rope=Rope(777.0)), context_length=99, tie_embeddings=True, norm_eps=1e-3),
    "mistral": config(heads(window=5)),
    "qwen2": config(heads(bias=True)),
    "qwen3": config(heads(qk_norm=True, window=5), heads(qk_norm=True)),
    "gpt2": GPT2,
    "gemma2": config(
        heads(window=5, softcap=2.0, scale=0.25), heads(softcap=2.0, scale=0.25), **GEMMA, logit_softcap=3.0
    ),
    "gemma3_text": config(LOCAL, LOCAL, replace(GLOBAL, rope=Rope(9e5, scaling=LinearScaling(8.0))), **GEMMA),
    "olmo2": config(heads(qk_norm="whole"), placement="inner"),
    "deepseek_v3": config(LATENT, norm_eps=1e-6, ffns=(DENSE, *[MoEConfig(8, 2, 9, 1, SIGMOID)] * 3)),
    "deepseek_v2": config(LATENT, norm_eps=1e-6, ffns=[MoEConfig(8, 2, 9, 2, replace(SOFTMAX, scale=3.0))]),
    "mixtral": config(heads(window=5, rope=Rope(1e6)), ffns=[MoEConfig(6, 2, 20)]),
    "olmoe": config(heads(qk_norm="whole"), ffns=[MoEConfig(6, 2, 20, router=TopKRouter(renormalise=False))]),
    "mamba2": config(Mamba2Config(8, 8, 5, 2, 3, bias=True), ffns=[None], tie_embeddings=True),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_a_config_is_its_family_and_comes_back(family):
    made = CONFIGS[family]
    written = to_hugging_face(made)
    assert family_of(made) == written["model_type"] == family
    assert written["architectures"] == [ARCHITECTURES[family]]
    assert from_hugging_face(written) == made
    assert from_hugging_face(json.loads(json.dumps(written))) == made
    assert from_hugging_face({**written, "architectures": None}) == made  # the model_type alone will do


def test_layers_that_are_not_used_do_not_count():
    """Of two kinds of blocks a model of one layer has the first only."""
    assert family_of(config(heads(), heads(window=3), num_layers=1)) == "llama"
    with pytest.raises(ValueError, match="some layers only"):
        family_of(config(heads(), heads(window=3), num_layers=2))


def test_every_reason_is_given_at_once():
    made = config(heads(softcap=2.0), logit_softcap=3.0, final_norm=False)
    with pytest.raises(ValueError, match="no final norm; logit_softcap; attention softcap"):
        family_of(made)


@pytest.mark.parametrize("scaling", [LinearScaling(3.0), Llama3Scaling(4.0, 2.0, 5.0, 99), YARN, YarnScaling(2.0, 64)])
def test_rotary_scalings_are_written_for_both_versions_of_transformers(scaling):
    made = config(heads(rope=Rope(500.0, scaling=scaling)))
    written = to_hugging_face(made)
    assert from_hugging_face(written) == made
    for key in ("rope_scaling", "rope_parameters"):
        assert from_hugging_face({**written, key: None}) == made
    with pytest.raises(ValueError, match="rope_scaling and rope_parameters differ in factor"):
        from_hugging_face({**written, "rope_scaling": {**written["rope_scaling"], "factor": 7.0}})


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (config(heads(causal=False)), r"attention that looks ahead \(causal=False\)"),
        (config(LOCAL, replace(GLOBAL, causal=False), **GEMMA), r"attention that looks ahead \(causal=False\)"),
        (config(heads(sinks=True)), r"blocks\.0\.mixer\.sinks=True \(its class has False\)"),
        (config(heads(alibi=True, rope=None)), "attention without a rotary embedding or learned positions"),
        (config(heads(window=5, sink_tokens=2)), r"mixer\.sink_tokens=2"),
        (config(heads(scale=0.5)), r"mixer\.scale=0\.5"),
        (config(heads(rope=Rope(fraction=0.5))), r"rope\.fraction=0\.5"),
        (config(heads(rope=Rope(scaling=NTKScaling(2.0)))), "NTKScaling"),
        (config(heads(qk_norm="whole")), r"qk_norm='whole'"),
        (config(heads(qk_norm=True), placement="inner"), "without qk_norm 'whole'"),
        (config(LOCAL, replace(GLOBAL, qk_norm=False), **GEMMA), r"blocks\.1\.mixer\.qk_norm=False"),
        (config(LOCAL, GLOBAL, placement="sandwich"), "without scale_embeddings"),
        (config(LOCAL, replace(GLOBAL, rope=None), **GEMMA), r"blocks\.1\.mixer\.rope=None"),
        (config(replace(LOCAL, scale=0.3), **GEMMA), "is no 1 / sqrt"),
        (config(LATENT), "norm_eps=1e-05 with latent attention, where the class has 1e-06"),
        (config(replace(LATENT, window=3), norm_eps=1e-6), "a window with latent attention"),
        (config(replace(LATENT, rope=Rope()), norm_eps=1e-6), "a scale of scores without YaRN"),
        (config(replace(LATENT, scale=0.1), norm_eps=1e-6), "a scale of scores below"),
        (config(heads(), ffns=[MoEConfig(6, 2, 20, 1)]), r"ffn\.num_shared=1"),
        (config(heads(), ffns=[MoEConfig(6, 2, 20, router=SOFTMAX)]), r"ffn\.router\.renormalise=False"),
        (config(heads(), ffns=[MoEConfig(6, 2, 20, capacity_factor=1.5)]), "a capacity of experts"),
        (config(heads(), ffns=[MoEConfig(6, 2, 20, gated=False)]), "experts without a gate"),
        (config(heads(), ffns=[MoEConfig(6, 2, 20, router=ExpertChoiceRouter())]), "otherwise than by top-k"),
        (config(heads(), ffns=[MoEConfig(6, 2, 20), DENSE]), "blocks of AttentionConfig, MoEConfig, MLPConfig"),
        (config(LATENT, norm_eps=1e-6, ffns=[MoEConfig(8, 2, 9, 1, SIGMOID), DENSE]), "dense layers behind"),
        (config(LATENT, norm_eps=1e-6, ffns=[MoEConfig(8, 2, 9, 0, SIGMOID)]), "none of them shared"),
        (config(LATENT, norm_eps=1e-6, ffns=[MoEConfig(8, 2, 9, 1)]), "norm_topk_prob=True is not supported in Deep"),
        (config(Mamba2Config(3, 8), ffns=[None]), "24 inner channels of Mamba-2, no multiple of d_model=32"),
        (config(heads(), LATENT), "blocks of AttentionConfig, MLPConfig, LatentAttentionConfig"),
    ],
)  # fmt: skip
def test_what_a_class_would_lose_is_named(made, reason):
    with pytest.raises(ValueError, match=f"no Hugging Face class expresses this model: .*{reason}"):
        family_of(made)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tie_embeddings": False, "norm_bias": False}, "without a bias on every linear layer and norm"),
        ({"blocks": (replace(GPT2.blocks[0], mixer=replace(GPT2.blocks[0].mixer, num_kv_heads=2)),)}, "shared key"),
        ({"blocks": (replace(GPT2.blocks[0], mixer=replace(GPT2.blocks[0].mixer, d_head=6)),)}, "heads fill d_model"),
        ({"blocks": (replace(GPT2.blocks[0], mixer=replace(GPT2.blocks[0].mixer, qk_norm=True)),)}, "qk_norm"),
        ({"blocks": (replace(GPT2.blocks[0], ffn=MLPConfig(8, bias=True)),)}, "a gated feed-forward"),
    ],
)
def test_what_gpt2_does_not_have(changes, reason):
    with pytest.raises(ValueError, match=reason):
        family_of(replace(GPT2, **changes))


PUBLISHED = {
    "gpt2-xl": "gpt2", "llama-2-70b": "llama", "llama-3.1-405b": "llama", "smollm2-135m": "llama",
    "mistral-7b": "mistral", "qwen-2.5-7b": "qwen2", "qwen-3-32b": "qwen3", "gemma-3-27b": "gemma3_text",
    "mixtral-8x22b": "mixtral",
    "olmoe-1b-7b": "olmoe", "deepseek-v2-lite": "deepseek_v2", "deepseek-v2": "deepseek_v2",
    "deepseek-v3": "deepseek_v3", "mamba-2-2.7b": "mamba2",
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_of_their_families(name):
    assert family_of(presets.published(name)) == PUBLISHED[name]


def test_modules_that_predict_further_tokens_are_not_written():
    made = replace(presets.published("deepseek-v3"), multi_token=MultiTokenConfig())
    with pytest.raises(ValueError, match="multi_token=.* \\(its class has None\\)"):
        family_of(made)


def test_what_is_about_training_alone_is_left_behind():
    """A config.json has no room for balancing losses nor for the rate of a bias."""
    trained = MoEConfig(8, 2, 9, 1, replace(SIGMOID, bias_rate=0.001), Balance(sequence=1e-4))
    made = config(LATENT, norm_eps=1e-6, ffns=[trained])
    assert from_hugging_face(to_hugging_face(made)).block(0).ffn == MoEConfig(8, 2, 9, 1, SIGMOID)


LLAMA = {
    "model_type": "llama", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip


def test_what_a_file_leaves_out_is_the_classs_default():
    read = from_hugging_face(LLAMA)
    mixer = read.block(0).mixer
    assert (mixer.num_kv_heads, mixer.d_head, mixer.rope) == (4, 8, Rope(10_000.0))
    assert (read.context_length, read.norm_eps, read.tie_embeddings) == (2048, 1e-6, False)
    assert from_hugging_face({**LLAMA, "model_type": "qwen3"}).block(0).mixer.d_head == 128
    assert from_hugging_face({**LLAMA, "model_type": "qwen2"}).block(0).mixer.bias
    assert from_hugging_face({**LLAMA, "model_type": "mistral"}).block(0).mixer.window == 4096
    gpt2 = {"model_type": "gpt2", "vocab_size": 61, "n_embd": 32, "n_layer": 1, "n_head": 4}
    read = from_hugging_face(gpt2)
    assert read.positions == LearnedPositions(1024) and read.block(0).ffn.d_ff == 128 and read.tie_embeddings


GEMMA3 = {**LLAMA, "model_type": "gemma3_text", "num_hidden_layers": 12, "head_dim": 8}


def test_gemmas_defaults():
    read = from_hugging_face(GEMMA3)
    local, wide = read.block(0).mixer, read.block(5).mixer
    assert [read.block(i).mixer.window for i in range(12)] == ([4096] * 5 + [None]) * 2 and len(read.blocks) == 6
    assert (local.rope, wide.rope) == (Rope(10_000.0), Rope(1_000_000.0))
    assert (local.num_kv_heads, local.scale, read.logit_softcap, read.tie_embeddings) == (4, 1 / 16, None, True)
    old = {"rope_theta": 5.0, "rope_local_base_freq": 7.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    read = from_hugging_face({**GEMMA3, **old})
    assert read.block(0).mixer.rope == Rope(7.0)
    assert read.block(5).mixer.rope == Rope(5.0, scaling=LinearScaling(8.0))
    read = from_hugging_face({**GEMMA3, "model_type": "gemma2"})
    assert [block.mixer.window for block in read.blocks] == [4096, None]
    assert (read.block(0).mixer.softcap, read.logit_softcap) == (50.0, 30.0)


DEEPSEEK = {**LLAMA, "model_type": "deepseek_v3", "first_k_dense_replace": 2}


def test_deepseeks_scale_is_sharpened_twice():
    """The published DeepSeek-V3: factor 40, both weights 1: the amplitude's two cancel, the scale keeps the square."""
    yarn = {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1}
    mixer = (
        from_hugging_face({**DEEPSEEK, "rope_scaling": {**yarn, "original_max_position_embeddings": 4096}})
        .block(0)
        .mixer
    )
    assert mixer.rope.scaling == YarnScaling(40.0, 4096, given_amplitude=1.0)
    assert mixer.scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)
    assert from_hugging_face(DEEPSEEK).block(0).mixer == LatentAttentionConfig(4, 512, 128, 64, 128, 1536)
    assert from_hugging_face({**DEEPSEEK, "q_lora_rank": None}).block(0).mixer.q_rank is None


@pytest.mark.parametrize(
    "given", [{"rope_theta": 5.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}, "rope_theta": 7.0}]
)
def test_the_rotary_base_is_read_from_either_place(given):
    assert from_hugging_face({**LLAMA, **given}).block(0).mixer.rope == Rope(5.0)


QWEN3 = {**LLAMA, "model_type": "qwen3", "num_hidden_layers": 6, "use_sliding_window": True, "sliding_window": 3}
FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("given", "windows"),
    [
        ({"layer_types": [FULL, SLIDING] * 3}, (None, 3)),
        ({"layer_types": [SLIDING, SLIDING, FULL] * 2}, (3, 3, None)),
        ({"layer_types": [SLIDING] * 5 + [FULL]}, (3, 3, 3, 3, 3, None)),
        ({"max_window_layers": 4}, (None, None, None, None, 3, 3)),
        ({"max_window_layers": 6}, (None,)),
        ({"use_sliding_window": False, "layer_types": [SLIDING] * 6}, (None,)),
    ],
)
def test_windows_by_layer_are_the_shortest_list_that_repeats(given, windows):
    read = from_hugging_face({**QWEN3, **given})
    assert tuple(block.mixer.window for block in read.blocks) == windows


EXPERTS = {**DEEPSEEK, "first_k_dense_replace": 1, "moe_intermediate_size": 9, "num_experts_per_tok": 8}
MAMBA = {"model_type": "mamba2", "num_heads": 8, "head_dim": 8, "intermediate_size": None}


@pytest.mark.parametrize("limit", [[0.0, math.inf], (0, "Infinity"), [0.0, {"__float__": "Infinity"}], None])
def test_steps_without_a_limit_are_said_in_several_ways(limit):
    assert from_hugging_face({**LLAMA, **MAMBA, "time_step_limit": limit}).block(0).mixer.num_groups == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, "architecture 'lama' is not supported"),
        ({"model_type": None}, "is not supported"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_hidden_layers": 2.0}, r"num_hidden_layers=2\.0; expected an integer"),
        ({"hidden_act": "silue"}, "hidden_act='silue' is not supported; did you mean 'silu'"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0\.5 is not supported.*expected 1\.0"),
        ({**QWEN3, "layer_types": [FULL]}, "layer_types=.*expected 6"),
        ({**QWEN3, "layer_types": ["chunked_attention"] * 6}, "layer_types=.*expected 6"),
        ({"model_type": "gpt2", "n_embd": 30, "n_head": 4}, "n_embd=30 is not divisible by n_head=4"),
        ({"model_type": "gpt2", "scale_attn_weights": False}, "scale_attn_weights=False is not supported"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention=True"),
        ({"attention_multiplier": 0.5}, r"attention_multiplier=0\.5 is not supported in LlamaForCausalLM; expected no"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias=True is not supported in Mistral"),
        ({"model_type": "qwen3", "mlp_bias": True}, "mlp_bias=True"),
        ({"num_local_experts": 8}, "num_local_experts=8"),
        ({**GEMMA3, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50"),
        ({**GEMMA3, "use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ({**GEMMA3, "sliding_window": None}, "sliding_window=None, yet layer_types"),
        ({**GEMMA3, "rope_parameters": {"chunked": {}}}, "'chunked' is not supported; expected 'sliding_attention'"),
        ({**DEEPSEEK, "first_k_dense_replace": 1}, "moe_intermediate_size is missing"),
        ({**EXPERTS, "moe_layer_freq": 2}, "moe_layer_freq=2 is not supported"),
        ({**EXPERTS, "scoring_func": "softmax"}, "scoring_func='softmax' is not supported"),
        ({**EXPERTS, "num_experts_per_tok": 300}, "top_k=300 is more than num_experts=256"),
        ({**EXPERTS, "n_group": 7}, "does not divide into router.num_groups=7"),
        ({**EXPERTS, "model_type": "deepseek_v2", "norm_topk_prob": True}, "norm_topk_prob=True is not supported"),
        ({**EXPERTS, "model_type": "deepseek_v2", "topk_method": "noaux_tc"}, "topk_method='noaux_tc' is not"),
        ({**EXPERTS, "model_type": "deepseek_v2", "num_experts_per_tok": None}, "num_experts_per_tok is missing"),
        ({**MAMBA, "expand": 3}, "expand=3 times hidden_size=32 differs from num_heads=8 times head_dim=8"),
        ({**MAMBA, "time_step_limit": [0.01, 0.1]}, "time_step_limit=.* is not supported; expected from 0 to Infinity"),
        ({**MAMBA, "time_step_limit": "none"}, "time_step_limit='none'"),
        ({**MAMBA, "hidden_act": "gelu"}, "hidden_act='gelu' is not supported in Mamba2ForCausalLM; expected silu"),
        ({**DEEPSEEK, "rms_norm_eps": 1e-5}, "rms_norm_eps=1e-05 is not supported with latent attention; use 1e-06"),
        ({**DEEPSEEK, "num_key_value_heads": 2}, "num_key_value_heads=2 is not supported with latent attention"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "lama3"}}, "rope_type='lama3' is not supported; did you mean 'llama3'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing; expected a number above 0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 3}}, "'beta_fast' is not supported with"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 0.5}}, "slow_turns=1.0 must be below"),
        ({"rope_parameters": {"mrope_section": [1]}}, "mrope_section"),
        ({"rope_parameters": [1, 2]}, "rope_parameters=.*expected a JSON object"),
        ({"rope_theta": "1e4"}, "rope_theta='1e4'; expected a number"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps=nan; expected a number above 0"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no'; expected true or false"),
        ({"num_attention_heads": 2**62}, "num_attention_heads=4611686018427387904; expected an integer of at most"),
        ({"architectures": "LlamaForCausalLM"}, "architectures=.*expected a list"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "model_type='llama' and architectures=.* are of two families"),
    ],
)
def test_what_is_not_supported_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        from_hugging_face({**LLAMA, **changes})


def test_keys_about_other_things_are_passed_over():
    """Published files carry keys of training, generation and other programs."""
    others = {"use_cache": True, "transformers_version": "4.1", "auto_map": {"a": "b"}, "pretraining_tp": 1, "x": [1]}
    assert from_hugging_face({**LLAMA, **others}) == from_hugging_face(LLAMA)
    neutral = {"partial_rotary_factor": 1.0, "attn_logit_softcapping": None, "use_mrope": False, "mlp_bias": False}
    assert from_hugging_face({**LLAMA, **neutral}) == from_hugging_face(LLAMA)


DEEP = {"a": 1}
for _ in range(50):
    DEEP = {"a": [DEEP]}
HOSTILE = [
    10**4000, -(10**400), 2**63, 2**31, 65_536, -1, 0, 0.5, math.nan, math.inf, 1e308, 5e-324, True, None, "",
    "x" * 10**4, [], [None], [[]], {}, DEEP, [{}] * 100, ["full_attention"] * 4, {"rope_type": []},
    {"full_attention": 3}, {"rope_type": "yarn", "factor": 1e300},
    {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": -1},
]  # fmt: skip


@pytest.mark.parametrize("family", CONFIGS)
def test_hostile_values_are_refused_or_read_but_nothing_else(family):
    """Each key in turn holds each of these; what is read can be built, however large, without memory."""
    written = to_hugging_face(CONFIGS[family])
    for key in (*written, "rope_scaling", "rope_parameters", "layer_types", "quantization_config", "sliding_window"):
        for value in HOSTILE:
            try:
                read = from_hugging_face({**written, key: value})
            except ValueError as error:
                assert len(str(error)) < 600
                continue
            assert isinstance(read, ModelConfig)
            if type(value) is int:
                with torch.device("meta"):
                    Transformer(replace(read, num_layers=1))


def test_all_sizes_at_their_largest_can_be_counted():
    sizes = ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "head_dim", "num_hidden_layers")
    most = {}
    for key in sizes:
        with pytest.raises(ValueError) as error:
            from_hugging_face({**LLAMA, key: 2**62})
        most[key] = int(str(error.value).rsplit(" ", 1)[1])
    with torch.device("meta"):
        model = Transformer(replace(from_hugging_face({**LLAMA, **most}), num_layers=1))
    assert sum(p.numel() for p in model.parameters()) > 2**60
