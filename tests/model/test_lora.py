import copy
import json

import pytest
import torch

from groundup import presets
from groundup.accounting import count_parameters, training_memory
from groundup.model import (
    BlockConfig,
    LoRAConfig,
    MLPConfig,
    MoEConfig,
    NeuralNgramConfig,
    TopKRouter,
    Transformer,
    add_lora,
)
from groundup.model.linear import Linear
from groundup.model.lora import (
    LoRALinear,
    adapters,
    count_trained,
    fold,
    linear_maps,
    matching,
    merge,
    remove,
    unmerge,
)
from groundup.model.lora_files import CONFIG, WEIGHTS, adapter_state, load_adapter, save_adapter
from groundup.model.pretrained import load_pretrained, save_pretrained
from groundup.optim import AdamW, muon_adamw
from groundup.parallel.tensor import cuts
from groundup.tensorfile import read_tensors, write_tensors
from groundup.train import next_token, train

from .variants import MIXERS, build, small, tokens

ALL = LoRAConfig(4, 8.0, ("blocks.*",))
EVERY_KIND = {
    "llama": presets.llama(vocab_size=50, d_model=16, num_layers=2, num_heads=2),
    "qwen3": presets.qwen3(vocab_size=50, d_model=16, num_layers=2, num_heads=2),
    "gpt2": presets.gpt2(vocab_size=50, d_model=16, num_layers=2, num_heads=2, context_length=16),
    "vaswani": presets.vaswani(vocab_size=50, d_model=16, num_layers=2, num_heads=2, context_length=16),
    "latent": small(BlockConfig(MIXERS["latent"], MLPConfig(24))),
}


def trained_adapters(model, config=ALL, seed=1):
    """Adapters as after training: B is not zero."""
    add_lora(model, config)
    generator = torch.Generator().manual_seed(seed)
    for _, adapter in adapters(model):
        with torch.no_grad():
            adapter.lora_b.copy_(0.3 * torch.randn(adapter.lora_b.shape, generator=generator))
    return model


# the formula -----------------------------------------------------------------------------------------------------


def test_by_hand():
    """W = [[1, 2]], A = [[1, 1]], B = [[3]], alpha / r = 2: y = 1*5 + 2*7 + 2 * 3 * (5 + 7) = 91."""
    base = Linear(2, 1)
    base.weight.data = torch.tensor([[1.0, 2.0]])
    adapter = LoRALinear(base, LoRAConfig(r=1, alpha=2.0))
    adapter.lora_a.data, adapter.lora_b.data = torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0]])
    assert adapter(torch.tensor([5.0, 7.0])).item() == 91.0


@pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND)
def test_step_zero_is_the_base_to_the_bit(config):
    model, x = build(config), tokens()
    before = model(x).detach()
    add_lora(model, ALL)
    assert len(list(adapters(model))) == len(linear_maps(model)) > 0
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND)
def test_merged_equals_adapters_and_comes_back(config, dtype, tolerance):
    model, x = build(config).to(dtype), tokens()
    model.compute_dtype = dtype
    base = model(x).detach()
    trained_adapters(model)
    apart = model(x).detach()
    assert (apart - base).abs().max() > 0.01, "the adapters must do something"
    merge(model)
    merge(model)  # a second time changes nothing
    torch.testing.assert_close(model(x), apart, rtol=tolerance, atol=tolerance)
    unmerge(model)
    torch.testing.assert_close(model(x), apart, rtol=tolerance, atol=tolerance)
    remove(model)
    torch.testing.assert_close(model(x), base, rtol=tolerance, atol=tolerance)


def test_the_adapter_works_in_cached_decoding_too():
    model, x = trained_adapters(build(EVERY_KIND["latent"])), tokens(1, 8)
    with torch.no_grad():
        caches = model.new_caches()
        steps = [model(x[:, i : i + 1], caches=caches) for i in range(8)]
        torch.testing.assert_close(torch.cat(steps, 1), model(x), rtol=1e-4, atol=1e-4)


def test_dropout_falls_on_the_adapter_s_input_alone_and_in_training_alone():
    model, x = build(EVERY_KIND["llama"]), tokens()
    base = model(x).detach()
    add_lora(model, LoRAConfig(4, 8.0, ("blocks.*",), dropout=0.5))
    assert torch.equal(model.train()(x), base), "B is zero, so what is dropped cannot show"
    for _, adapter in adapters(model):
        torch.nn.init.ones_(adapter.lora_b)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_a_seed_means_the_same_adapters_and_another_others():
    drawn = [adapter_state(add_lora(build(EVERY_KIND["llama"]), ALL, seed=seed)) for seed in (0, 0, 1)]
    name = "blocks.1.mixer.wv.lora_a"
    assert torch.equal(drawn[0][name], drawn[1][name]) and not torch.equal(drawn[0][name], drawn[2][name])
    assert not torch.equal(drawn[0][name], drawn[0]["blocks.1.mixer.wk.lora_a"])


# which maps ------------------------------------------------------------------------------------------------------


def test_patterns_choose_by_path():
    model = build(EVERY_KIND["llama"])
    assert list(matching(model, ("blocks.*.mixer.w[qv]",))) == [
        "blocks.0.mixer.wq", "blocks.0.mixer.wv", "blocks.1.mixer.wq", "blocks.1.mixer.wv",
    ]  # fmt: skip
    assert list(matching(model, ("blocks.1.ffn.*", "*.0.mixer.wo"))) == [
        "blocks.0.mixer.wo", "blocks.1.ffn.gate", "blocks.1.ffn.up", "blocks.1.ffn.down",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("blocks.*.mixer.wqq", "matches no linear map; did you mean 'blocks.\\*.mixer.wq'"),
        ("zzz", "matches no linear map; there are blocks.\\*.mixer.wq"),
        ("head", "read as a matrix"),
    ],
)
def test_a_pattern_without_a_match_names_what_is_near(pattern, words):
    model = build(EVERY_KIND["llama"])
    with pytest.raises(ValueError, match=words):
        add_lora(model, LoRAConfig(patterns=("blocks.*.mixer.wq", pattern)))
    assert all(p.requires_grad for p in model.parameters()), "a refusal leaves the model as it was"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r": 0}, "r=0"),
        ({"alpha": 0.0}, "alpha=0"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"dropout": 1.0}, "dropout=1"),
        ({"patterns": ()}, "no patterns"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        LoRAConfig(**options)


def test_adapters_on_adapters_are_refused():
    model = add_lora(build(EVERY_KIND["llama"]), ALL)
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(model, ALL)


def test_tensor_parallelism_refuses_adapters_with_a_reason_and_cuts_a_folded_model():
    model = trained_adapters(build(EVERY_KIND["llama"]))
    with pytest.raises(ValueError, match="`fold` them into the weights first"):
        cuts(model, 2)
    assert cuts(fold(model), 2)


# training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda m: AdamW(m, 1e-2), lambda m: muon_adamw(m, muon_lr=1e-2)], ids=["adamw", "muon"]
)
def test_training_moves_the_adapters_and_nothing_else(make):
    torch.manual_seed(0)
    model, batch = build(EVERY_KIND["llama"]), {"tokens": tokens(4, 12)}
    before = copy.deepcopy(model.state_dict())
    add_lora(model, LoRAConfig(4, 8.0, ("blocks.*",)))
    optimizer = make(model)
    run = train(model, [batch] * 30, next_token, optimizer, 30, progress=False)
    assert run.losses[-1] < 0.9 * run.losses[0]
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in owned} == set(adapter_state(model))
    assert all(p.grad is None for name, p in model.named_parameters() if "lora" not in name)


def test_gradients_are_those_of_the_low_rank_change():
    """d loss / dB = s G^T (A x), with G from autograd through the merged weight."""
    model, x = trained_adapters(build(EVERY_KIND["llama"]).double()), tokens()
    model.compute_dtype = torch.float64
    model(x).square().sum().backward()
    adapter = dict(adapters(model))["blocks.1.ffn.down"]
    assert adapter.lora_b.grad is not None
    apart = adapter.lora_b.grad.clone()
    merge(model)
    adapter.weight.requires_grad_(True)
    model(x).square().sum().backward()
    assert adapter.weight.grad is not None
    torch.testing.assert_close(apart, adapter.scale * adapter.weight.grad @ adapter.lora_a.T, rtol=1e-9, atol=1e-9)


def test_a_base_in_bfloat16_keeps_adapters_in_float32_and_trains():
    model, batch = build(EVERY_KIND["llama"]), {"tokens": tokens(4, 12)}
    model.compute_dtype = torch.bfloat16
    add_lora(model, ALL, base_dtype=torch.bfloat16)
    assert {p.dtype for name, p in model.named_parameters() if p.ndim > 1 and "lora" not in name} == {torch.bfloat16}
    assert {p.dtype for p in adapter_state(model).values()} == {torch.float32}
    run = train(model, [batch] * 30, next_token, AdamW(model, 1e-2), 30, progress=False)
    assert run.losses[-1] < 0.9 * run.losses[0]


# counts ----------------------------------------------------------------------------------------------------------


def test_counts_by_hand():
    """Four maps of 16 x 16 (wq, wv in two layers) with r = 4: 4 * 4 * (16 + 16) = 512."""
    model = add_lora(build(EVERY_KIND["llama"]), LoRAConfig(4, 8.0))
    total = count_parameters(EVERY_KIND["llama"]).total + 512
    assert count_trained(model) == (512, total)
    assert str(count_trained(model)).startswith(f"512 of {total:,} parameters are trained")
    assert count_trained(fold(model)) == (total - 512, total - 512)


def qwen_1_5b():
    """Qwen2.5-1.5B's sizes (arXiv:2412.15115, table 1): 1.54 B parameters, of which 1.31 B are in the blocks."""
    return presets.llama(vocab_size=151_936, d_model=1536, num_layers=28, num_heads=12, num_kv_heads=2, d_ff=8960,
                         tie_embeddings=True)  # fmt: skip


def test_one_and_a_half_billion_parameters_fit_on_8_gb_with_a_base_in_bfloat16_and_not_without_adapters():
    config, lora = qwen_1_5b(), LoRAConfig(16, 32.0, ("blocks.*",))
    with torch.device("meta"):
        trained, total = count_trained(add_lora(Transformer(config), lora))
    base = total - trained
    assert base == pytest.approx(1.54e9, rel=0.01) and trained == 18_464_768
    step = training_memory(config, 1, 1024, torch.bfloat16, recompute=True)
    # While one block is recomputed, all that its backward pass reads is there.
    one = presets.llama(vocab_size=1, d_model=1536, num_layers=1, num_heads=12, num_kv_heads=2, d_ff=8960)
    block = training_memory(one, 1, 1024, torch.bfloat16).activations
    peak = 2 * base + 16 * trained + step.activations + block + step.logits
    assert 4.0e9 < peak < 6.0e9
    assert step.peak > 24e9, "all parameters with AdamW in float32"


# files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND)
def test_save_and_load_give_the_same_model(config, tmp_path):
    model, x = trained_adapters(build(config)), tokens()
    save_adapter(model, tmp_path, ALL)
    again = build(config)
    loaded = load_adapter(again, tmp_path)
    assert torch.equal(again(x), model(x))
    assert (loaded.r, loaded.alpha) == (4, 8.0)
    assert sum(t.numel() for t in read_tensors(tmp_path / WEIGHTS).values()) == count_trained(model).trainable


def test_names_are_peft_s_where_the_base_has_a_hugging_face_class(tmp_path):
    save_adapter(trained_adapters(build(EVERY_KIND["llama"]), LoRAConfig()), tmp_path, LoRAConfig())
    names = read_tensors(tmp_path / WEIGHTS)
    assert "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in names and len(names) == 8
    data = json.loads((tmp_path / CONFIG).read_text())
    assert data["peft_type"] == "LORA" and data["target_modules"][0] == "model.layers.0.self_attn.q_proj"


def test_matrices_that_are_one_in_the_family_s_files_keep_our_names(tmp_path):
    save_adapter(trained_adapters(build(EVERY_KIND["gpt2"])), tmp_path, ALL)
    names = read_tensors(tmp_path / WEIGHTS)
    assert "base_model.model.blocks.0.mixer.wq.lora_A.weight" in names
    assert "base_model.model.transformer.h.0.mlp.c_fc.lora_B.weight" in names


def test_peft_reads_ours_and_we_read_peft_s(tmp_path):
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    model, x = build(EVERY_KIND["llama"]), tokens()
    save_pretrained(model, None, tmp_path / "base")
    trained_adapters(model)
    save_adapter(model, tmp_path / "ours", ALL)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "ours"))
    with torch.no_grad():
        torch.testing.assert_close(theirs(x).logits, model(x), rtol=1e-4, atol=1e-4)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    again = load_pretrained(tmp_path / "base")
    load_adapter(again, tmp_path / "theirs")
    torch.testing.assert_close(again(x), model(x))


def spoil_json(**changes):
    return lambda folder: (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | changes))


def spoil_tensor(change):
    def spoil(folder):
        tensors = read_tensors(folder / WEIGHTS)
        change(tensors)
        write_tensors(folder / WEIGHTS, tensors)

    return spoil


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
FAULTS = {
    "not json": (lambda folder: (folder / CONFIG).write_text("{"), "not valid JSON"),
    "a list": (lambda folder: (folder / CONFIG).write_text("[]"), "expected 'LORA'"),
    "another kind": (spoil_json(peft_type="IA3"), "'IA3'; expected 'LORA'"),
    "dora": (spoil_json(use_dora=True), "use_dora=True is not supported"),
    "ranks that differ": (spoil_json(rank_pattern={"q_proj": 2}), "rank_pattern"),
    "no rank": (spoil_json(r=None), "r=None"),
    "a rank that is text": (spoil_json(r="4"), "r='4'"),
    "a huge rank": (spoil_json(r=10**15), "of another shape or type"),
    "alpha that is no number": (spoil_json(lora_alpha=float("nan")), "alpha=nan"),
    "alpha beyond floats": (spoil_json(lora_alpha=10**400), "too large"),
    "another base": (spoil_json(groundup={"base_sha256": "0"}), "another base|a base whose parameters"),
    "truncated": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-8]), "describes .* bytes"),
    "no tensors": (spoil_tensor(dict.clear), "no linear map"),
    "one missing": (spoil_tensor(lambda t: t.pop(FIRST)), "missing: .*q_proj.lora_A"),
    "one too many": (spoil_tensor(lambda t: t.update({"x.lora_A.weight": torch.ones(4, 4)})), "x.lora_A.weight"),
    "another shape": (spoil_tensor(lambda t: t.update({FIRST: torch.ones(4, 5)})), "expected \\(4, 16\\)"),
    "integers": (spoil_tensor(lambda t: t.update({FIRST: torch.ones(4, 16, dtype=torch.int32)})), "int32"),
    "not finite": (spoil_tensor(lambda t: t[FIRST].fill_(float("inf"))), "NaN or infinity"),
}


@pytest.mark.parametrize(("spoil", "words"), FAULTS.values(), ids=FAULTS)
def test_files_that_are_damaged_or_do_not_fit_are_refused(spoil, words, tmp_path):
    save_adapter(trained_adapters(build(EVERY_KIND["llama"])), tmp_path, ALL)
    spoil(tmp_path)
    model = build(EVERY_KIND["llama"])
    with pytest.raises(ValueError, match=words):
        load_adapter(model, tmp_path)
    assert not list(adapters(model))


def test_a_model_without_adapters_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="no adapters to save"):
        save_adapter(build(EVERY_KIND["llama"]), tmp_path, ALL)


def test_a_folded_model_is_saved_as_a_plain_one(tmp_path):
    model, x = trained_adapters(build(EVERY_KIND["llama"])), tokens()
    adapted = model(x).detach()
    save_pretrained(fold(model), None, tmp_path)
    torch.testing.assert_close(load_pretrained(tmp_path)(x), adapted)


def test_an_adapter_where_only_the_weight_is_read_is_refused():
    model = build(small(BlockConfig(MIXERS["lstm"], MLPConfig(24))))
    with pytest.raises(ValueError, match="read as a matrix"):
        add_lora(model, LoRAConfig(patterns=("blocks.*.mixer.wh",)))


def test_a_layer_of_the_same_name_that_is_called_has_one():
    model = trained_adapters(
        build(small(BlockConfig(NeuralNgramConfig(3, 12, direct=True), MLPConfig(24)))),
        LoRAConfig(patterns=("blocks.*.mixer.wh",)),
    )
    assert [path for path, _ in adapters(model)] == ["blocks.0.mixer.wh", "blocks.1.mixer.wh"]
    adapted, base = model(tokens()), remove(model)(tokens())
    assert not torch.allclose(adapted, base)


def test_the_balancing_bias_of_a_frozen_base_stays():
    model = build(small(BlockConfig(MIXERS["gqa"], MoEConfig(4, 2, 12, router=TopKRouter(bias_rate=0.1)))))
    add_lora(model, LoRAConfig(patterns=("blocks.*.mixer.wq",)))
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("bias")}
    train(model, [{"tokens": tokens(4, 9)}] * 3, next_token, AdamW(model, lr=1e-2), 3, progress=False)
    assert len(before) == 2
    for name, buffer in model.named_buffers():
        assert name not in before or torch.equal(buffer, before[name])
