"""Which class a config is, and its config.json read and written; `test_pretrained` holds it to transformers."""

from dataclasses import replace

import pytest

from groundup import presets
from groundup.model import AttentionConfig, BlockConfig, LearnedPositions, MLPConfig, ModelConfig, Rope
from groundup.model.families import ARCHITECTURES, family_of, from_hugging_face, to_hugging_face


def config(*mixers, num_layers=4, **options):
    blocks = tuple(BlockConfig(mixer, options.get("ffn", MLPConfig(40))) for mixer in mixers)
    return ModelConfig(61, 32, num_layers, blocks, **{k: v for k, v in options.items() if k != "ffn"})


def heads(**options):
    return AttentionConfig(4, 2, 8, **options)


GPT2 = presets.gpt2(vocab_size=61, num_layers=2, d_model=32, num_heads=4, context_length=32)
CONFIGS = {
    "llama": config(heads(rope=Rope(777.0)), context_length=99, tie_embeddings=True, norm_eps=1e-3),
    "mistral": config(heads(window=5)),
    "qwen2": config(heads(bias=True)),
    "qwen3": config(heads(qk_norm=True, window=5), heads(qk_norm=True)),
    "gpt2": GPT2,
}


@pytest.mark.parametrize("family", CONFIGS)
def test_a_config_is_its_family_and_comes_back(family):
    made = CONFIGS[family]
    written = to_hugging_face(made)
    assert family_of(made) == written["model_type"] == family
    assert written["architectures"] == [ARCHITECTURES[family]]
    assert from_hugging_face(written) == made
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
    ],
)
def test_what_is_not_supported_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        from_hugging_face({**LLAMA, **changes})
