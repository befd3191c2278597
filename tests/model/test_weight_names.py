"""Names and layouts of Hugging Face files, by hand: joined, transposed, interleaved, shifted, stacked, and back."""

import pytest
import torch

from groundup import presets
from groundup.model import Transformer
from groundup.model.families import weights_of
from groundup.model.weight_names import (
    FamilyWeights,
    Place,
    export_tensors,
    exported_name,
    exported_shapes,
    import_tensor,
    known_names,
)

SMALL = dict(vocab_size=11, num_layers=2, d_model=8, num_heads=2, context_length=16)
MODELS = {
    "llama": Transformer(presets.llama(**SMALL, num_kv_heads=1, d_ff=12)),
    "gpt2": Transformer(presets.gpt2(**SMALL)),
}
FAMILIES = {name: weights_of(model.config) for name, model in MODELS.items()}


def state(family):
    """Tensors with random values, so that no two are alike."""
    generator = torch.Generator().manual_seed(3)
    return {n: torch.randn(p.shape, generator=generator) for n, p in MODELS[family].named_parameters()}


@pytest.mark.parametrize(
    ("family", "ours", "theirs"),
    [
        ("llama", "embed.weight", "model.embed_tokens.weight"),
        ("llama", "blocks.10.mixer.wk.bias", "model.layers.10.self_attn.k_proj.bias"),
        ("llama", "blocks.0.mixer.q_norm.weight", "model.layers.0.self_attn.q_norm.weight"),
        ("llama", "blocks.1.ffn_norm.weight", "model.layers.1.post_attention_layernorm.weight"),
        ("llama", "head.weight", "lm_head.weight"),
        ("gpt2", "positions.weight", "transformer.wpe.weight"),
        ("gpt2", "blocks.3.mixer.wv.weight", "transformer.h.3.attn.c_attn.weight"),
        ("gpt2", "final_norm.bias", "transformer.ln_f.bias"),
    ],
)
def test_names_by_hand(family, ours, theirs):
    assert exported_name(FAMILIES[family], ours) == theirs


def test_gpt2_joins_queries_keys_and_values_along_transposed_outputs():
    ours = {f"blocks.0.mixer.{w}.weight": torch.full((8, 3), i) for i, w in enumerate(("wq", "wk", "wv"))}
    ours |= {f"blocks.0.mixer.{w}.bias": torch.full((8,), i) for i, w in enumerate(("wq", "wk", "wv"))}
    theirs = export_tensors(FAMILIES["gpt2"], dict(reversed(ours.items())))  # in whatever order they come
    assert theirs.keys() == {"transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.bias"}
    row = [0] * 8 + [1] * 8 + [2] * 8
    assert theirs["transformer.h.0.attn.c_attn.weight"].tolist() == [row] * 3
    assert theirs["transformer.h.0.attn.c_attn.bias"].tolist() == row


@pytest.mark.parametrize("family", MODELS)
def test_every_parameter_goes_out_and_comes_back(family):
    ours = state(family)
    theirs = export_tensors(FAMILIES[family], ours)
    back = {name: import_tensor(FAMILIES[family], name, theirs) for name in ours}
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())


@pytest.mark.parametrize("family", MODELS)
def test_shapes_are_known_without_the_weights(family):
    ours = state(family)
    shapes = exported_shapes(FAMILIES[family], ours)
    assert shapes == {n: tuple(t.shape) for n, t in export_tensors(FAMILIES[family], ours).items()}
    assert all(t.device.type == "cpu" for t in ours.values())


def test_parts_of_unlike_sizes_and_an_offset():
    family = FamilyWeights(
        {
            "a": Place("ab", sizes=(2, 1), part=0),
            "b": Place("ab", sizes=(2, 1), part=1),
            "norm": Place("n", offset=1.0),
        }
    )
    theirs = {"ab.weight": torch.tensor([[1.0], [2.0], [3.0]]), "n.weight": torch.tensor([0.5, -1.0])}
    ours = {name: import_tensor(family, name, theirs) for name in ("a.weight", "b.weight", "norm.weight")}
    assert {name: t.flatten().tolist() for name, t in ours.items()} == {
        "a.weight": [1.0, 2.0], "b.weight": [3.0], "norm.weight": [1.5, 0.0],
    }  # fmt: skip
    back = export_tensors(family, ours)
    assert back.keys() == theirs.keys() and all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_an_offset_is_added_in_float32():
    """In bfloat16 the numbers above 1 are 1/128 apart, and 1 + 1/1024 would be 1."""
    family = FamilyWeights({"norm": Place("n", offset=1.0)})
    small = torch.tensor([2.0**-10], dtype=torch.bfloat16)
    assert import_tensor(family, "norm.weight", {"n.weight": small}).item() == 1 + 2.0**-10


def test_a_stack_is_expert_by_expert_or_one_tensor_of_two_stacks():
    one = FamilyWeights({"up": Place("experts.{e}.up", experts=2)})
    stack = torch.arange(12.0).view(2, 3, 2)
    theirs = export_tensors(one, {"up.weight": stack})
    assert list(theirs) == ["experts.0.up.weight", "experts.1.up.weight"]
    assert torch.equal(theirs["experts.1.up.weight"], stack[1])
    assert torch.equal(import_tensor(one, "up.weight", theirs), stack)
    fused = FamilyWeights(
        {"gate.weight": Place("gu", sizes=(3, 3), part=0), "up.weight": Place("gu", sizes=(3, 3), part=1)}
    )
    joined = export_tensors(fused, {"up.weight": stack, "gate.weight": -stack})
    assert list(joined) == ["gu"] and joined["gu"].tolist() == torch.cat([-stack, stack], 1).tolist()
    assert torch.equal(import_tensor(fused, "up.weight", joined), stack)


def test_a_parameter_that_no_file_has_is_an_error():
    with pytest.raises(KeyError):
        exported_name(FAMILIES["llama"], "blocks.0.mixer.router.weight")
    with pytest.raises(KeyError):
        exported_name(FAMILIES["llama"], "positions.weight")


def test_files_of_the_inner_model_alone_leave_the_prefix_out():
    assert (FAMILIES["gpt2"].prefix, FAMILIES["llama"].prefix) == ("transformer.", "model.")
    bare = known_names(["wte.weight", "h.0.ln_1.bias", "lm_head.weight"], FAMILIES["gpt2"])
    assert bare == {
        "transformer.wte.weight": "wte.weight",
        "transformer.h.0.ln_1.bias": "h.0.ln_1.bias",
        "lm_head.weight": "lm_head.weight",
    }
    full = ["model.norm.weight", "lm_head.weight"]
    assert known_names(iter(full), FAMILIES["llama"]) == {name: name for name in full}


def test_tables_beside_the_weights_are_left_out():
    names = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.norm.weight"]
    assert known_names(names, FAMILIES["llama"]) == {"model.norm.weight": "model.norm.weight"}
    tables = ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias", "transformer.h.0.attn.c_attn.bias"]
    assert list(known_names(tables, FAMILIES["gpt2"])) == ["transformer.h.0.attn.c_attn.bias"]
    further = FamilyWeights({}, unused=("model.layers.2.",))
    names = ["model.layers.1.norm.weight", "model.layers.2.norm.weight", "model.layers.20.norm.weight"]
    assert list(known_names(names, further)) == [names[0], names[2]]
