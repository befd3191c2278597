"""Names and layouts of Hugging Face files, by hand: fused, transposed, bare, and back."""

import pytest
import torch

from groundup import presets
from groundup.model import Transformer
from groundup.model.weight_names import (
    base_prefix,
    export_tensors,
    exported_name,
    exported_shapes,
    import_tensor,
    known_names,
)

SMALL = dict(vocab_size=11, num_layers=2, d_model=8, num_heads=2, context_length=16)
MODELS = {
    "llama": lambda: Transformer(presets.llama(**SMALL, num_kv_heads=1, d_ff=12)),
    "gpt2": lambda: Transformer(presets.gpt2(**SMALL)),
}


def state(family):
    """Parameters with random values, so that no two tensors are alike."""
    generator = torch.Generator().manual_seed(3)
    return {n: torch.randn(p.shape, generator=generator) for n, p in MODELS[family]().named_parameters()}


@pytest.mark.parametrize(
    ("family", "ours", "theirs"),
    [
        ("llama", "embed.weight", "model.embed_tokens.weight"),
        ("llama", "blocks.10.mixer.wk.bias", "model.layers.10.self_attn.k_proj.bias"),
        ("qwen3", "blocks.0.mixer.q_norm.weight", "model.layers.0.self_attn.q_norm.weight"),
        ("mistral", "blocks.1.ffn_norm.weight", "model.layers.1.post_attention_layernorm.weight"),
        ("qwen2", "head.weight", "lm_head.weight"),
        ("gpt2", "positions.weight", "transformer.wpe.weight"),
        ("gpt2", "blocks.3.mixer.wv.weight", "transformer.h.3.attn.c_attn.weight"),
        ("gpt2", "final_norm.bias", "transformer.ln_f.bias"),
    ],
)
def test_names_by_hand(family, ours, theirs):
    assert exported_name(family, ours) == theirs


def test_gpt2_fuses_queries_keys_and_values_along_transposed_outputs():
    ours = {f"blocks.0.mixer.{w}.weight": torch.full((2, 3), i) for i, w in enumerate(("wq", "wk", "wv"))}
    ours |= {f"blocks.0.mixer.{w}.bias": torch.full((2,), i) for i, w in enumerate(("wq", "wk", "wv"))}
    theirs = export_tensors("gpt2", dict(reversed(ours.items())))  # in whatever order they come
    assert theirs.keys() == {"transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.bias"}
    assert theirs["transformer.h.0.attn.c_attn.weight"].tolist() == [[0, 0, 1, 1, 2, 2]] * 3
    assert theirs["transformer.h.0.attn.c_attn.bias"].tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("family", MODELS)
def test_every_parameter_goes_out_and_comes_back(family):
    ours = state(family)
    theirs = export_tensors(family, ours)
    back = {name: import_tensor(family, name, theirs[exported_name(family, name)]) for name in ours}
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())


@pytest.mark.parametrize("family", MODELS)
def test_shapes_are_known_without_the_weights(family):
    ours = state(family)
    assert exported_shapes(family, ours) == {n: tuple(t.shape) for n, t in export_tensors(family, ours).items()}
    assert all(t.device.type == "cpu" for t in ours.values())


def test_a_parameter_that_no_file_has_is_an_error():
    with pytest.raises(KeyError):
        exported_name("llama", "blocks.0.mixer.router.weight")
    with pytest.raises(KeyError):
        exported_name("llama", "positions.weight")


def test_files_of_the_inner_model_alone_leave_the_prefix_out():
    assert (base_prefix("gpt2"), base_prefix("qwen3")) == ("transformer.", "model.")
    bare = known_names(["wte.weight", "h.0.ln_1.bias", "lm_head.weight"], "gpt2")
    assert bare == {
        "transformer.wte.weight": "wte.weight",
        "transformer.h.0.ln_1.bias": "h.0.ln_1.bias",
        "lm_head.weight": "lm_head.weight",
    }
    full = ["model.norm.weight", "lm_head.weight"]
    assert known_names(iter(full), "llama") == {name: name for name in full}


def test_tables_beside_the_weights_are_left_out():
    names = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.norm.weight"]
    assert known_names(names, "llama") == {"model.norm.weight": "model.norm.weight"}
    tables = ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias", "transformer.h.0.attn.c_attn.bias"]
    assert list(known_names(tables, "gpt2")) == ["transformer.h.0.attn.c_attn.bias"]
